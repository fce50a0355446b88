"""The run log survives what happens to run logs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from record.metrics import MetricsLog, read_metrics
from record.mirror import WandbMirror
from record.run import RunFolder

ROOT = Path(__file__).resolve().parent.parent


def test_rows_come_back(tmp_path: Path) -> None:
    """Breaks if rows of one step are not merged, a resume does not void what it repeats, or order is lost."""
    log = MetricsLog(tmp_path / "m.jsonl")
    log.write([{"step": s, "tokens": s * 10, "train/loss": 5.0 - s} for s in range(1, 5)])
    log.write([{"step": 2, "tokens": 20, "val/loss": 7.0}])
    log.write([{"step": 2, "tokens": 20, "event": "resume"}, {"step": 3, "tokens": 30, "train/loss": 1.5}])
    log.close()
    rows, problems = read_metrics(tmp_path / "m.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert rows[1] == {"step": 2, "tokens": 20, "train/loss": 3.0, "val/loss": 7.0}
    assert rows[2]["train/loss"] == 1.5
    assert problems == []


def test_nan_is_null_with_a_flag(tmp_path: Path) -> None:
    """Breaks if the file stops being JSON, or a NaN can be mistaken for a missing value."""
    log = MetricsLog(tmp_path / "m.jsonl")
    log.write([{"step": 1, "tokens": 1, "train/loss": float("nan"), "optim/grad_norm": float("inf"), "optim/lr": 0.1}])
    log.close()
    row = json.loads((tmp_path / "m.jsonl").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert row["train/loss"] is None
    assert row["nonfinite"] == ["train/loss", "optim/grad_norm"]
    assert row["optim/lr"] == 0.1


def test_torn_lines(tmp_path: Path) -> None:
    """Breaks if a crash in mid-write loses the rows before or after it, or damage in the middle goes unreported."""
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1, "tokens": 1}\n{"step": 2, "tok')
    assert read_metrics(path) == ([{"step": 1, "tokens": 1}], [])
    log = MetricsLog(path)
    log.write([{"step": 3, "tokens": 3}])
    log.close()
    rows, problems = read_metrics(path)
    assert [row["step"] for row in rows] == [1, 3]
    assert len(problems) == 1
    assert "m.jsonl:2" in problems[0]


@pytest.mark.parametrize("line", ['"step"', "[1]", '{"tokens": 1}', '{"step": "1"}', "\x00", "[" * 100_000])
def test_foreign_lines_are_reported(tmp_path: Path, line: str) -> None:
    """Breaks if a line that is no row crashes the reader."""
    path = tmp_path / "m.jsonl"
    path.write_text(line + '\n{"step": 1, "tokens": 1}\n')
    rows, problems = read_metrics(path)
    assert len(rows) == len(problems) == 1


def test_status_is_whole_or_absent(tmp_path: Path) -> None:
    """Breaks if a status lacks its fields or leaves a temporary file behind."""
    folder = RunFolder(tmp_path)
    assert folder.read_status() is None
    folder.write_status("preempted", 7, 10, "SIGTERM")
    status = folder.read_status()
    assert status is not None
    assert (status["state"], status["step"], status["steps"], status["reason"]) == ("preempted", 7, 10, "SIGTERM")
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_wandb_by_its_own_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if wandb's variables are not obeyed, a sweep's cells share no group, or moving a run folder makes a new wandb run."""
    for name, value in {"WANDB_PROJECT": "mine", "WANDB_TAGS": "a,b", "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "study" / "cells").mkdir(parents=True)
    folder = tmp_path / "study" / "cell"
    folder.mkdir()
    mirror = WandbMirror("offline", folder, "cell", {})
    mirror.write([{"step": 1, "train/loss": 2.0, "probe/norm/kind:head": 1.0}])
    assert mirror._run is not None
    assert (mirror._run.project, mirror._run.group, mirror._run.tags) == ("mine", "study", ("a", "b"))
    known = mirror._run.id
    mirror.close()
    (sent,) = (path.read_bytes() for path in folder.glob("wandb/offline-run-*/run-*.wandb"))
    assert b"train/loss" in sent
    assert b"kind:head" not in sent
    again = WandbMirror("offline", folder.rename(tmp_path / "moved"), "cell", {})
    assert again._run.id == known
    assert not again._run.group
    again.close()


def test_an_unreachable_wandb_does_not_hold_the_start(tmp_path: Path) -> None:
    """Breaks if a run waits longer for a dashboard than its limit, or says nothing of it."""
    code = f"""
import logging, os, time
from pathlib import Path
from record import mirror
logging.basicConfig()
mirror.START_S = 2.0
begun = time.monotonic()
ours = mirror.WandbMirror("online", Path({str(tmp_path)!r}), "cell", {{}})
ours.write([{{"step": 1, "train/loss": 2.0}}])
print("waited", time.monotonic() - begun, flush=True)
os._exit(0)
"""
    env = {**os.environ, "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "a" * 40}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert "wandb has not answered within 2 s" in done.stderr
    assert float(done.stdout.rpartition("waited ")[2]) < 5.0
