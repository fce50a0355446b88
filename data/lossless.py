"""What a tokenizer must be: decode(encode(x)) == x for every text, and its end of text is in the ids of none."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

EOT = "<|endoftext|>"
HARD_TEXT = " \t\r\n  a  b \u2581\u2581 日本語 👩‍👩‍👧 \x00\x1b e\u0301 \u00a0\ufeff <unk> <|endoftext|>  "


class Decoder(Protocol):
    """What turns tokens into text again."""

    vocab_size: int

    def decode(self, ids: list[int]) -> str: ...

    def describe(self) -> dict[str, Any]: ...


class Tokenizer(Decoder, Protocol):
    """What preparation needs: `eot` never occurs in the ids of a text; ids are below `vocab_size`, added ones included."""

    eot: int

    def encode(self, text: str) -> list[int]: ...


class Given(Tokenizer, Protocol):
    """A tokenizer of a file: `content` is written as `file` beside the tokens, and is enough to make it again."""

    file: ClassVar[str]
    content: bytes


def difference(text: str, back: str) -> str:
    """Where what came back first differs from the text, in words; empty where it does not."""
    if text == back:
        return ""
    place = next((i for i, (a, b) in enumerate(zip(text, back, strict=False)) if a != b), min(len(text), len(back)))
    return f"{text[place : place + 12]!r} at character {place} came back as {back[place : place + 12]!r}"


def are_same(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether two give the same ids, as far as a hard text tells: one tokenizer may be in two formats."""
    sizes = one.vocab_size == other.vocab_size and one.eot == other.eot
    return sizes and one.encode(HARD_TEXT) == other.encode(HARD_TEXT)
