"""Dictionaries in the format of the dictd server, such as Debian's package dict-gcide (Webster 1913): X.dict.dz and X.index.

X.dict.dz, or X.dict, is the text of all entries; the first is packed by dictzip, which is gzip with a table in its header.
X.index has one line a headword: the headword, where its entry begins, and how many bytes it has, both as digits to the base 64.
Several headwords may name one entry. Source: dictd(8) and dictfmt(1) of the dictd project.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterator
from pathlib import Path

from configs.errors import InputError
from data.streams import BLOCK, MAX_DOCUMENT, Reader, lines

TEXTS = (".dict.dz", ".dict")
ALPHABET = string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/"
DIGITS = {byte: value for value, byte in enumerate(ALPHABET.encode())}
MOST_DIGITS = 8  # 2.8e14: a number of more digits is damage, or an attempt to fill the memory
MAX_INDEX = 128 << 20  # bytes; the largest dictionaries have a tenth
INFORMATION = (b"00-database", b"00database")  # how headwords begin that name the licence and the address, and no entry
DOCUMENT_BYTES = 8 << 10  # of a document, by default: see docs/data.md

Span = tuple[int, int]  # where an entry begins in the text, and where it ends, in bytes


def index_of(path: Path) -> Path:
    """The index beside a dictionary's text. InputError for a text that has another name, or no index."""
    for suffix in TEXTS:
        if path.name.endswith(suffix):
            index = path.with_name(path.name.removesuffix(suffix) + ".index")
            if not index.is_file():
                raise InputError(f"{path} has no index: {index} does not exist; a dictionary is both files")
            return index
    hint = "give the text beside it; the index is found by its name" if path.suffix == ".index" else "give such a file"
    raise InputError(f"{path} is no dictionary's text, which is named *{' or *'.join(TEXTS)}; {hint}")


def read_index(path: Path) -> tuple[list[Span], int]:
    """The entries of an index, each once, in the text's order; and how many were left out because they are information.

    InputError names the line that is damaged, and an index without an entry.
    """
    if path.stat().st_size > MAX_INDEX:
        raise InputError(
            f"{path} has {path.stat().st_size:,} bytes, over {MAX_INDEX:,}: no dictionary's index is so large"
        )
    spans: set[Span] = set()
    information: set[Span] = set()
    with Reader(path) as reader:
        for number, line in enumerate(lines(reader), 1):
            if not line:
                continue
            headword, *numbers = line.split(b"\t")
            if len(numbers) < 2:
                raise InputError(
                    f"{path}:{number} is no line of a dictionary's index, which has a headword, an offset and a length"
                )
            begin, size = (_number(raw, f"{path}:{number}") for raw in numbers[:2])
            if size > MAX_DOCUMENT // 2:
                raise InputError(f"{path}:{number} names an entry of {size:,} bytes, over {MAX_DOCUMENT // 2:,}")
            (information if headword.startswith(INFORMATION) else spans).add((begin, begin + size))
    # Information has other headwords too, such as the dictionary's own name: what counts is the text they name.
    entries = sorted(spans - information)
    if not entries:
        raise InputError(f"{path} lists no entry")
    return entries, len(information)


def read_entries(
    path: Path, spans: list[Span], on_bytes: Callable[[int], object] | None = None
) -> Iterator[tuple[int, bytes]]:
    """(where it begins, bytes) of every entry; memory is bounded by an entry and a block. Shared text is read once.

    InputError for a text that is damaged, that ends before its entries do, or of which the index names less than half:
    then the two files do not belong together.
    """
    held, start, given = bytearray(), 0, 0  # what was read and not given yet, and where in the text that begins
    with Reader(path, on_bytes) as reader:
        for first, end in spans:
            begin = max(first, start)
            while start + len(held) < end and (block := reader.read(BLOCK)):
                held += block
                # What lies before the entry goes at once: a damaged index may place an entry anywhere.
                start += _drop(held, begin - start)
            start += _drop(held, begin - start)
            if start + len(held) < end:
                raise InputError(
                    f"{path} has {start + len(held):,} bytes of text, and its index {index_of(path).name} names an entry at "
                    f"bytes {first:,} to {end:,}: one of the two is damaged, or they do not belong together"
                )
            if begin < end:
                yield begin, bytes(held[: end - begin])
                start += _drop(held, end - begin)
                given += end - begin
        # To the end: only there is the checksum of a packed text.
        total = start + len(held)
        while block := reader.read(BLOCK):
            total += len(block)
    if 2 * given < total:
        raise InputError(
            f"{path} has {total:,} bytes of text, and its index {index_of(path).name} names {given:,} of them, less than half: "
            "the two do not belong together"
        )


def _drop(held: bytearray, size: int) -> int:
    """Remove the first `size` bytes, or as many as there are; returns how many."""
    size = min(size, len(held))
    del held[:size]
    return size


def _number(raw: bytes, place: str) -> int:
    """A number as an index writes it: digits to the base 64, the highest first."""
    if not 0 < len(raw) <= MOST_DIGITS or any(byte not in DIGITS for byte in raw):
        raise InputError(
            f"{place} has {raw[:40]!r} where an index has a number of 1 to {MOST_DIGITS} digits to the base 64"
        )
    value = 0
    for byte in raw:
        value = value * 64 + DIGITS[byte]
    return value
