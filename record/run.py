"""The run folder: one run, one folder; copying the folder copies the experiment.

config.json         the resolved configuration
config.given.json   the configuration as given, with --set applied
experiment.json     the fields that make the run's identity
plan.json           what was derived from it at the latest start
norms.json          of a matched run: the norms it follows
starts.jsonl        one row per start: versions, code revision, device, threads, ranks, attention kernel, resumed step
status.json         running | done | preempted | failed | diverged, with step, reason and the order digest
metrics.jsonl       the measurements (record/metrics.py)
probes.jsonl        what single updates did, tensor by tensor (record/probes.py)
checkpoints/        step_00001000/ with a manifest.json each (engine/checkpoint.py)
"""

from __future__ import annotations

import json
import os
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from record.files import read_dict, write_json

State = Literal["running", "done", "preempted", "failed", "diverged"]

# Exit codes of train.py. A launcher's own exit code says nothing: read status.json.
EXIT_CODES = {"done": 0, "failed": 1, "bad input": 2, "diverged": 3, "preempted": 75}


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
        self.checkpoints = self.path / "checkpoints"

    def create(
        self, config: dict[str, Any], given: dict[str, Any], experiment: dict[str, Any], plan: dict[str, Any]
    ) -> None:
        """Write the run's description; called at every start, by rank 0."""
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        write_json(self.config, config)
        write_json(self.given, given)
        write_json(self.plan, plan)
        write_json(self.experiment, experiment)

    def read_experiment(self) -> dict[str, Any] | None:
        """The experiment this folder holds; None for a folder without one. ValueError if it is unreadable."""
        if not self.experiment.exists():
            return None
        try:
            value = json.loads(self.experiment.read_text(encoding="utf-8"))
            if not isinstance(value, dict):
                raise ValueError(f"it holds a {type(value).__name__}")
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{self.experiment} cannot be read ({error}); restore it or use another --run-dir"
            ) from None
        return value

    def data_path(self) -> str | None:
        """Where the data of this run lay at its latest start; None where that cannot be read."""
        data = read_dict(self.config).get("data")
        path = data.get("path") if isinstance(data, dict) else None
        return path if isinstance(path, str) else None

    def check_data(self, digest: str, path: str) -> None:
        """ValueError if the run in this folder was trained on other data than that of `digest`, which lies in `path`."""
        known = (self.read_experiment() or {}).get("data")
        trained = known.get("digest") if isinstance(known, dict) else None
        if trained != digest:
            raise ValueError(
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
        rows = []
        for line in self.starts.read_text(encoding="utf-8").splitlines() if self.starts.is_file() else []:
            try:
                rows.append(dict(json.loads(line)))
            except (ValueError, TypeError):
                continue
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
        """The latest status, or None where the run never started."""
        try:
            return dict(json.loads(self.status.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
