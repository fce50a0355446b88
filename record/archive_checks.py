"""What is checked of an archive before it is believed: its size before it is unpacked, its columns, its documents, its rows.

The digest of an archive tells damage, not ill will: whoever makes a file may seal it. So nothing in it is taken on trust. They
raise ValueError, TypeError or LookupError with the reason; record/archive_file.py names the file.
"""

from __future__ import annotations

import itertools
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from record.files import plain_name
from record.metrics import UNITS, check_row
from record.run import LARGEST, UNKNOWN, parse_status

MOST_BYTES = 1 << 28  # of a file: a run of 600,000 updates with 20 measurements has a fifth of it
MOST_VALUES = 30_000_000  # in all columns: a value is about 100 bytes while it is read
MOST_UNPACKED = 1 << 30  # bytes of all columns: a few kB of zeros can stand for as many
MOST_TEXT = 1 << 26  # bytes of the documents

# The documents, and whether each may be null: the other is an object.
OBJECTS = {
    "config": False,
    "given": True,
    "experiment": True,
    "status": True,
    "plan": False,
    "norms": False,
    "val_blocks": True,
}
PROBED = ("probe_names", "probed", "probed_alone")
NUMBERS = (pa.int64(), pa.int32(), pa.float32(), pa.float64())


def check_size(metadata: pq.FileMetaData) -> None:
    """ValueError for a file that would take too much memory. Nothing of it is unpacked yet."""
    columns = [
        metadata.row_group(g).column(c) for g in range(metadata.num_row_groups) for c in range(metadata.num_columns)
    ]
    values = sum(column.num_values for column in columns)
    unpacked = sum(column.total_uncompressed_size for column in columns)
    text = sum(column.total_uncompressed_size for column in columns if column.path_in_schema == "documents")
    for what, number, most in (
        ("values", max(values, metadata.num_rows * metadata.num_columns), MOST_VALUES),
        ("bytes unpacked", unpacked, MOST_UNPACKED),
        ("bytes of documents", text, MOST_TEXT),
    ):
        if not 0 <= number <= most:
            raise ValueError(f"it would have {number:,} {what}, at most {most:,} are read; keep such a run as a folder")


def check_columns(schema: pa.Schema) -> None:
    """TypeError for columns that no archive has."""
    if len(set(schema.names)) < len(schema.names):
        raise TypeError("two columns have one name")
    units = [unit for unit in UNITS if unit in schema.names]
    if len(units) != 1:
        raise TypeError(f"it counts {' and '.join(units) or 'neither'}, and an archive counts {' or '.join(UNITS)}")
    for name in ("step", *units):
        if schema.field(name).type != pa.int64():
            raise TypeError(f"column {name} holds {schema.field(name).type}, not integers")
    probes = schema.field("probes").type
    if not pa.types.is_list(probes) or probes.value_type not in (pa.float32(), pa.float64()):
        raise TypeError(f"column probes holds {probes}, not lists of numbers")
    if (documents := schema.field("documents").type) != pa.string():
        raise TypeError(f"column documents holds {documents}, not text")
    for field in schema:
        if field.name not in ("step", *units, "probes", "documents") and field.type not in NUMBERS:
            raise TypeError(f"column {field.name[:80]!r} holds {str(field.type)[:80]}, not numbers")


def check_documents(documents: Any, place: str) -> None:
    """TypeError for documents of another shape than `pack` writes; what stands in them is for their readers to judge."""
    if not isinstance(documents, dict):
        raise TypeError("its documents are no JSON object")
    for name, optional in OBJECTS.items():
        value = documents[name]
        if not isinstance(value, dict) and not (optional and value is None):
            raise TypeError(f"{name} is {value!r:.40}, no object")
    evaluations = documents.get("lm_eval", {})
    if not isinstance(evaluations, dict) or not all(isinstance(one, dict) for one in evaluations.values()):
        raise TypeError(f"lm_eval is {evaluations!r:.40}, no object of objects")
    for name in ("rest", "probes_rest", "starts"):
        value = documents[name]
        if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
            raise TypeError(f"{name} is {value!r:.40}, no list of objects")
    if type(documents.get("every", 1)) is not int or not 1 <= documents.get("every", 1) <= LARGEST:
        raise TypeError(f"every is {documents['every']!r:.40}, no number of updates")
    for name in ("problems", "probe_problems"):
        value = documents[name]
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise TypeError(f"{name} is {value!r:.40}, no list of sentences")
    for name in ("superseded", "probe_superseded"):
        if type(documents[name]) is not int or not 0 <= documents[name] <= LARGEST:
            raise TypeError(f"{name} is {documents[name]!r:.40}, no count")
    if not isinstance(documents["name"], str) or not all(isinstance(documents[n], list) for n in PROBED):
        raise TypeError(f"name is no text, or one of {', '.join(PROBED)} no list")
    plain_name(documents["name"])
    if documents["status"]:
        # a state that could not be told when the run was archived has its reason with it
        state, reason = documents["status"].get("state"), documents["status"].get("reason")
        parse_status(documents["status"], f"{place}: status")
        if state == UNKNOWN and isinstance(reason, str):
            documents["status"]["reason"] = reason


def check_steps(steps: list[Any]) -> None:
    """TypeError unless these are steps, each once, ascending."""
    if any(type(step) is not int or not 0 <= step <= LARGEST for step in steps):
        raise TypeError("column step holds what is no step")
    if any(a >= b for a, b in itertools.pairwise(steps)):
        raise TypeError("the steps do not ascend")


def check_rows(rows: dict[int, dict[str, Any]]) -> None:
    """TypeError or LookupError for a row that metrics.jsonl could not have."""
    for step, row in rows.items():
        if row["step"] != step:
            raise TypeError(f"a row of step {step} says that it is of {row['step']!r:.40}")
        check_row(row, LARGEST)
