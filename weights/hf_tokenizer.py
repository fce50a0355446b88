"""A SentencePiece tokenizer of prepared data as the files that transformers' AutoTokenizer reads, with the same ids.

SentencePiece writes a space as ▁ and a ▁ of the text as its three bytes (data/tokenizer.py). Here every ▁ of the vocabulary becomes
the space that it stands for. Then nothing need be replaced in a text, and a ▁ in it is in no piece, so that it falls back to bytes.
"""

from __future__ import annotations

from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from configs.errors import InputError
from data.lossless import EOT
from data.tokenizer import META_SPACE, SentencePiece

NEVER = -1e4  # a score; those of pieces are logarithms of probabilities
Files = dict[str, dict[str, Any]]


def tokenizer_files(tokenizer: SentencePiece, length: int) -> Files:
    """tokenizer.json and tokenizer_config.json. `length`: the longest text in tokens that the model takes."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.content)
    raw = [processor.id_to_piece(i) for i in range(tokenizer.vocab_size)]
    scores = [processor.get_score(i) for i in range(tokenizer.vocab_size)]
    special = [i for i in range(tokenizer.vocab_size) if processor.is_control(i) or processor.is_unknown(i)]
    pieces = [p if i in special else p.replace(META_SPACE, " ") for i, p in enumerate(raw)]
    unknown = processor.unk_id()
    kind = _kind(tokenizer.content)
    model: dict[str, Any]
    if kind == "bpe":
        plain = [i for i in range(len(pieces)) if i not in special and not processor.is_byte(i)]
        merges = _merges([pieces[i] for i in sorted(plain, key=lambda i: -scores[i])])
        vocabulary = {piece: i for i, piece in enumerate(pieces)}
        model = {"type": "BPE", "vocab": vocabulary, "merges": merges, "unk_token": pieces[unknown]}
        model |= {"fuse_unk": False, "byte_fallback": True, "ignore_merges": False, "dropout": None}
        model |= {"continuing_subword_prefix": None, "end_of_word_suffix": None}
    else:
        # A special piece is never the best reading of a text, and SentencePiece does not look for it.
        rows = [[piece, NEVER if i in special else scores[i]] for i, piece in enumerate(pieces)]
        model = {"type": "Unigram", "vocab": rows, "unk_id": unknown, "byte_fallback": True}
    added = [
        {"id": i, "content": pieces[i], "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for i in special
    ]
    decoder = {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]}
    whole = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None}
    whole |= {"pre_tokenizer": None, "post_processor": None, "decoder": decoder, "model": model}
    config = tokenizer_settings(EOT, length) | {"unk_token": pieces[unknown]}
    return {"tokenizer.json": whole, "tokenizer_config.json": config}


def tokenizer_settings(end: str, length: int) -> dict[str, Any]:
    """tokenizer_config.json. `end`: the token that ends a document; `length`: the longest text in tokens."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": end,
        "bos_token": end,
        "model_max_length": length,
        # what looks like a special token in a text is text, as in preparation
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
    }


def _kind(model: bytes) -> str:
    """bpe or unigram. InputError for a model of words or characters."""
    spec = sentencepiece_model_pb2.ModelProto.FromString(model).trainer_spec
    name = spec.ModelType.Name(spec.model_type).lower()
    if name not in ("bpe", "unigram"):
        raise InputError(f"the SentencePiece model is of type {name}; bpe and unigram can be written for transformers")
    return str(name)


def _merges(pieces: list[str]) -> list[list[str]]:
    """Which two pieces make a third, in the order in which SentencePiece joins them: pieces from the highest score down."""
    known = set(pieces)
    return [
        [piece[:i], piece[i:]]
        for piece in pieces
        for i in range(1, len(piece))
        if piece[:i] in known and piece[i:] in known
    ]
