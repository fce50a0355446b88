"""A sweep to submit to a test's cluster, and what one wants to know of its runs."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from configs.prepared import read_summary
from configs.schema import RunConfig
from configs.sweep import expand
from configs.sweep_cell import Cell
from slurm import submit as submit_command
from slurm.cells import queue, read_submissions, standings
from tests.cluster import Cluster, why_not
from tests.processes import losses

# Where SLURM must be (REQUIRE_SLURM, set by .ci/run), its absence is a failure; elsewhere a skip that says why.
absent = "" if "REQUIRE_SLURM" in os.environ else why_not()
# A hang is told late: machines differ, and share their cores.
on_slurm = [pytest.mark.engine, pytest.mark.xdist_group("slurm"), pytest.mark.timeout(1800)]
on_slurm.append(pytest.mark.skipif(bool(absent), reason=absent))
SHORT: dict[str, Any] = {"schedule": {"steps": 12}, "log": {"every": 1}, "checkpoint": {"every": 4}}
MIDDLE: dict[str, Any] = {
    "schedule": {"steps": 2000},  # long enough for what a test does in its midst
    "data": {"epochs": 100},
    "log": {"every": 1},
    "checkpoint": {"every": 100, "keep_last": 2},
}
SITE: dict[str, Any] = {"cpus_per_rank": 1, "signal_s": 60, "time": "30"}


class Room:
    """A sweep in a folder whose name is everything a shell could trip over."""

    def __init__(self, path: Path, config: RunConfig, **sweep: Any) -> None:
        self.path = path / 'it\'s a "room" $(touch oops) `touch oops`; #1'
        self.path.mkdir()
        self.runs = self.path / "runs"
        (self.path / "base.json").write_text(config.model_dump_json())
        self.sweep = self.path / "sweep.json"
        self.sweep.write_text(json.dumps({"name": "wd", "base": "base.json", **sweep}))
        self.site = self.path / "site.json"
        self.set_site()

    def set_site(self, **fields: Any) -> None:
        self.site.write_text(json.dumps(SITE | fields))

    def submit(self, *options: str) -> list[str]:
        """Returns the jobs submitted."""
        before = len(read_submissions(self.root))
        assert submit_command.main([str(self.sweep), "--runs", str(self.runs), "--site", str(self.site), *options]) == 0
        return [row["job"] for row in read_submissions(self.root)[before:] if "job" in row]

    @property
    def root(self) -> Path:
        return self.runs / "wd"

    def cells(self, runs: Path | None = None) -> list[Cell]:
        return [cell for cells in expand(self.sweep, runs or self.runs, read_summary)[1].values() for cell in cells]

    def states(self) -> list[str]:
        return [known.state for known in standings(self.cells(), queue(self.root)).values()]

    def logs(self) -> str:
        return "\n".join(
            f"{path}:\n{path.read_text()}" for path in [*self.root.glob("slurm/*.log"), *self.root.glob("*/logs/*")]
        )

    def wait(self, slurm: Cluster, jobs: list[str], timeout_s: float = 800) -> None:
        deadline = time.monotonic() + timeout_s
        while any(slurm.active(job) for job in jobs):
            assert time.monotonic() < deadline, f"{self.states()}\n{slurm.ask('squeue')}\n{self.logs()}"
            time.sleep(0.3)


def finals(cell: Cell) -> tuple[list[tuple[int, float]], dict[str, Any]]:
    """Losses and the hashes of the last checkpoint's files."""
    last = max((cell.folder / "checkpoints").glob("step_*/manifest.json"))
    return losses(cell.folder), json.loads(last.read_text())["files"]


def starts(cell: Cell) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (cell.folder / "starts.jsonl").read_text().splitlines()]
