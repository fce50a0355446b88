"""The table of characters that nanoGPT's character-level data sets come with, as a tokenizer."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from configs.errors import InputError
from data.plain_pickle import read_plain_pickle

FILE = "characters.json"


class Characters:
    """`table[i]` is the text of token i; a text's tokens are those of its single characters. No token ends a document."""

    eot: int | None = None

    def __init__(self, table: list[str]) -> None:
        self.table, self.vocab_size = table, len(table)
        self._ids = {text: i for i, text in reversed(list(enumerate(table)))}  # of equal texts the first

    def encode(self, text: str) -> list[int]:
        """Token ids of a text. InputError for a character that the table has not."""
        for character in text:
            if character not in self._ids:
                raise InputError(
                    f"no token stands for {character!r}: the data has {self.vocab_size}, for "
                    f"{''.join(sorted(one for one in self._ids if len(one) == 1))!r}"
                )
        return [self._ids[character] for character in text]

    def decode(self, ids: list[int]) -> str:
        """The text of token ids."""
        return "".join(self.table[i] for i in ids)

    def encoded(self) -> bytes:
        """The file that stands beside the tokens."""
        return json.dumps(self.table).encode()

    def describe(self) -> dict[str, Any]:
        """What a manifest says of it."""
        return {"kind": "characters", "file": FILE, "sha256": hashlib.sha256(self.encoded()).hexdigest()}


def load_characters(path: Path) -> Characters:
    """The table that stands beside prepared tokens. InputError for a file that is not such a table."""
    try:
        table = json.loads(path.read_bytes())
    except ValueError:
        table = None
    if not isinstance(table, list) or not all(isinstance(text, str) for text in table):
        raise InputError(f"{path} is not a list of texts, one for each token; prepare the data again")
    return Characters(table)


def read_meta(path: Path) -> Characters | int:
    """The characters in nanoGPT's meta.pkl, or its vocab_size where it has nothing more. It is parsed and never run.

    InputError for a file that holds anything but plain values, or whose table has gaps.
    """
    remedy = "name the vocabulary with --vocab-size or --tokenizer, and the file is not read"
    try:
        meta = read_plain_pickle(path)
    except InputError as error:
        raise InputError(f"{error}; {remedy}") from None
    table = meta.get("itos") if isinstance(meta, dict) else None
    size = meta.get("vocab_size") if isinstance(meta, dict) else None
    if table is None and isinstance(size, int) and size > 1:
        return size
    if not isinstance(table, dict) or not all(isinstance(text, str) for text in table.values()):
        raise InputError(f"{path} holds neither the table itos (number → text) nor vocab_size; {remedy}")
    if set(table) != set(range(len(table))) or size not in (None, len(table)):
        raise InputError(
            f"{path}: its table itos has {len(table)} texts, which are not those of the tokens 0 to "
            f"{(size or len(table)) - 1}; {remedy}"
        )
    return Characters([table[i] for i in range(len(table))])
