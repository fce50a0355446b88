"""Reading one file as bytes: decompressed, in time linear in its length, and never without bound.

Three bounds hold, each refused with the file and the place: a line or a document has at most MAX_DOCUMENT bytes, and a
compressed file gives at most MAX_RATIO bytes for each of its own once it has given MAX_UNPACKED.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from configs.errors import InputError

COMPRESSED = (".gz", ".dz", ".zst")  # .dz: dictzip, which gzip reads
BLOCK = 1 << 20
MAX_DOCUMENT = 128 << 20  # a worker holds one document several times: as text, as bytes, as token ids
MAX_RATIO = 100  # text packs to a third or a tenth of its size; only a made-up file packs a hundredfold
MAX_UNPACKED = 64 << 20  # so that a small file of few, equal rows is no bomb
TOO_LONG = f"longer than {MAX_DOCUMENT >> 20} MiB"


class Reader:
    """A file's bytes, decompressed where the name ends as in COMPRESSED. Every failure is an InputError that names the file.

    `on_bytes` is told how many bytes of the file itself were read, for a progress bar.
    """

    def __init__(self, path: Path, on_bytes: Callable[[int], object] | None = None) -> None:
        import pyarrow

        self.path, self.given = path, 0
        self._on_bytes, self._position = on_bytes, 0
        try:
            self._raw = open(path, "rb")  # noqa: SIM115 (closed by __exit__)
            self._size = path.stat().st_size
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
        self._packed = path.name.endswith(COMPRESSED)
        self._stream: Any = self._raw
        if self._packed:
            kind = "zstd" if path.suffix == ".zst" else "gzip"
            self._stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(self._raw, mode="r"), kind)

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._raw.close()

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes, fewer only at the end: what is read does not depend on how the file is packed."""
        parts, left = [], size
        while left and (part := self._some(left)):
            parts.append(part)
            left -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _some(self, size: int) -> bytes:
        try:
            part: bytes = self._stream.read(size)
        except (OSError, ValueError) as error:  # pyarrow's own errors are subclasses of these two
            what = "decompressed" if self._packed else "read"
            raise InputError(f"{self.path} cannot be {what}, after {self.given:,} bytes: {error}") from None
        self.given += len(part)
        if self._packed and self.given > max(MAX_UNPACKED, MAX_RATIO * self._size):
            raise InputError(
                f"{self.path} has {self._size:,} bytes and gave {self.given:,} when decompressed, over {MAX_RATIO} times as many: "
                "no text packs so well. If it is meant, decompress it and give the plain file"
            )
        position = self._raw.tell()
        if self._on_bytes is not None and position > self._position:
            self._on_bytes(position - self._position)
            self._position = position
        return part


def lines(reader: Reader, keep_long: bool = True) -> Iterator[bytes | None]:
    """Lines without their line end, in linear time. A line over MAX_DOCUMENT is an InputError, or None if not `keep_long`."""
    parts: list[bytes] = []  # of the line that has begun; joined once, at its end
    held, number = 0, 1

    def whole(last: bytes) -> bytes | None:
        if held + len(last) <= MAX_DOCUMENT:
            return b"".join([*parts, last])
        if keep_long:
            raise InputError(
                f"{reader.path}:{number} is a line {TOO_LONG}, which is refused; split it, or use --skip-bad"
            )
        return None

    while block := reader.read(BLOCK):
        first, *rest = block.split(b"\n")
        if rest:
            yield whole(first)
            *middle, last = rest
            yield from middle
            parts, held, number = [last], len(last), number + len(rest)
        else:
            held += len(first)
            if held <= MAX_DOCUMENT:
                parts.append(first)
            else:
                parts = []  # too long already: nothing more of it is kept
                if keep_long:
                    whole(b"")
    yield whole(b"")
