"""Start train.py as its users do, wait for what a test needs, and see what a run's processes are."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from record.metrics import read_metrics
from tests.ranks import free_port
from tests.warm import WarmProcess

ROOT = Path(__file__).resolve().parent.parent
ConfigFile = Callable[..., Path]
Process = subprocess.Popen[str] | WarmProcess
LONG: dict[str, Any] = {"schedule": {"steps": 20_000}, "data": {"epochs": 100}, "log": {"every": 1}}


def start(
    config: Path,
    run_dir: Path,
    *options: str,
    ranks: int = 1,
    launcher: list[str] | None = None,
    cold: bool = False,
    cwd: Path = ROOT,
    **env: str,
) -> Process:
    """One process; or the deepspeed launcher with several ranks on a port of its own, or with the options of `launcher`.

    One process is forked from one with the imports done (tests/warm.py), unless it is to be `cold` or has variables of its own.
    """
    words = [str(ROOT / "train.py"), "--config", str(config), "--run-dir", str(run_dir), *options]
    if launcher is None and ranks > 1:
        launcher = ["--num_accelerators", str(ranks), "--master_port", env.pop("master_port", str(free_port()))]
    variables = {**os.environ, "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", **env}
    if launcher is None and not cold and not env:
        return WarmProcess(words, cwd, variables)
    command = [sys.executable]
    if launcher is not None:
        command += [str(Path(sys.executable).with_name("deepspeed")), *launcher]
    return subprocess.Popen(
        [*command, *words], cwd=cwd, env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def finish(process: Process, code: int = 0) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == code, output
    return output


def start_ranks(ranks: int, config: Path, run_dir: Path, *options: str) -> list[Process]:
    """Ranks with the variables of a launcher but without one, which would import everything: for what they do together."""
    if ranks == 1:
        return [start(config, run_dir, *options)]
    group = {"WORLD_SIZE": str(ranks), "LOCAL_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1"}
    group["MASTER_PORT"] = str(free_port())
    processes: list[Process] = []
    for rank in range(ranks):
        words = [str(ROOT / "train.py"), f"--local_rank={rank}", "--config", str(config), "--run-dir", str(run_dir)]
        variables = {**os.environ, **group, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        processes.append(WarmProcess([*words, *options], ROOT, variables))
    return processes


def finish_all(processes: list[Process], code: int = 0, timeout_s: float = 120) -> str:
    """What they print, by rank; every one must end with `code`."""
    with ThreadPoolExecutor(len(processes)) as readers:
        outputs = list(readers.map(lambda process: process.communicate(timeout=timeout_s)[0], processes))
    assert {process.returncode for process in processes} == {code}, outputs
    return "".join(outputs)


def finish_ranks(ranks: int, config: Path, run_dir: Path, *options: str, code: int = 0) -> str:
    return finish_all(start_ranks(ranks, config, run_dir, *options), code)


def status(run_dir: Path) -> dict[str, Any]:
    return dict(json.loads((run_dir / "status.json").read_text()))


def rows_of(run_dir: Path) -> dict[int, dict[str, Any]]:
    """Step → row of metrics.jsonl."""
    return {row["step"]: row for row in read_metrics(run_dir / "metrics.jsonl")[0]}


def losses(run_dir: Path) -> list[tuple[int, float]]:
    return [
        (row["step"], row["train/loss"]) for row in read_metrics(run_dir / "metrics.jsonl")[0] if "train/loss" in row
    ]


def wait(condition: Callable[[], Any], process: subprocess.Popen[Any] | None = None, timeout_s: float = 240) -> None:
    """Until `condition` holds, while `process` lives."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert process is None or process.poll() is None, f"it ended too early: {process.communicate()[0]}"
        assert time.monotonic() < deadline, f"waited {timeout_s} s in vain"
        time.sleep(0.05)


def processes_with(text: str) -> dict[int, str]:
    """Pid → command line of every process that has `text` in it."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().decode(errors="replace").replace("\0", " ")
        except OSError:
            continue
        if text in command:
            found[int(path.parent.name)] = command
    return found


def parent(pid: int) -> int:
    """The process that started this one; 0 if it has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


@contextmanager
def terminal() -> Iterator[tuple[dict[str, Any], Callable[[], None]]]:
    """What makes a process the one of a terminal, for Popen, and what closes this terminal as its window is closed."""
    ours, theirs = pty.openpty()
    closed = threading.Event()

    def own() -> None:
        os.setsid()
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

    def read() -> None:  # as a window does; nobody would read a full terminal, and its process would wait
        while not closed.wait(0.05):
            with suppress(BlockingIOError):
                os.read(ours, 1 << 16)
        os.close(ours)

    def close() -> None:
        os.close(theirs)
        closed.set()
        reader.join()

    os.set_blocking(ours, False)
    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield {"stdin": theirs, "stdout": theirs, "stderr": theirs, "preexec_fn": own}, close
    finally:
        if not closed.is_set():
            close()
