"""The run log survives what happens to run logs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from record.checkpoint_manifest import MANIFEST, read_manifest
from record.checkpoints import complete, find
from record.metrics import MetricsLog, lost_steps, read_log, read_metrics
from record.mirror import WandbMirror
from record.run import RunFolder
from tests.processes import ROOT

pytestmark = pytest.mark.slow  # by its length alone: `make check` takes a minute


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
    assert len(problems) == 2
    assert "m.jsonl:2" in problems[0]
    assert problems[1].endswith("m.jsonl: 1 step has no row: 2")


@pytest.mark.parametrize(
    "line",
    [
        '"step"',
        "[1]",
        "null",
        '{"tokens": 1}',
        '{"step": "1"}',
        '{"step": true}',
        '{"step": -1}',
        '{"step": 1e2}',
        '{"step": 99999999999999999999}',
        '{"step": 2, "tokens": "many"}',
        '{"step": 2, "event": 7}',
        '{"step": 2, "nonfinite": "train/loss"}',
        '{"step": 2, "train/loss": "4.1"}',
        '{"step": 2, "train/loss": true}',
        '{"step": 2, "train/loss": [4.1]}',
        '{"step": 2, "train/loss": NaN}',
        '{"step": 2, "train/loss": 1e999}',
        '{"step": 2, "train/loss": ' + "9" * 400 + "}",
        '{"step": 2, "event": "\\ud800"}',
        "\x00",
        "[" * 100_000,
    ],
)
def test_foreign_lines_are_reported(tmp_path: Path, line: str) -> None:
    """Breaks if a line that is no row crashes the reader."""
    path = tmp_path / "m.jsonl"
    path.write_text(line + '\n{"step": 1, "tokens": 1}\n')
    rows, problems = read_metrics(path)
    assert len(rows) == len(problems) == 1
    assert len(problems[0]) < 300
    path.write_text((line + "\n") * 50)
    assert [path.name in problem for problem in read_metrics(path)[1]] == [True] * 6
    assert "45 more lines" in read_metrics(path)[1][-1]


def test_lost_steps_are_named(tmp_path: Path) -> None:
    """Breaks if rows that were cut out of the middle of a log, or off its end, leave no trace for its readers."""
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps({"step": step, "tokens": 0}) + "\n" for step in (0, 1, 2, 5, 6, 9)))
    assert read_metrics(path)[1] == [f"{path}: 4 steps have no row: 3–4, 7–8"]
    log = read_log(path)
    assert lost_steps(path, log, 6) == [f"{path}: 2 steps have no row: 3–4"]
    assert lost_steps(path, log, 11) == [f"{path}: 6 steps have no row: 3–4, 7–8, 10–11"]
    path.write_text("".join(json.dumps({"step": step, "tokens": 0}) + "\n" for step in range(2, 100, 2)))
    assert lost_steps(path, read_log(path))[0].endswith("1, 3, 5, 7, 9 and 44 more places")
    path.write_text('{"step": 1, "tokens": 0}\n{"step": 9, "tokens": 0}\n')
    assert len(read_log(path, last=8).problems) == 1, "a row of a step that the run does not have"


@pytest.fixture
def special(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "device").symlink_to("/dev/zero")
    return tmp_path


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["pipe", "folder", "device"])
def test_only_files_are_read(name: str, special: Path) -> None:
    """Breaks if a named pipe, a device or a folder in a run folder hangs a reader or is a traceback."""
    run = RunFolder(special / "run")
    run.checkpoints.mkdir(parents=True)
    step = run.checkpoints / "step_00000001"
    step.mkdir()
    for path in (run.status, run.experiment, run.plan, run.metrics, run.starts, step / "manifest.json"):
        path.symlink_to(special / name)
    for read in (
        run.read_status,
        run.read_experiment,
        lambda: read_metrics(run.metrics),
        lambda: find(run.checkpoints, 1),
    ):
        with pytest.raises(ValueError, match=r"is a|is damaged"):
            read()
    assert run.read_plan() == {}
    assert run.last_start() is None


@pytest.mark.parametrize("name", ["", ".", "..", "/etc/passwd", "../weights.safetensors", "a/b", "a\\b", "a\0"])
def test_manifests_name_files_of_their_own_folder(name: str, tmp_path: Path) -> None:
    """Breaks if a manifest can make a reader open a file elsewhere."""
    step = tmp_path / "step_00000001"
    step.mkdir()
    file = {"bytes": 1, "sha256": "0" * 64}
    (step / MANIFEST).write_text(json.dumps({"step": 1, "counters": {}, "experiment": {}, "files": {name: file}}))
    with pytest.raises(ValueError, match="not the plain name of a file"):
        read_manifest(step)
    assert complete(tmp_path) == []


def test_a_flipped_letter_is_an_unknown_state(tmp_path: Path) -> None:
    """Breaks if a damaged status is taken for an end, or one that cannot be a status for one."""
    folder = RunFolder(tmp_path)
    folder.write_status("done", 10, 10)
    sound = folder.status.read_text()
    folder.status.write_text(sound.replace('"done"', '"dune"'))
    status = folder.read_status() or {}
    assert (status["state"], status["step"]) == ("unknown", 10)
    assert "status.json says 'dune', which is none of running, done," in status["reason"]
    for damaged in ("5", "null", "[]", '{"state": "done"}', sound.replace("10", "true"), sound.replace(": 10", ": -1")):
        folder.status.write_text(damaged)
        with pytest.raises(ValueError, match=r"status\.json"):
            folder.read_status()
    folder.status.write_text(sound.replace('"step": 10', '"step": 11'))
    with pytest.raises(ValueError, match="step 11 of 10"):
        folder.read_status()


def test_a_run_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    """Breaks if a run can be recorded over a file, or among files that are none of its own; or not where it was before."""
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ValueError, match="file is no folder"):
            RunFolder(path).check_place()
    folder = RunFolder(tmp_path / "run")
    folder.check_place()
    folder.path.mkdir()
    folder.check_place()
    (folder.path / "logs").mkdir()
    for name in (
        "refused.json",
        "metrics.jsonl",
        ".lock",
        ".writer.json",
        ".status.json.123.tmp",
        ".nfs01",
        "stop",
        "wandb.id",
    ):
        (folder.path / name).touch()
    folder.check_place()
    (folder.path / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"holds no run .* but thesis\.tex"):
        folder.check_place()
    folder.create({}, {}, {}, {})
    folder.check_place()
    (folder.path / "experiment.json").unlink()
    with pytest.raises(ValueError, match=r"config\.json"):
        folder.check_place()


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
    monkeypatch.setattr("record.mirror.START_S", 100.0)  # wandb's import and start, on a busy machine
    (tmp_path / "study" / "cells").mkdir(parents=True)
    folder = tmp_path / "study" / "cell"
    folder.mkdir()
    mirror = WandbMirror("offline", folder, "cell", {})
    mirror.write([{"step": 1, "train/loss": 2.0, "probe/norm/kind:head": 1.0}])
    assert mirror._run is not None
    assert (mirror._run.project, mirror._run.group, mirror._run.tags) == ("mine", "study", ("a", "b"))
    known = mirror._run.id
    mirror.close()
    sent, deadline = b"", time.monotonic() + 30
    while b"train/loss" not in sent and time.monotonic() < deadline:  # wandb's own process writes it, a moment later
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
