"""Lossless tokenizers: decode(encode(x)) == x for every string that UTF-8 can hold.

With SentencePiece lossless takes care: identity normalisation, white space kept, no dummy prefix, byte fallback, whole
documents. It uses U+2581 (▁) for the space, so a ▁ in the text is encoded as its three UTF-8 bytes.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import sentencepiece

from configs.errors import InputError
from data.characters import load_characters
from data.huggingface import GPT2_FILE, GPT2Merges, HuggingFace
from data.lossless import EOT, HARD_TEXT, Decoder, Tokenizer
from record.files import plain_name

META_SPACE = "\u2581"
UNLIMITED = 1 << 30  # SentencePiece drops "sentences" longer than 4,192 bytes by default
MODEL_FILE = "tokenizer.model"


class SentencePiece:
    """A SentencePiece model, ours or a user's. InputError for one that is not lossless or has no end-of-text piece."""

    file: ClassVar[str] = MODEL_FILE

    def __init__(self, content: bytes) -> None:
        self.content = content
        try:
            with _quiet():
                self._processor = sentencepiece.SentencePieceProcessor(model_proto=content)
        except (RuntimeError, TypeError):
            raise InputError(f"not a SentencePiece model ({len(content):,} bytes)") from None
        if not content:  # which SentencePiece takes for a model without a piece
            raise InputError("not a SentencePiece model (0 bytes)")
        self.vocab_size: int = self._processor.vocab_size()
        self.eot: int = self._processor.eos_id()
        self._meta_space = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in META_SPACE.encode()]
        if (
            self.eot < 0
            or self._processor.unk_id() in self._meta_space
            or self.decode(self.encode(HARD_TEXT)) != HARD_TEXT
        ):
            raise InputError(
                "the SentencePiece model is not lossless, or has no end-of-text piece: it needs byte fallback, identity "
                "normalisation, kept white space and no dummy prefix; train one with --tokenizer bpe or unigram"
            )

    def encode(self, text: str) -> list[int]:
        """Token ids of one document, without its end-of-text token."""
        # The parts between ▁ are encoded by the model; a ▁ itself would be taken for a space.
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
        digest = hashlib.sha256(self.content).hexdigest()
        return {"kind": "sentencepiece", "file": MODEL_FILE, "sha256": digest}


class GPT2:
    """GPT-2's own BPE, P1's tokens, through the optional package tiktoken, which fetches the merges once.

    Raises InputError, saying so, where the package or the network is missing.
    """

    def __init__(self) -> None:
        try:
            import tiktoken

            self._encoding = tiktoken.get_encoding("gpt2")
        except ImportError:
            raise InputError(
                "GPT-2's tokens need the package tiktoken: pip install tiktoken; or GPT-2's file of merges, vocab.bpe: --merges "
                "FILE of data.prepare, or put it into the folder of the data"
            ) from None
        except Exception as error:  # whatever its transport raises
            raise InputError(
                f"tiktoken needs the network once, for GPT-2's merges ({type(error).__name__}: {error}); run it where there is "
                "one with TIKTOKEN_CACHE_DIR set, and bring that folder; or bring the merges, vocab.bpe: --merges FILE of "
                "data.prepare, or put it into the folder of the data"
            ) from None
        self.vocab_size: int = self._encoding.n_vocab
        self.eot: int = self._encoding.eot_token

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._encoding.encode_ordinary(text)
        return ids

    def decode(self, ids: list[int]) -> str:
        text: str = self._encoding.decode(ids)
        return text

    def decode_bytes(self, token: int) -> bytes:
        """The bytes of one token, which may be a part of a character."""
        content: bytes = self._encoding.decode_single_token_bytes(token)
        return content

    def describe(self) -> dict[str, Any]:
        return {"kind": "gpt2"}


