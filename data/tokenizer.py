"""A lossless SentencePiece tokenizer: decode(encode(x)) == x for every string that UTF-8 can hold.

Lossless takes care: identity normalisation, white space kept, no dummy prefix, byte fallback, whole documents.
SentencePiece uses U+2581 (▁) for the space, so a ▁ in the text is encoded as its three UTF-8 bytes.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable
from pathlib import Path

import sentencepiece

EOT = "<|endoftext|>"
META_SPACE = "\u2581"
UNLIMITED = 1 << 30  # SentencePiece drops "sentences" longer than 4,192 bytes by default


class Tokenizer:
    """Encodes documents with a SentencePiece model."""

    def __init__(self, model: bytes) -> None:
        self.model = model
        self.digest = hashlib.sha256(model).hexdigest()
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.vocab_size: int = self._processor.vocab_size()
        self.eot: int = self._processor.eos_id()
        self._meta_space = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in META_SPACE.encode()]
        if self.eot < 0 or self._processor.unk_id() in self._meta_space:
            raise ValueError(
                "the SentencePiece model has no end-of-text piece or no byte fallback; train it with data.prepare"
            )

    @classmethod
    def from_file(cls, path: str | Path) -> Tokenizer:
        return cls(Path(path).read_bytes())

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


def train_tokenizer(documents: Iterable[str], vocab_size: int) -> bytes:
    """Train a BPE model on whole documents; the same documents give the same bytes.

    Raises ValueError where the sample is too small for the vocabulary.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(documents),
            model_writer=model,
            model_type="bpe",
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
