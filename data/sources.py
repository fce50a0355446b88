"""Where documents come from: local files, the running Python's sources, or a dataset of the Hugging Face hub.

Reading streams, one document at a time. Everything is parquet, arrow, JSON lines or text; no remote code is ever run.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs.errors import InputError
from data.dictionary import index_of, read_entries, read_index
from data.documents import FILE, split_documents
from data.hub_rows import column_values
from data.inputs import find_inputs
from data.rows import RowError, json_text, text_of
from data.streams import COMPRESSED, MAX_RATIO, MAX_UNPACKED, TOO_LONG, Reader, lines

SOURCES = ("openwebtext", "hub", "python-source", "text", "jsonl", "parquet", "arrow", "dictd", "nanogpt", "llmc")
HUB = ("openwebtext", "hub")  # read by the hub's own library
BATCH_ROWS, BATCH_BYTES = 256, 32 << 20  # of a parquet file in memory at once


@dataclass
class Source:
    """Files of one kind. `skipped` counts what reading left out, by reason, once it was read.

    `origin` enters the manifest: for a hub dataset its name and resolved revision. `size`: bytes of the files.
    `val_files` are the validation split's own; without any, documents are held out by their hash. `notes`: what was
    decided without being asked, in sentences. `on_bytes` is told how many bytes of the files were read.
    """

    kind: str
    files: list[Any]
    size: int
    text_field: str = "text"
    origin: dict[str, Any] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    split_on: str = FILE
    document_bytes: int | None = None
    skip_bad: bool = False
    val_files: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    on_bytes: Callable[[int], object] | None = None

    @classmethod
    def local(cls, kind: str, files: list[Path], text_field: str = "text") -> Source:
        return cls(kind, files, sum(path.stat().st_size for path in files), text_field)

    def documents(self) -> Iterator[str]:
        """Every document, files in order. InputError names the file and place of what cannot be read."""
        if self.kind in HUB:
            yield from self._read_hub()
        else:
            yield from self._read_files(self.files)

    def val_documents(self) -> Iterator[str]:
        """Every document of the validation split's own files."""
        if self.val_files:
            yield from self._read_files(self.val_files)

    def describe(self) -> dict[str, Any]:
        counted = {"files": len(self.files), "bytes": self.size, "skipped": dict(self.skipped)}
        own = {"val_files": len(self.val_files), "val_bytes": self.val_size()} if self.val_files else {}
        return {"kind": self.kind, **self.origin, **counted, **own}

    def reading(self) -> dict[str, Any]:
        """How the files are read, where that is not the simplest way: recorded beside the options."""
        ways: dict[str, Any] = {}
        if self.split_on != FILE:
            ways["split_on"] = self.split_on
        if self.document_bytes is not None:
            ways["document_bytes"] = self.document_bytes
        if self.skip_bad:
            ways["skip_bad"] = True
        return ways

    def text_bytes(self) -> int:
        """An estimate of the documents' UTF-8 bytes, for the disk they need: compressed text is about three times as long."""
        return self.size * self._packing(self.files)

    def val_size(self) -> int:
        return sum(path.stat().st_size for path in self.val_files)

    def val_text_bytes(self) -> int:
        return self.val_size() * self._packing(self.val_files)

    def _packing(self, files: Sequence[Any]) -> int:
        packed = self.kind in ("parquet", *HUB) or any(str(path).endswith(COMPRESSED) for path in files)
        return 3 if packed else 1

    def _read_files(self, files: Sequence[Path]) -> Iterator[str]:
        # `_read_jsonl`, `_read_parquet`, …: one method a kind, below.
        read: Callable[[Path], Iterator[str]] = getattr(self, "_read_" + self.kind.replace("-", "_"))
        for path in files:
            yield from read(path)

    def _skip(self, reason: str, count: int = 1) -> None:
        self.skipped[reason] = self.skipped.get(reason, 0) + count

    def _bad(self, error: RowError) -> None:
        """Count a bad row, if the user wants that."""
        if not self.skip_bad:
            raise InputError(f"{error}; --skip-bad leaves such rows out and counts them") from None
        self._skip(error.reason)

    def _read_python_source(self, path: Path) -> Iterator[str]:
        raw = path.read_bytes()
        self._told(len(raw))
        try:
            yield raw.decode("utf-8")
        except UnicodeDecodeError:
            self._skip("not UTF-8")

    def _read_text(self, path: Path) -> Iterator[str]:
        documents = 0
        with Reader(path, self.on_bytes) as reader:
            for position, raw in split_documents(reader, self.split_on, self.document_bytes):
                documents += 1
                try:
                    yield raw.decode("utf-8")
                except UnicodeDecodeError as error:
                    if not self.skip_bad:
                        wide = raw[:2] in (b"\xff\xfe", b"\xfe\xff") and position == 0
                        hint = "it looks like UTF-16: convert it" if wide else "convert it"
                        place = f"{path} is not UTF-8 (byte {position + error.start})"
                        raise InputError(f"{place}; {hint} or leave it out of --input") from None
                    self._skip("document that is not UTF-8")
        if documents == 0 and self.split_on == FILE:
            yield ""  # a document without text, among others
        elif documents == 0:
            self._skip("file without text")

    def _read_jsonl(self, path: Path) -> Iterator[str]:
        rows = 0
        with Reader(path, self.on_bytes) as reader:
            for number, line in enumerate(lines(reader, keep_long=not self.skip_bad), 1):
                if line is not None and (not line or line.isspace()):
                    continue
                rows += 1
                if line is None:
                    self._skip(f"line {TOO_LONG}")
                    continue
                try:
                    yield json_text(line, f"{path}:{number}", self.text_field)
                except RowError as error:
                    self._bad(error)
        if rows == 0:
            self._skip("file without a row")

    def _read_dictd(self, path: Path) -> Iterator[str]:
        """A dictionary's entries, in their order, gathered to documents; a blank line stands between two, as in the file."""
        spans, information = read_index(index_of(path))
        if information:
            self._skip("information about the dictionary", information)
        held: list[str] = []
        size = 0
        for position, raw in read_entries(path, spans, self.on_bytes):
            try:
                held.append(raw.decode("utf-8"))
            except UnicodeDecodeError as error:
                place = f"{path}: the entry at byte {position} is not UTF-8 (byte {position + error.start})"
                self._bad(RowError(place, "entry that is not UTF-8"))
                continue
            size += len(raw)
            if size >= (self.document_bytes or 1):
                yield "\n".join(held)
                held, size = [], 0
        if held:
            yield "\n".join(held)

    def _read_parquet(self, path: Path) -> Iterator[str]:
        import pyarrow.parquet

        try:
            file = pyarrow.parquet.ParquetFile(path)
        except (pyarrow.ArrowException, OSError) as error:
            raise InputError(f"{path} is not a parquet file: {error}") from None
        self._check_column(path, file.schema_arrow.names)
        # A row group is read as a whole; batches bound what is turned into Python strings at once.
        groups = [file.metadata.row_group(index) for index in range(file.num_row_groups)]
        largest = max((group.total_byte_size // max(group.num_rows, 1) for group in groups), default=1)
        size = min(BATCH_ROWS, max(1, BATCH_BYTES // max(largest, 1)))
        batches = file.iter_batches(batch_size=size, columns=[self.text_field])
        yield from self._read_column(path, batches, file.metadata.num_rows)

    def _read_arrow(self, path: Path) -> Iterator[str]:
        """An arrow file of the `datasets` library, which is a stream, or one with a footer."""
        import pyarrow

        try:
            mapped = pyarrow.memory_map(str(path))
            # Nothing but an attempt tells which of the two formats a file is in: both end in .arrow.
            try:
                stream = pyarrow.ipc.open_stream(mapped)
                schema, batches = stream.schema, iter(stream)
            except pyarrow.ArrowInvalid:
                mapped.seek(0)
                file = pyarrow.ipc.open_file(mapped)
                schema, batches = file.schema, (file.get_batch(index) for index in range(file.num_record_batches))
        except (pyarrow.ArrowException, OSError) as error:
            raise InputError(f"{path} is not an arrow file: {error}") from None
        self._check_column(path, schema.names)
        yield from self._read_column(path, (batch.select([self.text_field]) for batch in batches), None)
        self._told(path.stat().st_size)

    def _check_column(self, path: Path, names: list[str]) -> None:
        if self.text_field not in names:
            raise InputError(f"{path} has no column {self.text_field!r} (found: {', '.join(names)}); see --text-field")

    def _read_column(self, path: Path, batches: Iterator[Any], rows: int | None) -> Iterator[str]:
        """The texts of record batches with one column; `rows`, of the whole file, is for the progress."""
        import pyarrow

        size, row, given = path.stat().st_size, 0, 0
        while True:
            try:
                batch = next(batches, None)
            except (pyarrow.ArrowException, OSError) as error:
                raise InputError(f"{path} is damaged after row {row}: {error}") from None
            if batch is None:
                return
            for value in batch.column(0):
                try:
                    text = text_of(value.as_py(), f"{path}: row {row}", f"the column {self.text_field!r}")
                    given += len(text)
                    yield text
                except RowError as error:
                    self._bad(error)
                row += 1
                if given > max(MAX_UNPACKED, MAX_RATIO * size):
                    raise InputError(
                        f"{path} has {size:,} bytes and gave {given:,} characters by row {row}, over {MAX_RATIO} times as many: "
                        "no text packs so well. If it is meant, write it as JSON lines"
                    )
            if rows:
                self._told(size * len(batch) // rows)

    def _told(self, count: int) -> None:
        """Tell the progress bar, if there is one."""
        if self.on_bytes is not None:
            self.on_bytes(count)

    def _read_hub(self) -> Iterator[str]:
        for number, value in enumerate(column_values([str(file) for file in self.files], self.text_field)):
            try:
                yield text_of(value, f"row {number} of the dataset", f"the column {self.text_field!r}")
            except RowError as error:
                self._bad(error)


def open_source(
    kind: str,
    patterns: str | Sequence[str] | None,
    text_field: str = "text",
    packages: bool = False,
    val_patterns: Sequence[str] = (),
    by_name: bool = False,
) -> Source:
    """The local source a command line names. `by_name`: files may be for validation by their names.

    InputError if a pattern matches nothing.
    """
    if kind == "python-source":
        if patterns is not None or val_patterns:
            raise InputError("--source python-source reads the running Python's own sources and takes no --input")
        return Source.local(kind, _python_sources(packages), text_field)
    if patterns is None:
        raise InputError(f"--source {kind} needs --input: files, folders or quoted globs")
    inputs = find_inputs(kind, [patterns] if isinstance(patterns, str) else patterns, val_patterns, by_name)
    source = Source.local(inputs.kind, inputs.files, text_field)
    source.val_files, source.notes, source.skipped = inputs.val, inputs.notes, inputs.skipped
    return source


def _python_sources(packages: bool) -> list[Path]:
    """The standard library; with `packages` everything installed beside it as well."""
    paths = sysconfig.get_paths()
    library = Path(paths["stdlib"])
    # A set: the two folders of packages, below, are often one.
    files = {path for path in library.rglob("*.py") if "site-packages" not in path.parts}
    if packages:
        files |= set(Path(paths["purelib"]).rglob("*.py")) | set(Path(paths["platlib"]).rglob("*.py"))
    return sorted(path for path in files if path.is_file())
