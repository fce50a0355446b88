"""The run folder: one run, one folder; copying the folder copies the experiment.

config.json         the resolved configuration
config.given.json   the configuration as given, with --set applied
experiment.json     the fields that make the run's identity
plan.json           what was derived from it at the latest start
norms.json          of a matched run: the norms it follows
starts.jsonl        one row per start: versions, code revision, device, threads, ranks, data, attention kernel, resumed step
status.json         running | done | preempted | failed | diverged, with step, reason and the order digest
metrics.jsonl       the measurements (record/metrics.py)
probes.jsonl        what single updates did, tensor by tensor (record/probe_columns.py)
val_blocks.json     of a run that has come to its end: the last validation, block by block (record/blocks.py)
lm_eval/            scores at tasks of lm-evaluation-harness, of whoever asked for them (record/evaluations.py)
checkpoints/        step_00001000/ with a manifest.json each (engine/checkpoint.py)
"""

from __future__ import annotations

import json
import os
import re
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from configs.errors import InputError
from record.files import parse_json, read_dict, read_object, read_regular, write_json

State = Literal["running", "done", "preempted", "failed", "diverged"]
STATES = get_args(State)
FINISHED = ("done", "diverged")  # of these states a run stays what it is
LARGEST = 2**53  # no step is larger: the integers that every reader of JSON holds exactly
UNKNOWN = "unknown"  # what a status reads as whose state is none of them

# Exit codes of train.py. A launcher's own exit code says nothing: read status.json.
EXIT_CODES = {"done": 0, "failed": 1, "bad input": 2, "diverged": 3, "preempted": 75}

# What may be in a folder before its run has described itself: of a start that was refused or killed, and of slurm/.
BEFORE_START = {
    ".lock", ".writer.json", "checkpoints", "logs", "metrics.jsonl", "probes.jsonl", "refused.json", "status.json", "stop",
    "wandb", "wandb.id",
}  # fmt: skip
LEFTOVERS = re.compile(r"\.nfs.*|\..*\.\d+\.tmp")  # of a network file system, and of a killed write_json


