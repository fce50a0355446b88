"""Requests to stop: signals, a `stop` file in the run folder, a launcher that died. Needs no torch: it is there before torch is.

A request is only noted here; the ranks agree on it at the end of an update (engine/engine.py) and save one checkpoint.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

GRACE_S = 45.0  # after its launcher died, a rank that cannot reach a step's end exits by itself
POLL_S = 1.0


class StopRequest:
    """`reason` is empty until something asks this rank to stop."""

    def __init__(self, stop_file: Path, ancestors: list[int], first: bool = True) -> None:
        """`first`: this is rank 0, which looks for the stop file. It asks for all: the ranks agree on every wish to stop.

        A look by each of 64 ranks after every update would be a load on a shared file system.
        """
        self.reason = ""
        self._looks_for_file = first
        self._stop_file = stop_file
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # under nohup it stays ignored
                signal.signal(number, self._on_signal)
        if ancestors:
            threading.Thread(target=self._watch, args=(ancestors,), name="launcher-watch", daemon=True).start()

    def clear_file(self) -> None:
        """Remove the stop file, whose wish is fulfilled: the next start shall train."""
        self._stop_file.unlink(missing_ok=True)

    @property
    def pending(self) -> bool:
        if not self.reason and self._looks_for_file and self._stop_file.exists():
            self.reason = f"stop file {self._stop_file}"
        return bool(self.reason)

    def _on_signal(self, number: int, _frame: object) -> None:
        self.reason = self.reason or signal.Signals(number).name  # the launcher repeats Ctrl-C as SIGTERM

    def _watch(self, ancestors: list[int]) -> None:
        while all(_alive(pid) for pid in ancestors) and os.getppid() == ancestors[0]:
            time.sleep(POLL_S)
        self.reason = self.reason or "the launcher died"
        time.sleep(GRACE_S)
        os._exit(1)


def launcher_ancestors() -> list[int]:
    """The launcher, and DeepSpeed's runner above it; empty for a process that nobody launched."""
    if "RANK" not in os.environ:
        return []
    # DeepSpeed's runner starts a launcher, which starts the ranks; torchrun and srun end their ranks themselves.
    parent = os.getppid()
    command = Path(f"/proc/{parent}/cmdline")
    if not command.exists() or b"launch" not in command.read_bytes():
        return []
    return [parent, _parent_of(parent)]


def _parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def leave(code: int) -> NoReturn:
    """End the process without tearing down the interpreter, all written and said.

    Gloo's worker threads may still hold tensors then, and abort the process about once in 200 ends although the group was destroyed
    (pytorch/pytorch#179291): a finished run would count as failed.
    """
    # What is buffered is written now, for nothing runs after this.
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # a terminal that was closed
            stream.flush()
    os._exit(code)
