"""A sweep on this machine: what a killed runner leaves, cells that somebody else trains, threads, why a start failed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from configs.errors import InputError
from configs.prepared import read_summary
from configs.schema import RunConfig
from configs.sweep import expand
from configs.sweep_cell import Cell
from record.lock import LOCK, hold
from slurm import local
from slurm import submit as submit_command
from slurm.cells import aftermath, standings
from slurm.refusals import headline, how_it_ended, refusal, why_it_ended
from slurm.trainings import trainings_here
from tests.processes import ROOT, losses, parent, processes_with, terminal, wait

pytestmark = pytest.mark.slow  # by its length alone: `make check` takes a minute


@pytest.fixture
def sweep(tmp_path: Path, tiny_config: Callable[..., RunConfig]) -> Callable[..., tuple[Path, list[Cell]]]:
    """Writes a sweep over seeds; gives its file and its cells."""

    def write(seeds: int, *overrides: dict[str, Any]) -> tuple[Path, list[Cell]]:
        (tmp_path / "base.json").write_text(tiny_config({"log": {"every": 1}}, *overrides).model_dump_json())
        path = tmp_path / "sweep.json"
        path.write_text(json.dumps({"name": "wd", "base": "base.json", "axes": {"seeds.*": [*range(seeds)]}}))
        return path, expand(path, tmp_path / "runs", read_summary)[1]["main"]

    return write


def runner(path: Path, jobs: int = 2) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "slurm.submit", str(path), "--runs", str(path.parent / "runs")]
    return subprocess.Popen(
        [*command, "--local", "--jobs", str(jobs)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip


def trainings(path: Path) -> set[int]:
    """Without what a training starts itself (git, a compiler): until it is that program, it has the training's command line."""
    found = {pid for pid, words in processes_with(str(path.parent / "runs")).items() if "train.py" in words}
    return {pid for pid in found if parent(pid) not in found}


@pytest.mark.engine
def test_a_killed_runner(sweep: Callable[..., tuple[Path, list[Cell]]]) -> None:
    """Breaks if the trainings that a killed runner leaves, importing still, do not count among those of the next one, are
    started a second time, or do not hear that it is asked to stop."""
    path, cells = sweep(3, {"schedule": {"steps": 60}})
    first = runner(path)
    wait(lambda: len(trainings(path)) == 2, first)
    left = trainings(path)
    first.kill()
    first.wait()
    second, most = runner(path), set[int]()
    while second.poll() is None:
        now = trainings(path)
        assert len(now) <= 2, now
        most |= now
        time.sleep(0.1)
    words = second.communicate()[0]
    assert second.returncode == 0, words
    assert len(most) == 3
    assert left < most
    for cell, pid in zip(cells, sorted(left), strict=False):
        assert f"{cell.folder}: in training already, by process {pid}; it takes a place of the 2" in words
        assert len((cell.folder / "starts.jsonl").read_text().splitlines()) == 1
    assert [known.state for known in standings(cells).values()] == ["done"] * 3


def test_what_a_training_starts_is_no_training(tmp_path: Path) -> None:
    """Breaks if a process that a training has forked, and that is not yet the program it will be, counts as a second one."""
    code = "import subprocess; [subprocess.run(['true']) for _ in range(300)]"
    with subprocess.Popen([sys.executable, "-c", code, "train.py", "--run-dir", str(tmp_path)]) as training:
        wait(lambda: trainings_here().get(tmp_path))
        while training.poll() is None:
            assert {found.pid for found in trainings_here().get(tmp_path, [])} <= {training.pid}


@pytest.mark.engine
def test_a_stopped_runner_tells_those_it_found(sweep: Callable[..., tuple[Path, list[Cell]]]) -> None:
    """Breaks if a hangup of the runner loses the steps of its trainings, also of one that an earlier runner had started."""
    path, (cell,) = sweep(1, {"schedule": {"steps": 20_000}, "data": {"epochs": 100}})
    first = runner(path, 1)
    wait(lambda: len(losses(cell.folder)) > 5, first)
    first.kill()
    first.wait()
    second = runner(path, 1)
    assert second.stdout is not None
    while "in training already" not in (line := second.stdout.readline()):
        assert line, "it ended"
    second.send_signal(signal.SIGHUP)
    words = second.communicate(timeout=60)[0]
    assert second.returncode == 75, words
    assert standings([cell])[cell.folder].state == "preempted"
    assert standings([cell])[cell.folder].step > 0


@pytest.mark.engine
def test_a_runner_whose_terminal_is_closed(sweep: Callable[..., tuple[Path, list[Cell]]]) -> None:
    """Breaks if the last words of a runner, which nobody hears, end it before its trainings have saved."""
    path, cells = sweep(2, {"schedule": {"steps": 20_000}, "data": {"epochs": 100}})
    command = [sys.executable, "-m", "slurm.submit", str(path), "--runs", str(path.parent / "runs"), "--local"]
    with terminal() as (streams, close):
        run = subprocess.Popen([*command, "--jobs", "2"], cwd=ROOT, **streams)
        wait(lambda: all(len(losses(cell.folder)) > 5 for cell in cells), run)
        close()
        assert run.wait(60) == 75
    for known in standings(cells).values():
        assert known.state == "preempted"
        assert known.step > 0
    assert not trainings(path)


