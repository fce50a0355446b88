"""The first analysis recovers what is known of synthetic run folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.loss_curves import crossing, main, smoothed_training, validation
from analysis.runs import differing_fields, find_runs, label, load_run
from record.metrics import MetricsLog
from record.run import RunFolder


def write_run(path: Path, weight_decay: float, steps: int, shift: float, state: str = "done", **fields: Any) -> Path:
    """A run whose validation loss is a common curve plus `shift` · (1 − 4·step/300): it crosses the curve at step 75."""
    folder = RunFolder(path)
    config = {"name": path.name, "optim": {"weight_decay": weight_decay, "lr": 0.1}, "seeds": {"init": 0}, **fields}
    folder.create(config, config, {"optim": {"weight_decay": weight_decay, "lr": 0.1}, **fields}, {})
    log = MetricsLog(folder.metrics)
    for step in range(steps + 1):
        value = 5 * np.exp(-step / 40) + 3 + shift * (1 - 4 * step / 300)
        row = {"step": step, "tokens": step * 10} | ({"train/loss": value} if step else {})
        log.write([row | ({"val/loss": value} if step % 10 == 0 else {})])
    log.close()
    folder.write_status(state, steps, 100)  # type: ignore[arg-type]
    return path


def test_crossing_is_recovered(tmp_path: Path) -> None:
    """Breaks if the step from which λ > 0 is ahead is read off wrongly, in either direction."""
    base = load_run(write_run(tmp_path / "a", 0.0, 100, 0.0))
    run = load_run(write_run(tmp_path / "b", 0.3, 100, 0.1))
    assert crossing(run, base) == 80  # ahead after step 75; evaluated every 10 steps
    assert crossing(base, run) is None
    assert crossing(base, base) is None
    assert len(smoothed_training(run)) == 100
    assert validation(run)[100] == pytest.approx(5 * np.exp(-2.5) + 3 - 0.1 / 3)


def test_legend_by_what_differs(tmp_path: Path) -> None:
    """Breaks if a legend shows what is alike, or hides what differs."""
    runs = [load_run(write_run(tmp_path / name, wd, 20, 0.0)) for name, wd in (("a", 0.0), ("b", 0.3))]
    assert differing_fields(runs) == ["optim.weight_decay"]
    assert [label(run, differing_fields(runs)) for run in runs] == ["λ = 0.0", "λ = 0.3"]
    other = load_run(write_run(tmp_path / "c", 0.3, 20, 0.0, precision="bf16-mixed"))
    assert differing_fields([*runs, other]) == ["optim.weight_decay", "precision"]
    assert label(runs[0], differing_fields(runs[:1])) == "a"


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if unfinished, empty or damaged runs cannot be drawn beside finished ones, or go unmentioned."""
    write_run(tmp_path / "runs" / "a", 0.0, 100, 0.0)
    write_run(tmp_path / "runs" / "b", 0.3, 100, 0.1)
    write_run(tmp_path / "runs" / "c", 0.1, 40, 0.1, state="running")
    write_run(tmp_path / "runs" / "d", 0.2, 0, 0.0, state="running")
    with open(tmp_path / "runs" / "b" / "metrics.jsonl", "a") as file:
        file.write('garbage\n{"step": 1')
    for suffix in ("png", "svg"):
        out = tmp_path / "figures" / f"curves.{suffix}"
        assert main([str(tmp_path / "runs" / "*"), "--out", str(out)]) == 0
        assert out.stat().st_size > 10_000
    text = capsys.readouterr().out
    assert "below λ = 0.0 from step 80 on" in text
    assert "(running)" in text
    assert "metrics.jsonl:102: not a row" in text


def test_one_run_alone(tmp_path: Path) -> None:
    """Breaks if a single run, or one without any row, cannot be drawn."""
    assert main([str(write_run(tmp_path / "a", 0.0, 100, 0.0)), "--out", str(tmp_path / "a.png")]) == 0
    (tmp_path / "a" / "metrics.jsonl").unlink()
    assert main([str(tmp_path / "a"), "--out", str(tmp_path / "b.png")]) == 0


def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if a folder that is no run, or one with a damaged configuration, is a traceback."""
    with pytest.raises(ValueError, match="names no run folder"):
        find_runs([str(tmp_path)])
    assert main([str(tmp_path / "nothing*"), "--out", str(tmp_path / "x.png")]) == 2
    path = write_run(tmp_path / "a", 0.0, 10, 0.0)
    (path / "config.json").write_text("{")
    assert main([str(path), "--out", str(tmp_path / "x.png")]) == 2
    assert "is not a readable run folder" in capsys.readouterr().err
    assert not (tmp_path / "x.png").exists()
    json.loads((path / "status.json").read_text())
