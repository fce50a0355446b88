"""Where documents come from: local files, the running Python's sources, or a dataset of the Hugging Face hub.

Reading streams, one document at a time. Everything is parquet, JSON lines or text; no remote code is ever run.
"""

from __future__ import annotations

import glob
import json
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SOURCES = ("openwebtext", "python-source", "text", "jsonl", "parquet", "nanogpt")
OPENWEBTEXT = "Skylion007/openwebtext"
CONVERTED = "refs/convert/parquet"  # where the hub keeps its own parquet conversion of a dataset
COMPRESSED = (".gz", ".zst")


@dataclass
class Source:
    """Files of one kind. `skipped` counts what reading left out, by reason, once it was read.

    `origin` enters the manifest: for a hub dataset its name and resolved revision. `size`: bytes of the files.
    """

    kind: str
    files: list[Any]
    size: int
    text_field: str = "text"
    origin: dict[str, Any] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)

    @classmethod
    def local(cls, kind: str, files: list[Path], text_field: str = "text") -> Source:
        return cls(kind, files, sum(path.stat().st_size for path in files), text_field)

    def documents(self) -> Iterator[str]:
        """Every document, files in order. ValueError names the file and place of what cannot be read."""
        if self.kind == "openwebtext":
            yield from self._read_hub()
            return
        read: Callable[[Path], Iterator[str]] = getattr(self, "_read_" + self.kind.replace("-", "_"))
        for path in self.files:
            yield from read(path)

    def describe(self) -> dict[str, Any]:
        counted = {"files": len(self.files), "bytes": self.size, "skipped": dict(self.skipped)}
        return {"kind": self.kind, **self.origin, **counted}

    def text_bytes(self) -> int:
        """An estimate of the documents' UTF-8 bytes, for the disk they need: compressed text is about three times as long."""
        packed = self.kind in ("parquet", "openwebtext") or any(str(path).endswith(COMPRESSED) for path in self.files)
        return self.size * (3 if packed else 1)

    def _read_python_source(self, path: Path) -> Iterator[str]:
        try:
            yield path.read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            self.skipped["not UTF-8"] = self.skipped.get("not UTF-8", 0) + 1

    def _read_text(self, path: Path) -> Iterator[str]:
        try:
            with _open(path) as file:
                yield file.read().decode("utf-8")
        except UnicodeDecodeError as error:
            reason = f"{path} is not UTF-8 (byte {error.start}); convert it or leave it out of --input"
            raise ValueError(reason) from None

    def _read_jsonl(self, path: Path) -> Iterator[str]:
        with _open(path) as file:
            for number, line in enumerate(_lines(file), 1):
                if line.strip():
                    yield self._json_text(path, number, line)

    def _json_text(self, path: Path, number: int, line: bytes) -> str:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}:{number} is not JSON: {error}") from None
        text = row.get(self.text_field) if isinstance(row, dict) else None
        if not isinstance(text, str):
            found = ", ".join(row) if isinstance(row, dict) else type(row).__name__
            raise ValueError(
                f"{path}:{number} has no string field {self.text_field!r} (found: {found}); see --text-field"
            )
        return _checked(text, f"{path}:{number}")

    def _read_parquet(self, path: Path) -> Iterator[str]:
        import pyarrow.parquet

        try:
            file = pyarrow.parquet.ParquetFile(path)
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{path} is not a parquet file: {error}") from None
        if self.text_field not in file.schema_arrow.names:
            found = ", ".join(file.schema_arrow.names)
            raise ValueError(f"{path} has no column {self.text_field!r} (found: {found}); see --text-field")
        row = 0
        for batch in file.iter_batches(batch_size=256, columns=[self.text_field]):
            for value in batch.column(0):
                yield _checked(value.as_py(), f"{path}: row {row} of column {self.text_field!r}")
                row += 1

    def _read_hub(self) -> Iterator[str]:
        import datasets

        rows = datasets.load_dataset(
            "parquet", data_files=[str(file) for file in self.files], split="train", streaming=True
        )
        for number, row in enumerate(rows):
            if self.text_field not in row:
                raise ValueError(
                    f"the dataset has no column {self.text_field!r} (found: {', '.join(row)}); see --text-field"
                )
            yield _checked(row[self.text_field], f"row {number} of the dataset")