def test_a_cell_that_another_machine_trains(
    sweep: Callable[..., tuple[Path, list[Cell]]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks if a cell held elsewhere is started here, takes a place, counts as failed, or is passed over without a word."""
    path, (cell,) = sweep(1)
    cell.folder.mkdir(parents=True)
    note = cell.folder / ".writer.json"
    note.write_text(json.dumps({"host": "elsewhere", "pid": 4711, "job": None, "since": "2026-01-01T00:00:00+00:00"}))
    assert standings([cell])[cell.folder].state == "running"
    monkeypatch.setattr("slurm.cells.ALIVE_S", 3.0)  # after which it counts as dead
    assert local.run_local(path.parent / "runs" / "wd", [cell], 1) == 1
    words = capsys.readouterr().out
    assert f"{cell.folder}: held by process 4711 on elsewhere (since 2026-01-01T00:00:00+00:00); not run here" in words
    assert not (cell.folder / "logs").exists()
    assert not (cell.folder / "refused.json").exists()


def test_an_attempt_that_finds_its_cell_held(tmp_path: Path) -> None:
    """Breaks if an attempt that came too late counts as the failure of a run that somebody else trains."""
    log = tmp_path / "rank_0000.log"
    log.write_text(f"{headline('job 1')}error: process 1 on a is writing it\n")
    with hold(tmp_path):
        word, why = aftermath(tmp_path, time.time(), [log], None, "")
    assert word == "held"
    assert f"held by process {os.getpid()}" in why
    assert not refusal(tmp_path, None)
    assert aftermath(tmp_path, time.time(), [log], None, "") == ("refused", "error: process 1 on a is writing it")
    assert refusal(tmp_path, None) == "error: process 1 on a is writing it"


def test_who_is_refused_removes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if a command that comes a moment too late removes the lock or the folder of the one that was first, which has
    written nothing else yet."""
    root, first = tmp_path / "runs" / "sweep", ExitStack()

    @contextmanager
    def hold_second(folder: Path, act: str, instead: str) -> Iterator[None]:
        folder.mkdir(parents=True)
        first.enter_context(FileLock(folder / LOCK))
        with hold(folder, act, instead):
            yield

    monkeypatch.setattr(submit_command, "hold", hold_second)
    with first:
        with pytest.raises(InputError, match="one command at a time"), submit_command.sweep_folder(root):
            pass
        assert (root / LOCK).is_file()


HEAD = headline("job 25_1, restart 1")
OLD = f"{HEAD}error: of an older attempt\n"


@pytest.mark.parametrize(
    ("logs", "slurm", "code", "why"),
    [
        ([HEAD], "", 137, "it ended by SIGKILL without a word"),
        ([OLD + HEAD], "", -15, "it ended by SIGTERM without a word"),
        ([], "", 2, "it ended with exit code 2 without a word"),
        ([OLD + HEAD + "building\nbar: 5%|  \r\n"], "", 0, "it ended and left no reason; its last line: bar: 5%|"),
        ([OLD + HEAD + "error: no data\nbye\n"], "", 2, "error: no data"),
        ([HEAD, HEAD + "error: no data on this node\n"], "", 2, "error: no data on this node"),
        (
            [HEAD + "Traceback (most recent call last):\n  File x\n[rank0]: torch.OutOfMemoryError: CUDA out\n[rank0]: see\n"],
            "",
            1,
            "torch.OutOfMemoryError: CUDA out",
        ),
        (
            [],
            OLD + HEAD + "ready\nsrun: error: n1: Exited\nslurmstepd-n1: error: execve(): apptainer: No such file\n",
            2,
            "it ended with exit code 2; slurmstepd-n1: error: execve(): apptainer: No such file",
        ),
    ],
    # Not the texts: a headline has the time of day, and workers that collect at other seconds would have other tests.
    ids=["killed", "terminated", "code", "last-line", "error", "another-rank", "traceback", "slurm"],
)  # fmt: skip
def test_why_a_start_failed(tmp_path: Path, logs: list[str], slurm: str, code: int, why: str) -> None:
    """Breaks if a failed start gives a log's headline, or the reason of an older attempt, as its reason, or knows none that
    stands in another rank's log or in SLURM's."""
    for rank, text in enumerate(logs):
        (tmp_path / f"rank_{rank:04d}.log").write_text(text)
    (tmp_path / "job.log").write_text(slurm)
    assert why_it_ended(sorted(tmp_path.glob("rank_*")), tmp_path / "job.log", how_it_ended(code)) == why


def test_shares_of_a_cell(sweep: Callable[..., tuple[Path, list[Cell]]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if the local runner takes the place of a configured number of threads, gives a run more than its share of the
    cores, or more than the shell allows, or lets each of several runs on one GPU take all of its memory."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    _, (free,) = sweep(1)
    _, (given,) = sweep(1, {"parallel": {"threads_per_rank": 6}})
    assert [local.threads_of(free, jobs) for jobs in (1, 2, 3, 16)] == ["8", "4", "2", "1"]
    assert local.threads_of(given, 2) == "6"
    assert "more threads than cores" in local._shares([free, given], 2)
    assert "more threads" not in local._shares([free], 2)
    shared = ["--set", "batch.memory_gib=8"]
    _, (chosen,) = sweep(1, {"batch": {"micro_batch": None}})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert [local.bounded_memory(chosen, jobs) for jobs in (1, 2, 3)] == [[], [], shared], "of two GPUs"
    assert local.bounded_memory(free, 3) == [], "its micro-batch is given"
    assert "they share GPUs" in local._shares([chosen], 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert local.bounded_memory(chosen, 3) == []
    for text, threads in (("3", "3"), ("5", "4"), ("2,1", "2"), ("all", "all")):
        monkeypatch.setenv("OMP_NUM_THREADS", text)
        assert local.threads_of(free, 2) == threads
        assert local.threads_of(given, 2) == "6"
