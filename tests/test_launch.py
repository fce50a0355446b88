"""How a run's process begins, and what its surroundings may do to it: threads, signals while it starts, a closed terminal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine import memory
from engine.launch import cpu_threads
from engine.stopping import StopRequest
from record.environment import environment, usable_cores
from record.lock import is_running
from tests.processes import LONG, ROOT, ConfigFile, finish, losses, processes_with, start, status, terminal, wait

engine = pytest.mark.engine


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if a given number of threads does not win, OMP_NUM_THREADS is not obeyed, or nonsense in it is."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert cpu_threads(None, 3) == (2, "cores over local ranks")
    assert cpu_threads(None, 16) == (1, "cores over local ranks")
    for text in ("5", " 5 ", "5,2"):
        monkeypatch.setenv("OMP_NUM_THREADS", text)
        assert cpu_threads(None, 3) == (5, "OMP_NUM_THREADS")
    assert cpu_threads(7, 3) == (7, "parallel.threads_per_rank")
    for text in ("0", "many", "-1"):
        monkeypatch.setenv("OMP_NUM_THREADS", text)
        with pytest.raises(ValueError, match=f"OMP_NUM_THREADS is '{text}', expected a number"):
            cpu_threads(None, 3)


def test_systems_that_are_not_linux(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Breaks if a run on macOS, or in a container that forbids /proc, ends in a traceback, or takes a peak of memory that
    was never set back for its own without a word."""
    cpu = torch.device("cpu")
    before = memory.peak_bytes(cpu)
    monkeypatch.delattr("os.sched_getaffinity")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(memory, "CLEAR_REFS", Path("/no/such/folder/clear_refs"))
    monkeypatch.setattr(memory, "STATUS", Path("/no/such/folder/status"))
    assert usable_cores() == environment()["cpus"] == os.cpu_count()
    assert cpu_threads(None, 1) == (os.cpu_count(), "cores over local ranks")
    with caplog.at_level("INFO"):
        memory.forget_peak(cpu)
        memory.forget_peak(cpu)
    assert caplog.text.count("cannot be set back here") == 1
    assert memory.peak_bytes(cpu) >= before // 2, "the same unit"


def test_processes_are_seen() -> None:
    """Breaks if a writer that lives, or another user's, is taken for dead, and its run started a second time."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert [is_running(pid) for pid in (os.getpid(), 1)] == [True, True]
    assert [is_running(pid) for pid in (ended.pid, None, "1", 0, -1, 1 << 40)] == [False] * 6


def test_the_first_rank_looks_for_the_stop_file(tmp_path: Path) -> None:
    """Breaks if the stop file is not seen by rank 0, or is looked for by every rank of a shared file system."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
    handlers = {number: signal.getsignal(number) for number in numbers}
    try:
        requests = [StopRequest(tmp_path / "stop", [], first=first) for first in (True, False)]
        assert [request.pending for request in requests] == [False, False]
        (tmp_path / "stop").touch()
        assert [request.pending for request in requests] == [True, False]
        assert requests[0].reason == f"stop file {tmp_path / 'stop'}"
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@engine
def test_threads_of_a_run(config_file: ConfigFile, tmp_path: Path) -> None:
    """Breaks if a run on a shared machine takes every core although OMP_NUM_THREADS says one, or does not say what it took."""
    output = finish(start(config_file(), tmp_path / "run", OMP_NUM_THREADS="1"))
    assert "1 CPU thread(s) per rank, from OMP_NUM_THREADS" in output
    row = json.loads((tmp_path / "run" / "starts.jsonl").read_text())
    assert (row["threads_per_rank"], row["threads_from"]) == (1, "OMP_NUM_THREADS")
    assert (row["data"]["source"], row["data"]["tokenizer"], row["data"]["vocab_size"]) == (
        "text",
        "sentencepiece",
        512,
    )
    assert "expected a number of threads" in finish(start(config_file(), tmp_path / "none", OMP_NUM_THREADS="all"), 2)
    assert not (tmp_path / "none").exists()


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether the process has a handler for a signal."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    caught = next(line for line in lines if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


@engine
def test_signals_during_the_imports(config_file: ConfigFile, tmp_path: Path) -> None:
    """Breaks if a signal that comes while torch is imported leaves a run that was never heard of, or takes from a run what
    it had reached: its step, or that it is done."""
    config, folder = config_file(), tmp_path / "run"
    run = start(config, folder, cold=True)
    wait(lambda: catches(run.pid, signal.SIGTERM), run)
    run.send_signal(signal.SIGUSR1)
    assert "while it started" in finish(run, 75)
    assert (status(folder)["state"], status(folder)["step"], status(folder)["reason"]) == ("preempted", 0, "SIGUSR1")
    assert not (folder / "checkpoints").exists(), "it trained although it was asked to stop"
    finish(start(config, folder))
    run = start(config, folder, cold=True)
    wait(lambda: catches(run.pid, signal.SIGTERM), run)
    run.send_signal(signal.SIGTERM)
    finish(run, 75)
    assert status(folder)["state"] == "done"


@engine
def test_one_of_two_ranks_is_signalled_during_the_imports(config_file: ConfigFile, tmp_path: Path) -> None:
    """Breaks if a rank that was asked to stop while it started leaves the other waiting for it."""
    run, folder = start(config_file(), tmp_path / "run", ranks=2), tmp_path / "run"

    def second() -> int:
        found = [pid for pid, command in processes_with("--local_rank=1").items() if str(folder) in command]
        return next((pid for pid in found if catches(pid, signal.SIGUSR1)), 0)

    wait(second, run)
    os.kill(second(), signal.SIGUSR1)
    run.communicate(timeout=60)
    assert (status(folder)["state"], status(folder)["reason"]) == ("preempted", "SIGUSR1")
    assert not processes_with(str(folder))


@engine
def test_a_closed_terminal(config_file: ConfigFile, tmp_path: Path) -> None:
    """Breaks if closing the terminal a run was started from loses its steps, or its last words to nobody end it as failed."""
    folder = tmp_path / "run"
    command = [sys.executable, "train.py", "--config", str(config_file(LONG)), "--run-dir", str(folder)]
    with terminal() as (streams, close):
        run = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "DS_ACCELERATOR": "cpu"}, **streams)
        wait(lambda: len(losses(folder)) > 20, run)
        close()
        assert run.wait(60) == 75
    assert (status(folder)["state"], status(folder)["reason"]) == ("preempted", "SIGHUP")
    assert (folder / "checkpoints" / f"step_{status(folder)['step']:08d}" / "manifest.json").exists()


@engine
def test_nohup(config_file: ConfigFile, tmp_path: Path) -> None:
    """Breaks if a run that was started to outlive its terminal ends with it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    run = start(config_file({"schedule": {"steps": 40}}), tmp_path / "run", cold=True)
    signal.signal(signal.SIGHUP, before)
    wait(lambda: catches(run.pid, signal.SIGTERM), run)
    run.send_signal(signal.SIGHUP)
    finish(run)
    assert status(tmp_path / "run")["state"] == "done"
