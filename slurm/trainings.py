"""Who trains on this machine: the processes of train.py, by the run folder they write."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from record.files import read_dict
from record.lock import NOTE


@dataclass(frozen=True)
class Training:
    """A process. Its number may be given again; with the time it `began`, in ticks since boot, it names one process only."""

    pid: int
    began: str
    devices: str  # its CUDA_VISIBLE_DEVICES
    job: str  # its SLURM_JOB_ID

    @property
    def lives(self) -> bool:
        return _began(self.pid) == self.began

    @property
    def began_at(self) -> float:
        """In seconds since the epoch."""
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        return time.time() - uptime + int(self.began) / os.sysconf("SC_CLK_TCK")


def trainings_here() -> dict[Path, list[Training]]:
    """Run folder → the processes that train there, also those that are still importing and hold no lock yet.

    Only processes that were told their folder by --run-dir, as this project's commands tell them. What such a process starts
    (git, a compiler) has its command line until it is that program, and does not train.
    """
    by_folder: dict[Path, list[Training]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_text(errors="replace")
            folder = _run_folder(line.split("\0"))
            if folder and not _is_a_copy(entry.name, line) and (training := training_of(int(entry.name))):
                by_folder.setdefault(Path(os.readlink(entry / "cwd"), folder).resolve(), []).append(training)
        except OSError:  # it has ended, or is another user's
            continue
    return by_folder


def writer_here(folder: Path) -> Training | None:
    """The process on this machine that says in the folder that it writes there; None where there is none.

    A process that is younger than what it is said to have written has only got the number of one that has ended.
    """
    row = read_dict(folder / NOTE)
    pid = row.get("pid")
    if row.get("host") != socket.gethostname() or not isinstance(pid, int) or not (training := training_of(pid)):
        return None
    try:
        since = datetime.fromisoformat(str(row.get("since"))).timestamp()
    except ValueError:
        return None
    return training if training.began_at < since + 1 else None  # `since` is in whole seconds


def training_of(pid: int) -> Training | None:
    """None if there is no such process."""
    began = _began(pid)
    if not began:
        return None
    try:
        text = Path(f"/proc/{pid}/environ").read_text(errors="replace")
    except OSError:  # another user's
        text = ""
    env = dict(word.split("=", 1) for word in text.split("\0") if "=" in word)
    return Training(pid, began, env.get("CUDA_VISIBLE_DEVICES", ""), env.get("SLURM_JOB_ID", ""))


def _run_folder(words: list[str]) -> str:
    if not any(word == "train.py" or word.endswith("/train.py") for word in words):
        return ""
    after = [words[i + 1] for i, word in enumerate(words[:-1]) if word == "--run-dir"]
    after += [word.removeprefix("--run-dir=") for word in words if word.startswith("--run-dir=")]
    return after[-1] if after else ""


def _is_a_copy(pid: str, line: str) -> bool:
    """Whether its parent has its command line too: it is to become another program."""
    try:
        return Path(f"/proc/{_stat(pid)[1]}/cmdline").read_text(errors="replace") == line
    except OSError:  # it or its parent has ended, or the parent is outside this container
        return False


def _began(pid: int) -> str:
    """When a process began, in ticks since boot; empty if there is none, or only what is left of one that has ended."""
    try:
        fields = _stat(pid)
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _stat(pid: int | str) -> list[str]:
    """The fields of /proc/PID/stat behind its name: state, parent, …

    Raises:
        OSError: there is no such process.
    """
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
