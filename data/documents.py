"""From a text file to documents: where it is split, and to what size the pieces are gathered and cut.

Every byte of the file stands in exactly one document, in order, with two exceptions. A separator that the user names is left
out, since an end-of-text token takes its place. A piece that is white space alone is left out too. The file is read in blocks:
memory is bounded by a document, and the time is linear in the file.
"""

from __future__ import annotations

from collections.abc import Iterator

from configs.errors import InputError
from data.streams import BLOCK, MAX_DOCUMENT, TOO_LONG, Reader

FILE, BLANK_LINE, LINE = "file", "blank-line", "line"  # of --split-on; anything else is a separator itself
FEW_FILES = 8  # fewer text files than this are split by default: as many shards are made at least
PIECES = 256  # documents that a small text is split into by default: enough to shuffle, and to hold some out
SMALLEST, LARGEST = 512, 16 << 10  # bytes of a default document: a hundred tokens, and a window of 4,096


def default_document_bytes(text_bytes: int) -> int:
    """The size of a document where the user names none: a 256th of the text, from SMALLEST to LARGEST."""
    return min(LARGEST, max(SMALLEST, text_bytes // PIECES))


def separator(split_on: str) -> bytes:
    """A separator as the command line gives it: \\n, \\t and \\\\ are what they mean in Python. InputError for an empty one."""
    # Two backslashes stand for one, also before an n: they are put aside until the escapes are replaced.
    text = split_on.replace("\\\\", "\0").replace("\\n", "\n").replace("\\t", "\t").replace("\0", "\\")
    if not text:
        raise InputError(
            f"--split-on is empty; give {FILE}, {BLANK_LINE}, {LINE} or a separator such as '<|endoftext|>'"
        )
    return text.encode("utf-8")


def split_documents(reader: Reader, split_on: str, document_bytes: int | None) -> Iterator[tuple[int, bytes]]:
    """(position in the file, bytes) of every document.

    With `document_bytes`, pieces between blank lines, or lines, are gathered to at least so many bytes, and a document of
    more than twice as many is cut, at a line's end where there is one. Pieces between separators are never gathered: the
    separator says that they are different documents. InputError for a document that is too long.
    """
    gathered = split_on in (BLANK_LINE, LINE) and document_bytes is not None
    start, held = 0, bytearray()

    def is_document() -> bool:
        return bool(held) and (split_on == FILE or not held.isspace())

    for position, fragment, begins in _fragments(reader, split_on):
        if begins and not (gathered and document_bytes is not None and len(held) < document_bytes):
            if is_document():
                yield start, bytes(held)
            start, held = position, bytearray()
        held += fragment
        # Whether and where to cut depends on the text alone, and not on how much of it one fragment brought.
        while document_bytes is not None and len(held) > 2 * document_bytes:
            cut = cut_point(held, document_bytes, back=document_bytes // 2)
            yield start, bytes(held[:cut])
            start += cut
            del held[:cut]  # in constant time: a bytearray moves its beginning
        if len(held) > MAX_DOCUMENT:
            raise InputError(
                f"{reader.path} has a document {TOO_LONG}, from byte {start}, the most for one document; "
                "split it with --split-on, or cut it with --document-bytes"
            )
    if is_document():
        yield start, bytes(held)


def _fragments(reader: Reader, split_on: str) -> Iterator[tuple[int, bytes, bool]]:
    """(position, bytes, whether a new piece begins here): at most about a block of bytes at once."""
    if split_on == FILE:
        position = 0
        while block := reader.read(BLOCK):
            yield position, block, False
            position += len(block)
    elif split_on in (BLANK_LINE, LINE):
        after_blank, has_text, line_begins = False, False, True
        for position, line in _whole_lines(reader):
            blank = line.isspace()
            # A piece takes the blank lines after it; those before the first text belong to the first piece.
            paragraph = after_blank and has_text and not blank
            yield position, line, paragraph if split_on == BLANK_LINE else line_begins
            after_blank, has_text = blank, has_text or not blank
            line_begins = line.endswith(b"\n")
    else:
        yield from _between(reader, separator(split_on))


def _whole_lines(reader: Reader) -> Iterator[tuple[int, bytes]]:
    """Lines with their line end, in linear time; a line longer than a block comes in parts."""
    position, rest = 0, b""
    while block := reader.read(BLOCK):
        *ended, rest = (rest + block).split(b"\n")
        for line in ended:
            yield position, line + b"\n"
            position += len(line) + 1
        if len(rest) >= BLOCK:
            yield position, rest
            position, rest = position + len(rest), b""
    if rest:
        yield position, rest


def _between(reader: Reader, mark: bytes) -> Iterator[tuple[int, bytes, bool]]:
    """The text between marks, which are left out; the marks are found also across two blocks."""
    position, rest, begins = 0, b"", False
    while block := reader.read(BLOCK):
        *pieces, rest = (rest + block).split(mark)
        for piece in pieces:
            yield position, piece, begins
            position, begins = position + len(piece) + len(mark), True
        safe = len(rest) - len(mark) + 1  # what follows may be the beginning of a mark
        if safe >= BLOCK:
            yield position, rest[:safe], begins
            position, rest, begins = position + safe, rest[safe:], False
    yield position, rest, begins


def cut_point(text: bytes | bytearray, size: int, back: int) -> int:
    """Where to cut a text so that about `size` bytes stand before: after a line's end, else after a space, else a character.

    The line's end, or the space, is looked for in the last `back` of those bytes. `text` is longer than `size`.
    """
    for mark in (b"\n", b" "):
        place = text.rfind(mark, max(0, size - back), size)
        if place >= 0:
            return place + 1
    # Not inside a character of several bytes: those after its first begin with the bits 10.
    cut = max(size, 1)
    while cut < len(text) and cut < size + 3 and text[cut] & 0xC0 == 0x80:
        cut += 1
    return cut
