"""A run as one file: what `python -m record.archive` writes and every analysis reads.

Parquet, compressed by zstd: one row per step, the rows in force (record/metrics.py). Columns:

    step, tokens    integers; of a run on images step, images
    measurements    by name: float32; but float64 for val/…, of which there are few and whose differences are small, and for a
                    column with a value that float32 does not hold to 7 digits; integers stay integers
    probes          a map from name to float32, null where the step was not probed (record/probe_columns.py)

A value that was recorded and not finite is NaN, one that was not recorded null. `run` in the schema's metadata is a JSON object,
by zlib and then base64: format, name, the run folder's small files, what was wrong with its logs, and what of the rows is in no
column. After it stands `sha256`, the digest of the whole file with its own 64 digits as zeros: a file with a damaged byte is
refused. Of format 1, which is read too, `run` is the JSON text itself.

The same run gives the same bytes by the same versions of pyarrow and zlib.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from configs.errors import InputError
from record.archive_checks import (
    MOST_BYTES,
    MOST_TEXT,
    MOST_VALUES,
    check_columns,
    check_documents,
    check_rows,
    check_size,
    check_steps,
)
from record.files import parse_json, read_regular
from record.metrics import UNITS, Log

FORMAT = 2
READ = (1, FORMAT)
SUFFIX = ".parquet"
MARK = b"SHA-256 of this file with these digits as zeros: "
ZEROS = b"0" * 64
LEAST, MOST = (float(bound) for bound in (np.finfo(np.float32).tiny, np.finfo(np.float32).max))
Row = dict[str, Any]


@dataclass(frozen=True)
class Archive:
    """`documents`: the run folder's small files, by name without ending; `log`, `probes`: its two logs."""

    name: str
    documents: dict[str, Any]
    log: Log
    probes: Log


def is_archive(path: Path) -> bool:
    return path.name.endswith(SUFFIX) and not path.is_dir()


def run_name(path: Path) -> str:
    """The name of the run in the file."""
    return path.name.removesuffix(SUFFIX)


def pack(archive: Archive) -> bytes:
    """The file's content. InputError for a run that is too large to be read again as one file."""
    values = sum(len(row) for log in (archive.log, archive.probes) for row in log.rows)
    if values > MOST_VALUES:
        raise InputError(
            f"{archive.name} has {values:,} values, and one file is read with at most {MOST_VALUES:,}; keep its folder"
        )
    rows, probed = ({row["step"]: row for row in log.rows} for log in (archive.log, archive.probes))
    steps = sorted(rows.keys() | probed.keys())
    ours = [rows.get(step) or probed[step] for step in steps]
    unit = "images" if any("images" in row for row in ours) else "tokens"
    columns = {"step": pa.array(steps, pa.int64()), unit: pa.array([row.get(unit) for row in ours], pa.int64())}
    for name in dict.fromkeys(name for row in rows.values() for name, value in row.items() if _measured(name, value)):
        columns[name] = _column(name, [rows.get(step, {}).get(name, ...) for step in steps])
    columns["probes"] = _maps([probed.get(step) for step in steps])
    documents = {
        "format": FORMAT,
        "name": archive.name,
        **archive.documents,
        # what no column holds: events, lists, names of values that were not finite
        "rest": _rest(rows.values()),
        "probes_rest": _rest(probed.values()),
        "probed_alone": sorted(probed.keys() - rows.keys()),
        "problems": archive.log.problems,
        "superseded": archive.log.superseded,
        "probe_problems": archive.probes.problems,
        "probe_superseded": archive.probes.superseded,
    }
    text = json.dumps(documents, separators=(",", ":"), ensure_ascii=False)
    # the digest last: its place is found from the file's end, whatever a configuration says
    return _sealed(_written(pa.table(columns), {"run": shrunk(text), "sha256": (MARK + ZEROS).decode()}))


def _measured(name: str, value: Any) -> bool:
    return "/" in name and not isinstance(value, list)


def _rest(rows: Any) -> list[Row]:
    """Of every row what is no measurement; rows without such are left out."""
    kept = [{n: v for n, v in row.items() if not _measured(n, v) and n not in ("step", *UNITS)} for row in rows]
    return [{"step": row["step"], **rest} for row, rest in zip(rows, kept, strict=True) if rest]


def _column(name: str, values: list[Any]) -> pa.Array:
    """One measurement. `...` is a value that was not recorded, None one that was not finite."""
    numbers = [v for v in values if v is not ... and v is not None]
    absent = np.array([v is ... for v in values])
    if numbers and None not in values and all(type(v) is int for v in numbers):
        return pa.array([None if v is ... else v for v in values], pa.int64())
    floats = np.array([math.nan if v is ... or v is None else v for v in values], np.float64)
    wide = name.startswith("val/") or not _fits(numbers)
    # from_pandas=False: a NaN is a value here, and only the mask says what is absent
    return pa.array(floats if wide else floats.astype(np.float32), mask=absent, from_pandas=False)


def _fits(numbers: Sequence[float]) -> bool:
    """Whether float32 holds all of them to 7 digits."""
    return all(v == 0 or LEAST <= abs(v) <= MOST for v in numbers)


def _maps(rows: list[Row | None]) -> pa.Array:
    """The probes' column."""
    maps = [None if r is None else [(n, v) for n, v in r.items() if _measured(n, v)] for r in rows]
    narrow = _fits([v for pairs in maps if pairs for _, v in pairs if v is not None])
    numbers = [None if m is None else [(n, math.nan if v is None else v) for n, v in m] for m in maps]
    return pa.array(numbers, pa.map_(pa.string(), pa.float32() if narrow else pa.float64()))


