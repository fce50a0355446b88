"""The table of a sweep's runs (slurm/status.py), of folders whose writer is this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from configs.prepared import read_summary
from configs.schema import RunConfig
from configs.sweep import expand
from configs.sweep_cell import Cell
from record.lock import hold
from slurm.cells import standings
from slurm.status import render


@pytest.mark.parametrize("unit", ["tokens", "images"])
def test_speed_and_rest_of_a_run(
    unit: str, tmp_path: Path, tiny_config: Callable[..., RunConfig], make_images: Callable[..., RunConfig]
) -> None:
    """Breaks if a run on images has no speed and no ETA, or the speed stands under another unit than its own."""
    base = (tiny_config if unit == "tokens" else make_images)({"schedule": {"steps": 100}, "data": {"epochs": 100}})
    (tmp_path / "base.json").write_text(base.model_dump_json())
    (tmp_path / "sweep.json").write_text(json.dumps({"name": "s", "base": "base.json", "axes": {"seeds.*": [0]}}))
    cells: list[Cell] = expand(tmp_path / "sweep.json", tmp_path / "runs", read_summary)[1]["main"]
    folder, steps = cells[0].folder, cells[0].config.schedule.steps
    with hold(folder):
        (folder / "status.json").write_text(json.dumps({"state": "running", "step": 10, "steps": steps}))
        rows = [{"step": step, "train/loss": 3.0, f"perf/{unit}_per_s": 200.0} for step in range(11)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        found = standings(cells)
    (standing,) = found.values()
    assert standing.state == "running"
    assert standing.eta_s == (steps - 10) * cells[0].config.units_per_step / 200
    head, row, *_ = render(cells, found).splitlines()
    place = head.index(f"{unit}/s")
    assert row[place:].split()[0] == "200"
