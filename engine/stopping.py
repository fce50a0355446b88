"""Requests to stop: a signal, a `stop` file in the run folder, a launcher that died.

A request is only noted here. The ranks agree on it at the end of an update (engine/engine.py) and save one checkpoint.
Needs no torch: to import torch takes seconds, and a signal may come in them.
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
    """What asked this rank to stop: `reason`, which is empty until something does."""

    def __init__(self, stop_file: Path, ancestors: list[int], first: bool = True) -> None:
        """`first`: this is rank 0, which looks for the stop file. It asks for all: the ranks agree on every wish to stop.

        A look by each of 64 ranks after every update would be a load on a shared file system.
        """
        self.reason = ""
        self._looks_for_file = first
        self._stop_file = stop_file
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
            # Under nohup a closed terminal is to be ignored, and stays so.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._on_signal)
        if ancestors:
            threading.Thread(target=self._watch, args=(ancestors,), name="launcher-watch", daemon=True).start()

    def clear_file(self) -> None:
        """Remove the stop file. Its wish is fulfilled, and the next start is to train."""
        self._stop_file.unlink(missing_ok=True)

    @property
    def pending(self) -> bool:
        """Whether something has asked this rank to stop; looks for the stop file, on rank 0."""
        if not self.reason and self._looks_for_file and self._stop_file.exists():
            self.reason = f"stop file {self._stop_file}"
        return bool(self.reason)

    def _on_signal(self, number: int, _frame: object) -> None:
        # The first signal is the reason: after Ctrl-C the launcher sends SIGTERM as well.
        self.reason = self.reason or signal.Signals(number).name

    def _watch(self, ancestors: list[int]) -> None:
        """Wait until one of these processes has died; then ask to stop, and end the process if that takes too long."""
        # A killed launcher tells its ranks nothing, and they would train on, holding the device.
        while all(_alive(pid) for pid in ancestors) and os.getppid() == ancestors[0]:
            time.sleep(POLL_S)
        self.reason = self.reason or "the launcher died"
        # Other ranks may be dead already, and a collective with them never ends. No cleanup: that would wait for it too.
        time.sleep(GRACE_S)
        os._exit(1)


def launcher_ancestors() -> list[int]:
    """Process ids of the launcher and of DeepSpeed's runner above it; empty for a process that nobody launched."""
    if "RANK" not in os.environ:
        return []
    # DeepSpeed's runner starts a launcher, which starts the ranks; torchrun and srun end their ranks themselves.
    parent = os.getppid()
    command = Path(f"/proc/{parent}/cmdline")
    if not command.exists() or b"launch" not in command.read_bytes():
        return []
    return [parent, _parent_of(parent)]


def _parent_of(pid: int) -> int:
    # The second field is the program's name in parentheses, with any characters in it: fields are counted after the last ")".
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _alive(pid: int) -> bool:
    """Whether a process runs. A zombie (Z) has ended, and only its parent has not looked yet."""
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