class RunFolder:
    """Paths and small files of one run."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.given = self.path / "config.given.json"
        self.experiment = self.path / "experiment.json"
        self.plan = self.path / "plan.json"
        self.norms = self.path / "norms.json"
        self.starts = self.path / "starts.jsonl"
        self.status = self.path / "status.json"
        self.metrics = self.path / "metrics.jsonl"
        self.probes = self.path / "probes.jsonl"
        self.blocks = self.path / "val_blocks.json"
        self.checkpoints = self.path / "checkpoints"
        self.evaluations = self.path / "lm_eval"

    def create(
        self, config: dict[str, Any], given: dict[str, Any], experiment: dict[str, Any], plan: dict[str, Any]
    ) -> None:
        """Write the run's description; called at every start, by rank 0."""
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        write_json(self.experiment, experiment)  # first: by it the folder is known as a run's (check_place)
        write_json(self.config, config)
        write_json(self.given, given)
        write_json(self.plan, plan)

    def check_place(self) -> None:
        """InputError where no run can be recorded here: the path is a file, or a folder in which something else lies."""
        place = next((path for path in (self.path, *self.path.parents) if path.exists() or path.is_symlink()), None)
        if place is not None and not place.is_dir():
            raise InputError(f"--run-dir {self.path}: {place} is no folder; a run needs one, new or empty")
        if place != self.path or self.experiment.exists():
            return
        names = sorted(path.name for path in self.path.iterdir())
        logs = [path.name for path in (self.metrics, self.probes) if path.exists() and path.stat().st_size]
        foreign = [name for name in names if name not in BEFORE_START and not LEFTOVERS.fullmatch(name)] + logs
        if foreign:
            shown = ", ".join(foreign[:5]) + (f" and {len(foreign) - 5} more" if len(foreign) > 5 else "")
            raise InputError(
                f"--run-dir {self.path} holds no run (there is no {self.experiment.name} in it), but {shown}; "
                "give a new or empty folder"
            )

    def read_experiment(self) -> dict[str, Any] | None:
        """The experiment this folder holds; None for a folder without one. InputError if it is unreadable."""
        try:
            return read_object(self.experiment)
        except FileNotFoundError:
            return None
        except InputError as error:
            raise InputError(f"{error}; restore it or use another --run-dir") from None

    def data_path(self) -> str | None:
        """Where the data of this run lay at its latest start; None where that cannot be read."""
        data = read_dict(self.config).get("data")
        path = data.get("path") if isinstance(data, dict) else None
        return path if isinstance(path, str) else None

    def check_data(self, digest: str, path: str) -> None:
        """InputError if the run in this folder was trained on other data than that of `digest`, which lies in `path`."""
        data = (self.read_experiment() or {}).get("data")
        trained = data.get("digest") if isinstance(data, dict) else None
        if trained != digest:
            raise InputError(
                f"{self.path} was trained on data of digest {str(trained)[:12]} (in {self.data_path() or 'a folder not known'}), "
                f"{path} holds {digest[:12]}: other data; --data DIR says where the run's own data lies now"
            )

    def write_norms(self, norms: dict[str, Any]) -> None:
        """The norms that a matched run follows, once."""
        if self.read_norms().get("digest") != norms["digest"]:
            write_json(self.norms, norms)

    def read_norms(self) -> dict[str, Any]:
        """The same; empty where there are none, or none that can be read."""
        return read_dict(self.norms)

    def read_plan(self) -> dict[str, Any]:
        """The plan of the latest start; empty where there is none, or none that can be read."""
        return read_dict(self.plan)

    def read_starts(self) -> list[dict[str, Any]]:
        """The rows of starts.jsonl that can be read, oldest first."""
        try:
            lines = read_regular(self.starts).decode("utf-8", errors="replace").split("\n")
        except (OSError, ValueError):
            return []
        rows = []
        for line in lines:
            try:
                row = parse_json(line)
            except (ValueError, RecursionError):
                continue
            rows += [row] if isinstance(row, dict) else []
        return rows

    def last_start(self) -> dict[str, Any] | None:
        """The latest of them."""
        rows = self.read_starts()
        return rows[-1] if rows else None

    def record_start(self, row: dict[str, Any]) -> None:
        with open(self.starts, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def write_status(self, state: State, step: int, steps: int, reason: str = "", order_digest: str = "") -> None:
        write_json(
            self.status,
            {
                "state": state,
                "step": step,
                "steps": steps,
                "reason": reason,
                "order_digest": order_digest,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "updated": datetime.now(UTC).isoformat(timespec="seconds"),
            },
        )

    def read_status(self) -> dict[str, Any] | None:
        """The latest status, or None where the run never started. InputError for a file that is no status.

        A state that is none of ours (a damaged letter is enough) reads as `unknown`, with what stands there as the reason:
        whether such a run has ended cannot be told.
        """
        try:
            return parse_status(read_object(self.status), str(self.status))
        except FileNotFoundError:
            return None


def parse_status(status: dict[str, Any], place: str) -> dict[str, Any]:
    """From the JSON object that a status file holds, as `RunFolder.read_status`. InputError, naming `place`, for another."""
    step, steps = (status.get(name) for name in ("step", "steps"))
    if type(step) is not int or type(steps) is not int or not 0 <= step <= steps <= LARGEST:
        raise InputError(f"{place} is no status: step {step!r:.40} of {steps!r:.40}")
    for name in ("state", "reason", "order_digest", "updated"):
        status.setdefault(name, "")
        if not isinstance(status[name], str):
            raise InputError(f"{place} is no status: {name} is {status[name]!r:.40}")
    if status["state"] not in STATES:
        status["reason"] = f"{Path(place).name} says {status['state']!r:.40}, which is none of {', '.join(STATES)}"
        status["state"] = UNKNOWN
    return status