def load_tokenizer(folder: Path, description: dict[str, Any]) -> Decoder:
    """The tokenizer of prepared data. InputError if its file is missing or is not the one the manifest names."""
    kind = description.get("kind")
    if kind == "gpt2":
        # The manifest does not say whether the merges lie here: whoever has the data may bring them.
        merges = folder / GPT2_FILE
        try:
            return tokenizer_of(description, merges.read_bytes() if merges.is_file() else None)
        except InputError as error:
            raise InputError(f"the data in {folder}: {error}") from None
    if kind not in ("sentencepiece", "characters", "huggingface"):
        raise InputError(f"the data in {folder} names no tokenizer: its tokens cannot be decoded")
    path = folder / plain_name(description["file"])
    if not path.exists():
        raise InputError(f"{path} is missing; prepare the data again")
    tokenizer = load_characters(path) if kind == "characters" else tokenizer_of(description, path.read_bytes())
    if tokenizer.describe() != description:
        raise InputError(
            f"{path} is not the tokenizer the data was prepared with; restore it or prepare the data again"
        )
    return tokenizer


def tokenizer_of(description: dict[str, Any], content: bytes | None) -> Tokenizer:
    """The tokenizer that encodes, by what a manifest says of it and the content of its file (None: it has none)."""
    if content is None:
        return GPT2()
    if description["kind"] == "gpt2":
        return GPT2Merges(content)
    if description["kind"] == "huggingface":
        return HuggingFace(content, description["eot"])
    return SentencePiece(content)


class VocabularyError(InputError):
    """A text cannot fill a vocabulary (`most` it fills), or it has more characters than that (`least` it needs)."""

    def __init__(self, vocab_size: int, reason: str, most: int | None = None, least: int | None = None) -> None:
        super().__init__(f"SentencePiece cannot train a vocabulary of {vocab_size} on this text: {reason}")
        self.most, self.least = most, least


def train_sentencepiece(documents: Iterable[str], kind: str, vocab_size: int) -> bytes:
    """Train a `bpe` or `unigram` model on whole documents; the same documents give the same bytes.

    Raises VocabularyError where the sample is too small for the vocabulary, saying which would do.
    """
    sample = list(documents)  # of bounded size; SentencePiece holds it as well
    # Without a space in the sample the model has no piece for one, and spaces would come back as U+2581. It is asked for
    # only then, since every option of the training stands in the model's bytes.
    spaceless = not any(" " in text for text in sample)
    return _train(sample, kind, vocab_size, {"required_chars": META_SPACE} if spaceless else {})


def _train(documents: list[str], kind: str, vocab_size: int, more: dict[str, Any]) -> bytes:
    """One training, with SentencePiece's errors as ours."""
    model = io.BytesIO()
    try:
        with _quiet():
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
                **more,
            )
    except (RuntimeError, OSError) as error:
        raise _vocabulary_error(vocab_size, str(error)) from None
    return model.getvalue()


def fit_sentencepiece(documents: Callable[[], Iterable[str]], kind: str, vocab_size: int, smaller: int) -> bytes:
    """Train with the vocabulary of a default, or with another where the text cannot have that.

    Too little text for it: `smaller`, or the most that the text fills. More characters than entries: the next power of two.
    """
    # SentencePiece says only by failing what a text allows. A size that comes back is no progress.
    tried = set()
    while True:
        try:
            return train_sentencepiece(documents(), kind, vocab_size)
        except VocabularyError as error:
            tried.add(vocab_size)
            if error.most is not None:
                vocab_size = min(smaller, error.most) if vocab_size > smaller else error.most
            elif error.least is not None:
                vocab_size = 1 << error.least.bit_length()
            if vocab_size in tried:
                raise


def _vocabulary_error(vocab_size: int, reason: str) -> VocabularyError:
    """SentencePiece's own words, a line of its source among them, as a sentence that says what would work."""
    if match := re.search(r"too high \(\d+\)\. Please set it to a value <= (\d+)", reason):
        most = int(match[1])
        problem = f"at most {most} entries can be filled; give --vocab-size {most} or less, or more text"
        return VocabularyError(vocab_size, problem, most=most)
    if match := re.search(r"smaller than required_chars\. \d+ vs (\d+)", reason):
        least = int(match[1])
        problem = f"its bytes and characters alone are {least}; give --vocab-size {least} or more"
        return VocabularyError(vocab_size, problem, least=least)
    if "sentences_.empty()" in reason:
        return VocabularyError(vocab_size, "the training documents hold no text")
    lines = reason.strip().splitlines()
    return VocabularyError(vocab_size, lines[-1][:300] if lines else "it gives no reason")


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what SentencePiece's C++ writes to the error stream: it is no message of ours, and its errors are raised."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
