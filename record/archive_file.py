"""A run as one file: what `python -m record.archive` writes and every analysis reads.

Parquet, compressed by zstd: one row per step, the rows in force (record/metrics.py). Columns:

    step, tokens    integers; of a run on images step, images
    measurements    by name: float32; but float64 for val/…, of which there are few and whose differences are small, and for a
                    column with a value that float32 does not hold to 7 digits; integers stay integers; smooth ones are int32,
                    the second differences of a float32's bits (record/archive_columns.py)
    probes          in the first row, float32, a list of all of them, name by name (record/probe_columns.py)

    documents       in the first row, JSON: name, the run folder's small files, what was wrong with its logs, and what of the
                    rows is in no column

A value that was recorded and not finite is NaN, one that was not recorded null. The schema's metadata has the `format`, and after
it `sha256`, the digest of the whole file with its own 64 digits as zeros: a file with a damaged byte is refused.

The same run gives the same bytes by the same version of pyarrow.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from configs.errors import InputError
from record.archive_checks import (
    MOST_BYTES,
    MOST_VALUES,
    check_columns,
    check_documents,
    check_rows,
    check_size,
    check_steps,
)
from record.archive_columns import Row, column_of, is_measured, probe_rows, probes_of, values_of
from record.files import parse_json, read_regular
from record.metrics import UNITS, Log

FORMAT = 3
SUFFIX = ".parquet"
MARK = b"SHA-256 of this file with these digits as zeros: "
ZEROS = b"0" * 64


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
    """The file's content. InputError for a run that has no row, or is too large to be read again as one file."""
    values = sum(len(row) for log in (archive.log, archive.probes) for row in log.rows)
    if values > MOST_VALUES:
        raise InputError(
            f"{archive.name} has {values:,} values, and one file is read with at most {MOST_VALUES:,}; keep its folder"
        )
    rows, probed = ({row["step"]: row for row in log.rows} for log in (archive.log, archive.probes))
    steps = sorted(rows.keys() | probed.keys())
    if not steps:
        raise InputError(f"{archive.name} has recorded no update yet: there is nothing to archive")
    ours = [rows.get(step) or probed[step] for step in steps]
    unit = "images" if any("images" in row for row in ours) else "tokens"
    columns = {"step": pa.array(steps, pa.int64()), unit: pa.array([row.get(unit) for row in ours], pa.int64())}
    for name in dict.fromkeys(name for row in rows.values() for name, value in row.items() if is_measured(name, value)):
        columns[name] = column_of(name, [rows.get(step, {}).get(name, ...) for step in steps])
    probed_at = sorted(probed)
    names, probes = probes_of([probed[step] for step in probed_at])
    columns["probes"] = pa.ListArray.from_arrays([0, *[len(probes)] * len(steps)], probes)
    documents = {
        "name": archive.name,
        **archive.documents,
        # what no column holds: events, lists, names of values that were not finite
        "rest": _rest(rows.values()),
        "probes_rest": _rest(probed.values()),
        "probe_names": names,
        "probed": probed_at,
        "probed_alone": sorted(probed.keys() - rows.keys()),
        "problems": archive.log.problems,
        "superseded": archive.log.superseded,
        "probe_problems": archive.probes.problems,
        "probe_superseded": archive.probes.superseded,
    }
    text = json.dumps(documents, separators=(",", ":"), ensure_ascii=False)
    columns["documents"] = pa.array([text, *[None] * (len(steps) - 1)], pa.string())
    return _sealed(_written(pa.table(columns)))


def _rest(rows: Any) -> list[Row]:
    """Of every row what is no measurement; rows without such are left out."""
    kept = [{n: v for n, v in row.items() if not is_measured(n, v) and n not in ("step", *UNITS)} for row in rows]
    return [{"step": row["step"], **rest} for row, rest in zip(rows, kept, strict=True) if rest]


def _written(table: pa.Table) -> bytes:
    """As Parquet, not yet sealed. Bytes of equal rank stand together (the exponents are alike), steps are stored as differences."""
    encodings = {
        name: "DELTA_BINARY_PACKED" if table.schema.field(name).type == pa.int64() else "BYTE_STREAM_SPLIT"
        for name in table.column_names
        if name not in ("probes", "documents")
    }
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        table.schema,
        compression="zstd",
        compression_level=19,
        use_dictionary=False,
        column_encoding=encodings | {"probes.list.element": "BYTE_STREAM_SPLIT"},
        write_statistics=False,
        store_schema=False,  # it would hold the metadata a second time
    ) as writer:
        writer.write_table(table, row_group_size=len(table))
        # the digest last: its place is found from the file's end, whatever a configuration says
        writer.add_key_value_metadata({"format": str(FORMAT), "sha256": (MARK + ZEROS).decode()})
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
        version = file.metadata.metadata.get(b"format", b"1 or 2").decode()
        if version != str(FORMAT):
            raise InputError(f"{place} is an archive of format {version:.40}; this version reads {FORMAT}")
        check_columns(file.schema_arrow)
        table = file.read()
        documents = parse_json(table["documents"][0].as_py())
        check_documents(documents, place)
        return _archive(table, documents)
    except InputError as error:
        if str(error).startswith(f"{place} "):
            raise
        raise InputError(f"{place} is no archive of a run that this version can read ({error!s:.300})") from None
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{place} is no archive of a run that this version can read ({error!s:.300})") from None


def _archive(table: pa.Table, documents: dict[str, Any]) -> Archive:
    unit = next(unit for unit in UNITS if unit in table.column_names)
    steps, counts = table["step"].to_pylist(), table[unit].to_pylist()
    check_steps(steps)
    rows: dict[int, Row] = {
        step: {"step": step} | ({} if count is None else {unit: count})
        for step, count in zip(steps, counts, strict=True)
    }
    probed = {
        step: rows[step] | {name: _recorded(value) for name, value in found.items()}
        for step, found in probe_rows(documents.pop("probe_names"), table["probes"][0].as_py(), documents.pop("probed"))
    }
    for name in table.column_names:
        if name in ("step", unit, "probes", "documents"):
            continue
        for step, value in zip(steps, values_of(table[name]), strict=True):
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
