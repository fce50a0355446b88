"""What runs cost, on made-up runs whose times are known, and of the study's records."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from analysis import hours
from analysis.command import Options
from configs.errors import InputError
from tests.processes import ROOT
from tests.recorded import load, write_run


def start(path: Path, **facts: object) -> Path:
    (path / "starts.jsonl").write_text(json.dumps(facts) + "\n")
    return path


def test_device_hours(tmp_path: Path) -> None:
    """Breaks if threads of a CPU are not devices, those of a GPU are, or what was evaluated is counted as training."""
    seconds = {"time/step_s": lambda s: 3.6 * (s > 0), "time/eval_s": lambda s: 36.0 * (s == 100)}
    paths = [write_run(tmp_path / name / "run", steps=100, columns=seconds) for name in ("cpu", "gpu")]
    start(paths[0], ranks=2, threads_per_rank=4, device="cpu")
    start(paths[1], ranks=2, threads_per_rank=4, device="H100")
    table = hours.analyse(load(*paths), Options()).tables["By folder"].set_index("folder")
    assert table["training"].to_dict() == pytest.approx({"cpu": 0.8, "gpu": 0.2, "all": 1.0})
    assert table["evaluation"].to_dict() == pytest.approx({"cpu": 0.08, "gpu": 0.02, "all": 0.1})
    assert table["device-hours"]["all"] == pytest.approx(1.1)
    assert table["updates"]["all"] == 200


def test_a_machine_that_stood_still(tmp_path: Path) -> None:
    """Breaks if an update in which the machine was away counts as work, or updates that are merely slow do not."""
    seconds = {
        "time/step_s": lambda s: 1.0 + 8.0 * (s == 7) + 3600.0 * (s == 50),
        "time/eval_s": lambda s: 5.0 * (s == 100),
    }
    path = write_run(tmp_path / "away" / "run", steps=100, columns=seconds)
    result = hours.analyse(load(path), Options())
    table = result.tables["By folder"].iloc[0]
    assert table["stalled"] == pytest.approx(1.0)
    assert table["training"] == pytest.approx(108 / 3600, abs=0.006), "rounded to hundredths"
    assert any("1.00 device-hours more stood still" in note for note in result.notes)


def test_runs_without_times(tmp_path: Path) -> None:
    """Breaks if runs of unknown cost are said to cost nothing."""
    with pytest.raises(InputError, match="none of these 1 runs has recorded time/step_s"):
        hours.analyse(load(write_run(tmp_path / "run", steps=10)), Options())


def test_the_page_of_the_study() -> None:
    """Breaks if the page names another sum than its table."""
    table = pd.read_csv(ROOT / "docs" / "study" / "hours.csv")
    page = (ROOT / "docs" / "study" / "runs.md").read_text()
    assert f"{table['device-hours'].iloc[-1]:.1f} core-hours" in page