def _written(table: pa.Table, metadata: dict[str, str]) -> bytes:
    """As Parquet. Bytes of equal rank stand together (the exponents are alike), and steps are stored as differences."""
    encodings = {
        name: "DELTA_BINARY_PACKED" if pa.types.is_integer(table.schema.field(name).type) else "BYTE_STREAM_SPLIT"
        for name in table.column_names
        if name != "probes"
    }
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        table.schema,
        compression="zstd",
        compression_level=19,
        use_dictionary=["probes.key_value.key"],
        column_encoding=encodings | {"probes.key_value.value": "BYTE_STREAM_SPLIT"},
        write_statistics=False,
        store_schema=False,  # it would hold the metadata a second time
    ) as writer:
        writer.write_table(table, row_group_size=max(len(table), 1))
        writer.add_key_value_metadata(metadata)
    return bytes(sink.getvalue())


def _sealed(content: bytes) -> bytes:
    """The content with its digest in place of zeros."""
    place = content.rindex(MARK) + len(MARK)
    return content[:place] + hashlib.sha256(content).hexdigest().encode() + content[place + 64 :]


def unpack(content: bytes, place: str) -> Archive:
    """The archive in a file's content. InputError, naming `place`, for a damaged file, one of others, or of a newer version."""
    mark = content.rfind(MARK)
    if mark < 0:
        parquet = content[:4] == b"PAR1"
        what = "a Parquet file, but not record.archive's, or cut off" if parquet else "no Parquet file"
        raise InputError(f"{place} is no archive of a run ({what})")
    begin = mark + len(MARK)
    # before anything is parsed: whatever byte is damaged, no parser meets it
    if _sealed(content[:begin] + ZEROS + content[begin + 64 :]) != content:
        raise InputError(
            f"{place} is damaged: its SHA-256 is not the one it was written with; archive the run once more"
        )
    try:
        file = pq.ParquetFile(pa.BufferReader(content))
        # a small file may stand for more than the memory holds
        check_size(file.metadata)
        documents = parse_json(unshrunk(file.metadata.metadata[b"run"]))
        if isinstance(documents, dict) and (version := documents.pop("format")) not in READ:
            raise InputError(
                f"{place} is an archive of format {version!r:.40}; this version reads {', '.join(map(str, READ))}"
            )
        check_documents(documents, place)
        check_columns(file.schema_arrow)
        return _archive(file.read(), documents)
    except InputError as error:
        if str(error).startswith(f"{place} "):
            raise
        raise InputError(f"{place} is no archive of a run that this version can read ({error!s:.300})") from None
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{place} is no archive of a run that this version can read ({error!s:.300})") from None


def shrunk(text: str) -> str:
    """The documents as they stand in the metadata, which Parquet does not compress and wants to be text."""
    return base64.b64encode(zlib.compress(text.encode(), 9)).decode()


def unshrunk(kept: bytes) -> str:
    """The text again. ValueError for what is none, is cut off, or would be longer than MOST_TEXT."""
    if kept.startswith(b"{"):  # format 1
        return kept.decode()
    unpacking = zlib.decompressobj()
    try:
        text = unpacking.decompress(base64.b64decode(kept, validate=True), MOST_TEXT)
    except zlib.error as error:
        raise ValueError(f"its documents cannot be unpacked: {error}") from None
    if not unpacking.eof:
        raise ValueError(f"its documents are cut off, or would have more than {MOST_TEXT:,} bytes")
    return text.decode()


def _archive(table: pa.Table, documents: dict[str, Any]) -> Archive:
    unit = next(unit for unit in UNITS if unit in table.column_names)
    steps, counts = table["step"].to_pylist(), table[unit].to_pylist()
    check_steps(steps)
    rows: dict[int, Row] = {
        step: {"step": step} | ({} if count is None else {unit: count})
        for step, count in zip(steps, counts, strict=True)
    }
    probed = {
        step: rows[step] | {name: _recorded(value) for name, value in pairs}
        for step, pairs in zip(steps, table["probes"].to_pylist(), strict=True)
        if pairs is not None
    }
    for name in table.column_names:
        if name in ("step", unit, "probes"):
            continue
        for step, value in zip(steps, table[name].to_pylist(), strict=True):
            if value is not None:
                rows[step][name] = _recorded(value)
    for step in documents.pop("probed_alone"):
        del rows[step]
    for which, rest in ((rows, documents.pop("rest")), (probed, documents.pop("probes_rest"))):
        for row in rest:
            which[row["step"]].update(row)
        check_rows(which)
    log = Log(list(rows.values()), documents.pop("problems"), documents.pop("superseded"), torn=False)
    probes = Log(list(probed.values()), documents.pop("probe_problems"), documents.pop("probe_superseded"), torn=False)
    return Archive(documents.pop("name"), documents, log, probes)


def _recorded(value: float) -> float | None:
    """As metrics.jsonl has it: a value that was not finite is None."""
    return None if math.isnan(value) else value


def read_archive(path: Path) -> Archive:
    """A file of `python -m record.archive`. FileNotFoundError where there is none, InputError as `unpack`."""
    if (size := path.stat().st_size) > MOST_BYTES:
        raise InputError(
            f"{path} is no archive of a run that this version can read: it has {size:,} bytes, at most {MOST_BYTES:,}"
        )
    return unpack(read_regular(path), str(path))
