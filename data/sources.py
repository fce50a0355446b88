"""Where documents come from. A source is a list of parts (files), each an iterator of documents.

A document is (key, text); the key names its origin in errors. Reading is streaming: one document in memory at a time.
"""

from __future__ import annotations

import glob
import json
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

SOURCES = ("python-source", "text", "jsonl", "parquet")


@dataclass
class Source:
    """Files of one kind. `skipped` counts what reading left out, by reason, once it was read."""

    kind: str
    files: list[Path]
    text_field: str = "text"
    skipped: dict[str, int] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of the files."""
        return sum(path.stat().st_size for path in self.files)

    def documents(self) -> Iterator[str]:
        """Every document, files in order. ValueError names the file and place of what cannot be read."""
        read: Callable[[Path], Iterator[str]] = getattr(self, "_read_" + self.kind.replace("-", "_"))
        for path in self.files:
            yield from read(path)

    def describe(self) -> dict[str, object]:
        return {"kind": self.kind, "files": len(self.files), "bytes": self.size, "skipped": dict(self.skipped)}

    def _read_python_source(self, path: Path) -> Iterator[str]:
        try:
            yield path.read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            self.skipped["not UTF-8"] = self.skipped.get("not UTF-8", 0) + 1

    def _read_text(self, path: Path) -> Iterator[str]:
        try:
            yield path.read_bytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path} is not UTF-8 (byte {error.start}); convert it or leave it out of --input"
            ) from None

    def _read_jsonl(self, path: Path) -> Iterator[str]:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield self._json_text(path, number, line)

    def _json_text(self, path: Path, number: int, line: bytes) -> str:
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}:{number} is not JSON: {error}") from None
        text = row.get(self.text_field) if isinstance(row, dict) else None
        if not isinstance(text, str):
            found = ", ".join(row) if isinstance(row, dict) else type(row).__name__
            raise ValueError(
                f"{path}:{number} has no string field {self.text_field!r} (found: {found}); name it with --text-field"
            )
        return _checked(text, f"{path}:{number}")

    def _read_parquet(self, path: Path) -> Iterator[str]:
        import pyarrow.parquet

        try:
            file = pyarrow.parquet.ParquetFile(path)
        except pyarrow.ArrowException as error:
            raise ValueError(f"{path} is not a parquet file: {error}") from None
        if self.text_field not in file.schema_arrow.names:
            found = ", ".join(file.schema_arrow.names)
            raise ValueError(f"{path} has no column {self.text_field!r} (found: {found}); name it with --text-field")
        row = 0
        for batch in file.iter_batches(batch_size=256, columns=[self.text_field]):
            for value in batch.column(0):
                text = value.as_py()
                if not isinstance(text, str):
                    raise ValueError(
                        f"{path}: row {row} of column {self.text_field!r} is {type(text).__name__}, expected text"
                    )
                yield _checked(text, f"{path}: row {row}")
                row += 1


def open_source(kind: str, pattern: str | None, text_field: str = "text") -> Source:
    """The source a command line names. ValueError if nothing matches."""
    if kind == "python-source":
        if pattern is not None:
            raise ValueError("--source python-source reads the running Python's standard library and takes no --input")
        return Source(kind, _standard_library())
    if pattern is None:
        raise ValueError(f"--source {kind} needs --input, a file or a quoted glob")
    files = sorted(path for path in map(Path, glob.glob(pattern, recursive=True)) if path.is_file())
    if not files:
        raise ValueError(f"--input {pattern!r} matches no file")
    return Source(kind, files, text_field)


def _standard_library() -> list[Path]:
    root = Path(sysconfig.get_paths()["stdlib"])
    return sorted(path for path in root.rglob("*.py") if "site-packages" not in path.parts)


def _checked(text: str, place: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{place} holds a lone surrogate (character {error.start}), which UTF-8 cannot; repair the source"
        ) from None
    return text
