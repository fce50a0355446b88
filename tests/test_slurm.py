"""Sweeps on a real two-node SLURM: arrays, requeues, lost nodes, stages."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from configs.schema import RunConfig
from record.run import RunFolder
from slurm import status as status_command
from slurm import submit as submit_command
from slurm.cells import read_submissions
from tests.cluster import Cluster
from tests.processes import losses, processes_with, start, wait
from tests.room import MIDDLE, SHORT, Room, finals, on_slurm, starts

pytestmark = on_slurm


def test_array_equals_local(slurm: Cluster, tiny_config: Callable[..., RunConfig], tmp_path: Path, capsys: Any) -> None:
    """Breaks if an array of λ × precision does not end done, a run of it differs from the same run without SLURM, what is
    finished is run again, or an odd path reaches a shell."""
    axes = {"optim.weight_decay": [0.0, 0.1, 0.3], "precision": ["fp32", "bf16-mixed"]}
    room = Room(tmp_path, tiny_config(SHORT), axes=axes, limit=4)
    jobs = room.submit()
    assert len(jobs) == 1
    room.wait(slurm, jobs)
    assert room.states() == ["done"] * 6, room.logs()
    hosts = slurm.ask("squeue", "--noheader", "--array", "--states=all", "--format=%N", f"--jobs={jobs[0]}").split()
    assert set(hosts) == {"n1", "n2"}
    local = tmp_path / "local"
    assert submit_command.main([str(room.sweep), "--runs", str(local), "--local", "--jobs", "2"]) == 0
    for ours, theirs in zip(room.cells(), room.cells(local), strict=True):
        assert ours.folder.name == theirs.folder.name
        assert finals(ours) == finals(theirs), ours.label
    assert room.submit() == []
    room.sweep.write_text(room.sweep.read_text().replace("0.3]", "0.3, 1.0]"))
    assert room.states() == ["done"] * 6 + ["missing"] * 2, "a further λ has renamed a run"
    capsys.readouterr()
    assert status_command.main([str(room.sweep), "--runs", str(room.runs)]) == 0
    assert "6 done, 2 missing" in capsys.readouterr().out
    assert not list(tmp_path.rglob("oops")) + list(Path.cwd().glob("oops"))


def test_two_nodes_four_tasks(slurm: Cluster, tiny_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    """Breaks if ranks on two nodes do not find each other, four runs that start at once on one host collide, or either
    trains something else than two ranks under the deepspeed launcher do."""
    room = Room(tmp_path, tiny_config(SHORT, {"parallel": {"zero_stage": 2}}), axes={"seeds.*": [0, 1, 2, 3]})
    room.set_site(nodes=2)
    jobs = room.submit()
    room.wait(slurm, jobs)
    assert room.states() == ["done"] * 4, room.logs()
    (first, *_) = room.cells()
    run = start(room.root / "cells" / f"{first.folder.name}.json", tmp_path / "launched", ranks=2)
    output, _ = run.communicate(timeout=600)
    assert losses(tmp_path / "launched") == losses(first.folder), output
    begun = RunFolder(first.folder).last_start()
    assert begun is not None
    assert (begun["ranks"], begun["threads_per_rank"]) == (2, 1)
    assert sorted(path.name for path in (first.folder / "logs").iterdir()) == ["rank_0000.log", "rank_0001.log"]


def test_interrupted_cells(slurm: Cluster, tiny_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    """Breaks if a requeue in mid-run, a slurmd that dies and comes back, or the time limit loses work, changes a bit,
    or runs a cell twice."""
    began = time.monotonic()
    room = Room(tmp_path, tiny_config(MIDDLE, {"schedule": {"steps": 1200}}), axes={"seeds.*": [0, 1, 2]})
    room.set_site(signal_s=180)
    (job,) = room.submit()
    requeued, orphaned, limited = cells = room.cells()
    wait(lambda: all(len(losses(cell.folder)) > 50 for cell in cells), timeout_s=400)
    (halted,) = (pid for pid, command in processes_with(str(limited.folder)).items() if "train.py" in command)
    os.kill(halted, signal.SIGSTOP)  # so that it is not done before its time is up; SLURM's warning wakes it
    # Its time alone is short. Were it all runs', a slow machine would begin each of them again and again.
    minutes = int((time.monotonic() - began) // 60) + 2  # of which less than signal_s are left
    slurm.ask("scontrol", "update", f"JobId={job}_2", f"TimeLimit={minutes}")
    slurm.ask("scontrol", "requeue", f"{job}_0")
    node = slurm.ask("squeue", "--noheader", "--format=%N", f"--jobs={job}_1")
    writer = (orphaned.folder / ".writer.json").read_text()
    slurm.daemons[node].kill()
    slurm.daemons[node].wait()
    time.sleep(2)
    slurm.start(node)
    wait(
        lambda: "idle" in slurm.ask("sinfo", "--noheader", "--format=%T") or "mix" in slurm.ask("sinfo", "--noheader"),
        timeout_s=30,
    )
    assert (orphaned.folder / ".writer.json").read_text() == writer, (
        "the task outlives its slurmd, which finds it again"
    )
    wait(lambda: "before the time limit; requeued" in room.logs(), timeout_s=300)
    slurm.ask("scontrol", "update", f"JobId={job}_2", "TimeLimit=30")  # while it waits: its next start has time again
    room.wait(slurm, [job])
    straight = tmp_path / "straight"
    assert submit_command.main([str(room.sweep), "--runs", str(straight), "--local", "--jobs", "2"]) == 0
    assert room.states() == ["done"] * 3, room.logs()
    for ours, theirs in zip(cells, room.cells(straight), strict=True):
        assert finals(ours) == finals(theirs), ours.label
    assert len(starts(requeued)) >= 2
    assert len(starts(limited)) >= 2
    assert "before the time limit; requeued" in room.logs()
    for cell in cells:
        assert (cell.folder / "logs" / "rank_0000.log").read_text().count(": done at step") == 1, "a cell ended twice"


def test_stages_failure_and_resubmission(
    slurm: Cluster, tiny_config: Callable[..., RunConfig], tiny_data: tuple[Path, Any], tmp_path: Path, capsys: Any
) -> None:
    """Breaks if branches do not wait for their trunks, a failed trunk's branches count as failed, or a second submission
    repeats what is done or leaves out what is not."""
    shutil.copytree(tiny_data[0], tmp_path / "data")
    options = {"data": {"path": str(tmp_path / "data"), "verify": True}}
    tiny = {"optim.lr": 1e-4, "optim.weight_decay": 0.0, "schedule.kind": "constant", "schedule.warmup_steps": 0}
    stages = [{"name": "tiny", "branch_every": 8, "set": {**tiny, "schedule.steps": 5}}]
    room = Room(tmp_path, tiny_config(SHORT, options, {"schedule": {"steps": 16}}), stages=stages)
    room.sweep.write_text(
        json.dumps({**json.loads(room.sweep.read_text()), "axes": {"optim.weight_decay": [0.1, 0.2]}})
    )
    trunks = room.cells()[:2]
    trunks[1].folder.mkdir(parents=True)
    (trunks[1].folder / "experiment.json").write_text("{torn")
    jobs = room.submit()
    assert len(jobs) == 2
    room.wait(slurm, jobs)
    assert room.states() == ["done", "failed", "done", "done", "blocked", "blocked"], room.logs()
    assert "has no complete checkpoint of step 8" in room.logs()
    assert "cannot be read" in (trunks[1].folder / "logs" / "rank_0000.log").read_text()
    (trunks[1].folder / "experiment.json").unlink()
    capsys.readouterr()
    assert status_command.main([str(room.sweep), "--runs", str(room.runs), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows[1]["why"].startswith("error: ")
    assert "cannot be read" in rows[1]["why"]
    again = room.submit()
    assert len(again) == 2
    assert [len(row["cells"]) for row in read_submissions(room.root)[-2:]] == [1, 2]
    room.wait(slurm, again)
    assert room.states() == ["done"] * 6, room.logs()
    branch = room.cells()[2]
    assert losses(branch.folder)[0][0] == 1
    trunk_loss = dict(losses(trunks[0].folder))[9]
    assert losses(branch.folder)[0][1] == trunk_loss, "the branch does not begin where its trunk was"
    assert all(len(starts(cell)) == 1 for cell in room.cells())


def test_preemption(slurm: Cluster, tiny_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    """Breaks if a run that a job of higher priority pushes out saves in its grace time and then is not requeued."""
    room = Room(tmp_path, tiny_config(MIDDLE))
    room.set_site(partition="low", options=["--exclusive", "--nodelist=n1"])
    (job,) = room.submit()
    (cell,) = room.cells()
    wait(lambda: len(losses(cell.folder)) > 50, timeout_s=400)
    slurm.ask("sbatch", "--partition=high", "--exclusive", "--nodelist=n1", "--output=/dev/null", "--wrap=sleep 3")
    room.wait(slurm, [job])
    assert room.states() == ["done"], room.logs()
    assert len(starts(cell)) == 2
    assert "preempted; requeued" in room.logs()


def test_scancel(slurm: Cluster, tiny_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    """Breaks if a cancelled run leaves a process, loses what it had done, comes back, or counts as done."""
    room = Room(tmp_path, tiny_config(MIDDLE, {"schedule": {"steps": 20000}}))
    room.set_site(ranks_per_node=2)
    (job,) = room.submit()
    (cell,) = room.cells()
    wait(lambda: len(losses(cell.folder)) > 20, timeout_s=400)
    assert room.states() == ["running"]
    slurm.ask("scancel", job)
    wait(lambda: not processes_with(str(room.path)), timeout_s=60)
    room.wait(slurm, [job])
    assert room.states() == ["preempted"]
    assert RunFolder(cell.folder).read_status()["reason"] == "SIGTERM"  # type: ignore[index]
    time.sleep(2)
    assert not slurm.active(job)
