"""Why an attempt to run a cell came to nothing: read from what it printed, and kept in the run folder until it starts."""

from __future__ import annotations

import re
import signal
import socket
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from record.files import read_dict, write_json

REFUSAL = "refused.json"  # in a run folder: why its latest attempt did not start
TAIL = 1 << 16  # bytes from a log's end that are read
HEAD = re.compile(r"--- \d{4}-\d\d-\d\dT")
RANK = re.compile(r"^\[rank\d+\]: ?")
RAISED = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit)(:|$)")


def headline(what: str) -> str:
    """The first line of an attempt in a log that has those before it too."""
    return f"--- {datetime.now(UTC).isoformat(timespec='seconds')} {what}, host {socket.gethostname()}\n"


def how_it_ended(code: int) -> str:
    """An exit code in words: Popen's, negative after a signal, or a shell's, above 128 then; empty for 0."""
    number = -code if code < 0 else code - 128
    try:
        return f"by {signal.Signals(number).name}"
    except ValueError:
        return f"with exit code {code}" if code else ""


def why_it_ended(logs: list[Path], cluster_log: Path | None, ended: str) -> str:
    """The reason that the latest attempt gives in the logs of its ranks, or SLURM in the job's own; else how it ended.

    The first log need not be the one that knows: the data may be missing on the second node only.
    """
    attempts = [_latest_attempt(log) for log in logs]
    searches: list[Callable[[list[str]], str]] = [_refused, _raised]
    for search in searches:
        if reason := next(filter(None, map(search, attempts)), ""):
            return reason
    if cluster_log is not None and (reason := _said_by_slurm(_latest_attempt(cluster_log))):
        return f"it ended {ended}; {reason}" if ended else reason
    last = next((lines[-1] for lines in attempts if lines), "")
    words = f"it ended {ended}" if ended else "it ended"
    return f"{words} and left no reason; its last line: {last}" if last else f"{words} without a word"


def note_refusal(folder: Path, why: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)  # an attempt that SLURM could not begin has made none
    write_json(folder / REFUSAL, {"why": why, "updated": datetime.now(UTC).isoformat(timespec="seconds")})


def refusal(folder: Path, status: dict[str, Any] | None) -> str:
    """Why the latest attempt was refused; empty if it was not."""
    note = read_dict(folder / REFUSAL)
    return "" if status is not None and status["updated"] > note.get("updated", "") else str(note.get("why", ""))


def _latest_attempt(log: Path) -> list[str]:
    """What the latest attempt has said, without empty lines and its headline."""
    if not log.is_file():
        return []
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL))
        text = file.read().decode(errors="replace")
    lines: list[str] = []
    for line in text.splitlines():
        if HEAD.match(line):
            lines = []
        elif line.strip():
            lines.append(RANK.sub("", line.strip()))
    return lines


def _refused(lines: list[str]) -> str:
    """What train.py says of bad input."""
    return next((line for line in lines if line.startswith("error: ")), "")


def _raised(lines: list[str]) -> str:
    """The last exception that Python names."""
    return next((line for line in reversed(lines) if RAISED.match(line)), "")


def _said_by_slurm(lines: list[str]) -> str:
    """What slurmstepd knows of a task (no such program, out of memory), else what srun saw of its end."""
    for word in (
        r"slurmstepd\S*: error: (?!\*\*\*)",
        "srun: error: ",
    ):  # with *** it ends the tasks beside a failed one
        if line := next((line for line in lines if re.match(word, line)), ""):
            return line
    return ""
