"""Tables in markdown, and the committed results that they are made of."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.outcome import RESULTS

ROOT = Path(__file__).resolve().parent.parent


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)])


def read_result(name: str) -> dict[str, Any]:
    return dict(json.loads((RESULTS / name).read_text(encoding="utf-8")))


def read_results(pattern: str) -> dict[str, dict[str, Any]]:
    """Every result file of a kind, by its name."""
    return {path.name: read_result(path.name) for path in sorted(RESULTS.glob(pattern))}
