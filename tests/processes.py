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
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from record.metrics import read_metrics
from tests.ranks import free_port

ROOT = Path(__file__).resolve().parent.parent
ConfigFile = Callable[..., Path]
LONG: dict[str, Any] = {"schedule": {"steps": 20_000}, "data": {"epochs": 100}, "log": {"every": 1}}


def start(
    config: Path,
    run_dir: Path,
    *options: str,
    ranks: int = 1,
    launcher: list[str] | None = None,
    cwd: Path = ROOT,
    **env: str,
) -> subprocess.Popen[str]:
    """One process; or the deepspeed launcher with several ranks on a port of its own, or with the options of `launcher`."""
    if launcher is None and ranks > 1:
        launcher = ["--num_accelerators", str(ranks), "--master_port", env.pop("master_port", str(free_port()))]
    command = [sys.executable]
    if launcher is not None:
        command += [str(Path(sys.executable).with_name("deepspeed")), *launcher]
    return subprocess.Popen(
        [*command, str(ROOT / "train.py"), "--config", str(config), "--run-dir", str(run_dir), *options],
        cwd=cwd,
        env={**os.environ, "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", **env},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    output, _ = process.communicate(timeout=120)
    assert process.returncode == code, output
    return output


def status(run_dir: Path) -> dict[str, Any]:
    return dict(json.loads((run_dir / "status.json").read_text()))


def losses(run_dir: Path) -> list[tuple[int, float]]:
    return [
        (row["step"], row["train/loss"]) for row in read_metrics(run_dir / "metrics.jsonl")[0] if "train/loss" in row
    ]


def wait(condition: Callable[[], Any], process: subprocess.Popen[Any] | None = None, timeout_s: float = 60) -> None:
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
