"""How many bytes of text each token stands for: what a loss in nats per token is divided by to be one per byte."""

from __future__ import annotations

import numpy as np
import sentencepiece
from numpy.typing import NDArray

from configs.errors import InputError
from data.characters import Characters
from data.huggingface import HuggingFace
from data.lossless import HARD_TEXT, Tokenizer
from data.tokenizer import GPT2, META_SPACE, SentencePiece


def byte_lengths(tokenizer: Tokenizer) -> NDArray[np.int64]:
    """Bytes of UTF-8 of each token, (V,); 0 of one that ends a document, or is in no text.

    InputError where they do not add up to those of a text.
    """
    match tokenizer:
        case SentencePiece():
            lengths = _of_pieces(tokenizer.content)
        case HuggingFace():
            lengths = tokenizer.token_bytes()
        case Characters():
            lengths = [len(tokenizer.decode([i]).encode()) for i in range(tokenizer.vocab_size)]
        case GPT2():
            lengths = [len(tokenizer.decode_bytes(i)) if i != tokenizer.eot else 0 for i in range(tokenizer.vocab_size)]
        case _:
            raise InputError(f"the bytes of a token of {type(tokenizer).__name__} are not known here")
    array = np.array(lengths, np.int64)
    if not isinstance(tokenizer, Characters) and array[tokenizer.encode(HARD_TEXT)].sum() != len(HARD_TEXT.encode()):
        raise InputError("the tokenizer's pieces do not add up to a text's bytes; bits per byte cannot be told")
    return array


def _of_pieces(model: bytes) -> list[int]:
    """A SentencePiece model's; ▁ stands for a space."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    lengths = []
    for i in range(processor.vocab_size()):
        if processor.is_control(i) or processor.is_unknown(i):
            lengths.append(0)
        else:
            piece = processor.id_to_piece(i).replace(META_SPACE, " ")
            lengths.append(1 if processor.is_byte(i) else len(piece.encode()))
    return lengths
