"""Job arrays on a real two-node SLURM: what one task does leaves the others alone, and arrays have their limits."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from configs.schema import RunConfig
from tests.cluster import Cluster
from tests.processes import losses, wait
from tests.room import MIDDLE, Room, on_slurm, starts

pytestmark = on_slurm


@pytest.mark.timeout(600)
def test_a_requeue_is_of_one_task(slurm: Cluster, tiny_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    """Breaks if the task that has the array's own number requeues the whole array at its time limit: a cancelled task would
    run again, and a running one would be ended and started over."""
    began = time.monotonic()
    room = Room(tmp_path, tiny_config(MIDDLE, {"schedule": {"steps": 100_000}}), axes={"seeds.*": [0, 1, 2]})
    room.set_site(signal_s=180)
    (job,) = room.submit()
    running, cancelled, limited = room.cells()
    wait(lambda: all(len(losses(cell.folder)) > 20 for cell in room.cells()), timeout_s=200)
    shown = slurm.ask("scontrol", "show", "job", "-o", f"{job}_2")
    assert f"JobId={job} " in shown, "this task is not the one whose number is the array's: the test shows nothing"
    slurm.ask("scancel", f"{job}_1")
    wait(lambda: len(slurm.active(job)) == 2, timeout_s=60)
    minutes = int((time.monotonic() - began) // 60) + 2  # of which less than signal_s are left
    slurm.ask("scontrol", "update", f"JobId={job}_2", f"TimeLimit={minutes}")
    wait(lambda: "before the time limit; requeued" in room.logs(), timeout_s=90)
    slurm.ask("scontrol", "update", f"JobId={job}_2", "TimeLimit=30")
    wait(lambda: len(starts(limited)) == 2, timeout_s=120)
    assert [len(starts(cell)) for cell in (running, cancelled)] == [1, 1], room.logs()
    assert room.states() == ["running", "preempted", "running"]
    assert len(slurm.active(job)) == 2
    for cell, task in zip(room.cells(), range(3), strict=True):
        assert {row["slurm_job"] for row in starts(cell)} == {f"{job}_{task}"}, "a start names another job than its own"
    slurm.ask("scancel", job)
    room.wait(slurm, [job], 90)
