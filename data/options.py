"""What determines prepared data besides its source, and what is chosen where the user chooses nothing."""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_VOCAB = 50304  # GPT-2's, rounded up to what tensor cores like
SMALLEST_VOCAB, VOCAB_BYTES = 512, 512  # one entry for so many bytes of text: an entry is then seen some hundred times
DEFAULT_VAL_FRACTION = 0.0005  # P1's
MIN_VAL_BYTES = 2 << 20  # what the default fraction is raised for: enough windows for a stable validation loss
MOST_HELD_OUT = 0.1  # by default


@dataclass(frozen=True)
class Options:
    """What determines the output besides the source. `tokenizer`: bpe, unigram, gpt2, or the SHA-256 of a given file.

    `val_fraction` 0 stands for a validation split that has files of its own.
    """

    vocab_size: int
    val_fraction: float
    seed: int
    text_field: str = "text"
    tokenizer: str = "bpe"
    sample_bytes: int = 20 << 20
    bucket_bytes: int = 128 << 20


def default_val_fraction(text_bytes: int) -> float:
    """P1's 0.05 %, raised where that would be under MIN_VAL_BYTES of text, to a tenth at most."""
    return max(DEFAULT_VAL_FRACTION, min(MOST_HELD_OUT, MIN_VAL_BYTES / max(text_bytes, 1)))


def why_val_fraction(text_bytes: int) -> str:
    """A sentence on the default fraction, where it is not P1's; else empty."""
    fraction = default_val_fraction(text_bytes)
    if fraction <= DEFAULT_VAL_FRACTION:
        return ""
    instead = f"val-fraction {fraction:.4g} instead of {DEFAULT_VAL_FRACTION}"
    if fraction < MOST_HELD_OUT:
        return f"{instead}, to hold out about 2 MiB of text"
    return (
        f"{instead}: about {sized(fraction * text_bytes)} of {sized(text_bytes)} of text, the most held out by default"
    )


def default_vocab(text_bytes: int) -> int:
    """A vocabulary that a small text can fill and train: the power of two at or below an entry for 512 bytes.

    From 16 MiB it is DEFAULT_VOCAB: the next power of two would be no nearer to it.
    """
    entries = max(text_bytes // VOCAB_BYTES, SMALLEST_VOCAB)
    power = 1 << (entries.bit_length() - 1)
    return DEFAULT_VOCAB if power > DEFAULT_VOCAB // 2 else power


def sized(count: float) -> str:
    """Bytes as a reader likes them: 812 bytes, 20.5 kB, 1.1 MB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return "1 byte" if round(count) == 1 else f"{count:.0f} bytes"
