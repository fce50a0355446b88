"""Measurements as the columns of an archive, and back: see record/archive_file.py.

Two shapes save a sixth of a file. What changes smoothly (SMOOTH) is stored as the second differences of its float32's bits, in
whole numbers that wrap around: exact, and nearly all of them small. And probes, a few hundred measurements at a few dozen steps,
stand name by name: neighbours are then one measurement at two times.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

SMOOTH = ("optim/lr", "optim/decay_sum", "weights/", "norm/")
LEAST, MOST = (float(bound) for bound in (np.finfo(np.float32).tiny, np.finfo(np.float32).max))
ABSENT: Any = ...  # what a row does not have; None is a value that was not finite
Row = dict[str, Any]


def is_measured(name: str, value: Any) -> bool:
    """Whether a value has its place in a column: a number by a name like train/loss."""
    return "/" in name and not isinstance(value, list)


def column_of(name: str, values: Sequence[Any]) -> pa.Array:
    """One measurement, a value per row (or ABSENT).

    int64 for whole numbers; float64 for val/…, and where a value is none that float32 holds to 7 digits; int32 for the differences
    of SMOOTH; else float32.
    """
    numbers = [v for v in values if v is not ABSENT and v is not None]
    if numbers and None not in values and all(type(v) is int for v in numbers):
        return pa.array([None if v is ABSENT else v for v in values], pa.int64())
    absent = np.array([v is ABSENT for v in values], bool)
    floats = _floats(values)
    if not name.startswith("val/") and _is_narrow(numbers):
        floats = _differences(floats, ~absent) if name.startswith(SMOOTH) else floats.astype(np.float32)
    # from_pandas=False: a NaN is a value here, and only the mask says what is absent
    return pa.array(floats, mask=absent, from_pandas=False)


def values_of(column: pa.ChunkedArray) -> list[Any]:
    """The values of `column_of` again, null for ABSENT, NaN for one that was not finite."""
    if column.type != pa.int32():
        return list(column.to_pylist())
    present = column.is_valid().to_numpy()
    bits = column.drop_null().to_numpy().astype(np.int32).cumsum(dtype=np.int32).cumsum(dtype=np.int32)
    values = np.full(len(column), None, object)
    values[present] = bits.view(np.float32).tolist()
    return list(values)


def probes_of(rows: Sequence[Row]) -> tuple[list[str], pa.Array]:
    """The names of what was probed, and all values: name by name, and of each name row by row. Null for ABSENT."""
    names = list(dict.fromkeys(name for row in rows for name, value in row.items() if is_measured(name, value)))
    values = [row[n] if n in row and is_measured(n, row[n]) else ABSENT for n in names for row in rows]
    floats = _floats(values)
    if _is_narrow([v for v in values if v is not ABSENT and v is not None]):
        floats = floats.astype(np.float32)
    return names, pa.array(floats, mask=np.array([v is ABSENT for v in values], bool), from_pandas=False)


def probe_rows(names: list[str], values: list[Any], steps: list[int]) -> Iterator[tuple[int, Row]]:
    """Of each step its measurements again. ValueError for another number of values than names times steps."""
    if len(values) != len(names) * len(steps):
        raise ValueError(
            f"{len(names):,} names at {len(steps):,} steps have {len(names) * len(steps):,} probes, not {len(values):,}"
        )
    for place, step in enumerate(steps):
        yield step, {n: v for n, v in zip(names, values[place :: len(steps)], strict=True) if v is not None}


def _floats(values: Sequence[Any]) -> np.ndarray:
    return np.array([math.nan if v is ABSENT or v is None else v for v in values], np.float64)


def _is_narrow(numbers: Sequence[float]) -> bool:
    """Whether float32 holds all of them to 7 digits."""
    return all(v == 0 or LEAST <= abs(v) <= MOST for v in numbers)


def _differences(floats: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Second differences of the bits of those present, in int32, which wraps around."""
    bits = floats[present].astype(np.float32).view(np.int32)
    found = np.zeros(len(floats), np.int32)
    found[present] = np.diff(np.diff(bits, prepend=np.int32(0)), prepend=np.int32(0))
    return found