def open_source(kind: str, pattern: str | None, text_field: str = "text", packages: bool = False) -> Source:
    """The local source a command line names. ValueError if nothing matches."""
    if kind == "python-source":
        if pattern is not None:
            raise ValueError("--source python-source reads the running Python's own sources and takes no --input")
        files = _python_sources(packages)
    elif pattern is None:
        raise ValueError(f"--source {kind} needs --input, a file or a quoted glob")
    else:
        files = sorted(path for path in map(Path, glob.glob(pattern, recursive=True)) if path.is_file())
        if not files:
            raise ValueError(f"--input {pattern!r} matches no file")
    return Source.local(kind, files, text_field)


def open_hub(dataset: str, revision: str | None, text_field: str = "text") -> Source:
    """A dataset of the hub, as its parquet files at one resolved revision; or a local copy, where `dataset` is a folder.

    Raises ValueError, within seconds, where the hub cannot be reached or the dataset has no parquet files.
    """
    if Path(dataset).is_dir():
        files = sorted(Path(dataset).rglob("*.parquet"))
        if not files:
            raise ValueError(f"{dataset} holds no parquet file")
        source = Source.local("openwebtext", files, text_field)
        source.origin["dataset"] = dataset
        return source
    for candidate in [revision] if revision else ["main", CONVERTED]:
        sha, found = _hub_files(dataset, candidate)
        if found:
            addresses = [f"hf://datasets/{dataset}@{sha}/{name}" for name in found]
            origin = {"dataset": dataset, "revision": sha}
            return Source("openwebtext", addresses, sum(found.values()), text_field, origin)
    raise ValueError(
        f"dataset {dataset} has no parquet files at revision {revision or 'main'}; name one with --revision"
    )


def _hub_files(dataset: str, revision: str | None) -> tuple[str, dict[str, int]]:
    """Resolved revision, and the training split's parquet files with their sizes."""
    from huggingface_hub import HfApi

    try:
        info = HfApi().dataset_info(dataset, revision=revision, files_metadata=True, timeout=10)
    except Exception as error:  # the client's own, its transport's and the operating system's
        raise ValueError(
            f"dataset {dataset} at revision {revision} cannot be reached ({type(error).__name__}: {str(error)[:200]}). "
            "Fetch its parquet files on a machine with network, for example with "
            f"`hf download {dataset} --repo-type dataset --revision {revision} --local-dir DIR`, "
            "and read them with `python -m data.prepare --source parquet --input 'DIR/**/*.parquet' --out …`"
        ) from None
    names = {s.rfilename: s.size or 0 for s in info.siblings or [] if s.rfilename.endswith(".parquet")}
    train = {name: size for name, size in names.items() if "train" in name}
    return str(info.sha), dict(sorted((train or names).items()))


def _python_sources(packages: bool) -> list[Path]:
    """The standard library; with `packages` everything installed beside it as well."""
    paths = sysconfig.get_paths()
    library = Path(paths["stdlib"])
    found = {path for path in library.rglob("*.py") if "site-packages" not in path.parts}
    if packages:
        found |= set(Path(paths["purelib"]).rglob("*.py")) | set(Path(paths["platlib"]).rglob("*.py"))
    return sorted(path for path in found if path.is_file())


def _open(path: Path) -> Any:
    """A binary stream, decompressed where the name ends in .gz or .zst."""
    import pyarrow

    if not path.name.endswith(COMPRESSED):
        return open(path, "rb")
    try:
        return pyarrow.input_stream(str(path), compression="gzip" if path.suffix == ".gz" else "zstd")
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be decompressed: {error}") from None


def _lines(file: Any) -> Iterator[bytes]:
    """Lines of a binary stream, whatever their length."""
    rest = b""
    while block := file.read(1 << 20):
        *lines, rest = (rest + block).split(b"\n")
        yield from lines
    yield rest


def _checked(text: Any, place: str) -> str:
    if not isinstance(text, str):
        raise ValueError(f"{place} is {type(text).__name__}, expected text")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        reason = f"{place} holds a lone surrogate (character {error.start}), which UTF-8 cannot; repair the source"
        raise ValueError(reason) from None
    return text
