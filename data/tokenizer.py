"""Lossless tokenizers: decode(encode(x)) == x for every string that UTF-8 can hold.

With SentencePiece lossless takes care: identity normalisation, white space kept, no dummy prefix, byte fallback, whole
documents. It uses U+2581 (▁) for the space, so a ▁ in the text is encoded as its three UTF-8 bytes.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import sentencepiece

from data.characters import load_characters

EOT = "<|endoftext|>"
META_SPACE = "\u2581"
UNLIMITED = 1 << 30  # SentencePiece drops "sentences" longer than 4,192 bytes by default
MODEL_FILE = "tokenizer.model"
HARD_TEXT = " \t\r\n  a  b \u2581\u2581 日本語 👩‍👩‍👧 \x00\x1b e\u0301 \u00a0\ufeff <unk> <|endoftext|>  "


class Decoder(Protocol):
    """What turns tokens into text again."""

    vocab_size: int

    def decode(self, ids: list[int]) -> str: ...

    def describe(self) -> dict[str, Any]: ...


class Tokenizer(Decoder, Protocol):
    """What preparation needs: `eot` never occurs in the ids of a text; ids are below `vocab_size`."""

    eot: int

    def encode(self, text: str) -> list[int]: ...


class SentencePiece:
    """A SentencePiece model, ours or a user's. ValueError for one that is not lossless or has no end-of-text piece."""

    def __init__(self, model: bytes) -> None:
        self.model = model
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"not a SentencePiece model: {error}") from None
        self.vocab_size: int = self._processor.vocab_size()
        self.eot: int = self._processor.eos_id()
        self._meta_space = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in META_SPACE.encode()]
        if (
            self.eot < 0
            or self._processor.unk_id() in self._meta_space
            or self.decode(self.encode(HARD_TEXT)) != HARD_TEXT
        ):
            raise ValueError(
                "the SentencePiece model is not lossless, or has no end-of-text piece: it needs byte fallback, identity "
                "normalisation, kept white space and no dummy prefix; train one with --tokenizer bpe or unigram"
            )

    def encode(self, text: str) -> list[int]:
        """Token ids of one document, without its end-of-text token."""
        first, *rest = text.split(META_SPACE)
        ids: list[int] = self._processor.encode(first)
        for part in rest:
            ids += self._meta_space
            ids += self._processor.encode(part)
        return ids

    def decode(self, ids: list[int]) -> str:
        """The text of one document's ids. Bytes cut inside a character decode to U+FFFD."""
        text: str = self._processor.decode(ids)
        return text

    def describe(self) -> dict[str, Any]:
        digest = hashlib.sha256(self.model).hexdigest()
        return {"kind": "sentencepiece", "file": MODEL_FILE, "sha256": digest}


class GPT2:
    """GPT-2's own BPE, P1's tokens, through the optional package tiktoken, which fetches the merges once.

    Raises ValueError, saying so, where the package or the network is missing.
    """

    def __init__(self) -> None:
        try:
            import tiktoken

            self._encoding = tiktoken.get_encoding("gpt2")
        except ImportError:
            raise ValueError("--tokenizer gpt2 needs the package tiktoken: pip install tiktoken") from None
        except Exception as error:  # whatever its transport raises
            raise ValueError(
                f"--tokenizer gpt2 needs the network once, for GPT-2's merges ({type(error).__name__}: {error}); run it where "
                "there is one with TIKTOKEN_CACHE_DIR set, and bring that folder, or use --tokenizer bpe"
            ) from None
        self.vocab_size: int = self._encoding.n_vocab
        self.eot: int = self._encoding.eot_token

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._encoding.encode_ordinary(text)
        return ids

    def decode(self, ids: list[int]) -> str:
        text: str = self._encoding.decode(ids)
        return text

    def describe(self) -> dict[str, Any]:
        return {"kind": "gpt2"}


def load_tokenizer(folder: Path, description: dict[str, Any]) -> Decoder:
    """The tokenizer of prepared data. ValueError if its file is missing or is not the one the manifest names."""
    if description.get("kind") == "gpt2":
        return GPT2()
    if description.get("kind") not in ("sentencepiece", "characters"):
        raise ValueError(f"the data in {folder} names no tokenizer: its tokens cannot be decoded")
    path = folder / description["file"]
    if not path.exists():
        raise ValueError(f"{path} is missing; prepare the data again")
    characters = description["kind"] == "characters"
    tokenizer: Decoder = load_characters(path) if characters else SentencePiece(path.read_bytes())
    if tokenizer.describe() != description:
        raise ValueError(
            f"{path} is not the tokenizer the data was prepared with; restore it or prepare the data again"
        )
    return tokenizer


def train_sentencepiece(documents: Iterable[str], kind: str, vocab_size: int) -> bytes:
    """Train a `bpe` or `unigram` model on whole documents; the same documents give the same bytes.

    Raises ValueError where the sample is too small for the vocabulary.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(documents),
            model_writer=model,
            model_type=kind,
            vocab_size=vocab_size,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            byte_fallback=True,
            character_coverage=0.9999,
            max_sentence_length=UNLIMITED,
            num_threads=2,  # part of the model's bytes: fixed
            unk_id=0,
            eos_id=1,
            eos_piece=EOT,
            bos_id=-1,
            pad_id=-1,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(f"SentencePiece cannot train a vocabulary of {vocab_size} on this sample: {reason}") from None
    return model.getvalue()
