"""A short run of the fault bench; the long one is `python -m tests.soak`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import FAULTS
from tests.soak import CASES, soak

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1500)]  # as long as chance makes it


def test_faults_leave_no_trace(tmp_path: Path) -> None:
    """Breaks if a fault loses a run, changes one bit of it, or leaves a process behind."""
    said: list[str] = []
    table = soak(4, 5, tmp_path, CASES[1:2], said.append)
    assert sum(row.count for row in table.values()) >= 4, said
    assert all(row.count == row.survived for row in table.values()), said
    assert set(table) <= set(FAULTS)
