"""Job arrays on a real two-node SLURM: what one task does leaves the others alone, and arrays have their limits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from configs.schema import RunConfig
from slurm import submit as submit_command
from slurm.cells import read_submissions, standings
from tests.cluster import Cluster, cluster
from tests.processes import ROOT, losses, processes_with, wait
from tests.room import MIDDLE, SHORT, Room, on_slurm, starts

pytestmark = on_slurm


def test_a_requeue_is_of_one_task(slurm: Cluster, tiny_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    """Breaks if the task that has the array's own number requeues the whole array at its time limit: a cancelled task would
    run again, and a running one would be ended and started over."""
    began = time.monotonic()
    room = Room(tmp_path, tiny_config(MIDDLE, {"schedule": {"steps": 100_000}}), axes={"seeds.*": [0, 1, 2]})
    room.set_site(signal_s=180)
    (job,) = room.submit()
    running, cancelled, limited = room.cells()
    wait(lambda: all(len(losses(cell.folder)) > 20 for cell in room.cells()), timeout_s=600)
    shown = slurm.ask("scontrol", "show", "job", "-o", f"{job}_2")
    assert f"JobId={job} " in shown, "this task is not the one whose number is the array's: the test shows nothing"
    slurm.ask("scancel", f"{job}_1")
    wait(lambda: len(slurm.active(job)) == 2, timeout_s=300)
    minutes = int((time.monotonic() - began) // 60) + 2  # of which less than signal_s are left
    slurm.ask("scontrol", "update", f"JobId={job}_2", f"TimeLimit={minutes}")
    wait(lambda: "before the time limit; requeued" in room.logs(), timeout_s=300)
    slurm.ask("scontrol", "update", f"JobId={job}_2", "TimeLimit=30")
    wait(lambda: len(starts(limited)) == 2, timeout_s=400)
    assert [len(starts(cell)) for cell in (running, cancelled)] == [1, 1], room.logs()
    assert room.states() == ["running", "preempted", "running"]
    assert len(slurm.active(job)) == 2
    for cell, task in zip(room.cells(), range(3), strict=True):
        assert {row["slurm_job"] for row in starts(cell)} == {f"{job}_{task}"}, "a start names another job than its own"
    slurm.ask("scancel", job)
    room.wait(slurm, [job], 90)


def test_more_cells_than_an_array_may_have(
    tiny_config: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks if a cluster that allows arrays of five refuses a sweep of six cells, more of them run at once than the limit,
    or a stage starts before all arrays of the one before have ended."""
    branch = {"optim.lr": 1e-4, "schedule.kind": "constant", "schedule.warmup_steps": 0, "schedule.steps": 3}
    stages = [{"name": "tiny", "branch_at": [12], "where": {"seeds.init": [5]}, "set": branch}]
    room = Room(tmp_path, tiny_config(SHORT), axes={"seeds.*": [*range(6)]}, limit=3, stages=stages)
    with cluster(tmp_path / "cluster", max_array_size=5) as small:
        monkeypatch.setenv("SLURM_CONF", small.env["SLURM_CONF"])
        jobs = room.submit()
        rows = read_submissions(room.root)
        assert [(row["stage"], len(row["cells"]), row["part"]) for row in rows] == [
            ("main", 5, [1, 2]), ("main", 1, [2, 2]), ("tiny", 1, [1, 1]),
        ]  # fmt: skip
        at_once = 0
        while active := [state for job in jobs for state in small.active(job)]:
            at_once = max(at_once, sum(state in ("RUNNING", "CONFIGURING") for state in active))
            time.sleep(0.2)
    assert room.states() == ["done"] * 7, room.logs()
    assert at_once == 3
    *_, last, branch_of_it = (starts(cell)[0]["time"] for cell in room.cells())
    assert last < branch_of_it


def test_two_submissions_at_one_moment(slurm: Cluster, tiny_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    """Breaks if two commands that both find every cell missing both submit it."""
    room = Room(tmp_path, tiny_config(SHORT), axes={"seeds.*": [*range(3)]})
    room.set_site(options=["--hold"])
    command = [
        sys.executable,
        "-m",
        "slurm.submit",
        str(room.sweep),
        "--runs",
        str(room.runs),
        "--site",
        str(room.site),
    ]
    both = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    ends = [(process.communicate(timeout=600)[1], process.returncode) for process in both]
    for words, code in ends:
        assert code == 0 or "one command at a time works on a sweep" in words, words
    assert 0 in [code for _, code in ends]
    (row,) = read_submissions(room.root)
    slurm.ask("scancel", row["job"])
    assert len(row["cells"]) == 3


def test_a_refused_submission_leaves_nothing(
    slurm: Cluster, tiny_config: Callable[..., RunConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks if what a cluster refuses leaves a record of a submission, or the refusal does not say why."""
    room = Room(tmp_path, tiny_config(SHORT))
    room.set_site(partition="none")
    assert submit_command.main([str(room.sweep), "--runs", str(room.runs), "--site", str(room.site)]) == 2
    assert "invalid partition" in capsys.readouterr().err
    assert not room.runs.exists()


def test_why_a_start_failed(slurm: Cluster, tiny_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    """Breaks if a start that SLURM itself could not make gives no reason, or one that train.py was killed in another than
    that it was killed."""
    room = Room(tmp_path, tiny_config(SHORT))
    room.set_site(container=["no-such-program"])
    room.wait(slurm, room.submit())
    (known,) = standings(room.cells()).values()
    assert known.state == "failed"
    assert "no-such-program: No such file or directory" in known.why
    room.set_site()
    jobs = room.submit()
    wait(lambda: any("train.py" in words for words in processes_with(str(room.path)).values()), timeout_s=300)
    (victim,) = (pid for pid, words in processes_with(str(room.path)).items() if "train.py" in words)
    os.kill(victim, signal.SIGKILL)
    room.wait(slurm, jobs)
    (known,) = standings(room.cells()).values()
    assert known.state == "failed"
    assert "it ended by SIGKILL" in known.why
