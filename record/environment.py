"""What a run ran on: versions, code revision, host. Rows of starts.jsonl."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "deepspeed", "numpy", "sentencepiece", "safetensors", "pydantic")


def environment() -> dict[str, Any]:
    """Versions of everything that computes, the code's revision, and the machine."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "revision": code_revision(),
        "host": socket.gethostname(),
        "machine": platform.machine(),
        "cpus": usable_cores(),
        "slurm_job": slurm_job(),
    }


def usable_cores() -> int:
    """How many cores this process may use: those it is confined to, or, where the system cannot say (macOS), all there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def slurm_job() -> str | None:
    """The SLURM job this process belongs to, as SLURM's commands take it; None outside of one.

    A task of an array is ARRAY_TASK. Its SLURM_JOB_ID alone would not do: the last task to start has the number of the whole
    array there, and `scontrol requeue` or `scancel` of it would mean all tasks.
    """
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def code_revision() -> str | None:
    """Git commit of the code, with `+changes` where the working tree differs; None outside a repository."""
    folder = Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
