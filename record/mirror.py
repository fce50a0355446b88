"""Weights & Biases as a listener: it mirrors the metrics and never stops training.

WANDB_PROJECT, WANDB_ENTITY, WANDB_RUN_GROUP and WANDB_TAGS are wandb's own and are obeyed; WANDB_MODE changes the mode of a
run that asks for wandb, and switches none on. The cells of a sweep are one group. Columns are `section/name`, which wandb
shows as panels by section, over the step.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from record.files import write_text

START_S = 10.0  # how long the start of a run waits for a server that does not answer
FINISH_S = 30.0  # how long a run that has ended waits for the last upload
logger = logging.getLogger(__name__)


class WandbMirror:
    """Sends rows to wandb; after its first failure it is silent, with one line in the log."""

    def __init__(self, mode: str, folder: Path, name: str, config: dict[str, Any], kinds: bool = False) -> None:
        """`kinds`: send the probes of each kind of tensor too, several dozen columns."""
        self._run: Any = None
        self._kinds = kinds
        self._failed = mode == "disabled"
        self._rows: list[dict[str, Any]] = []  # not sent yet
        if not self._failed:
            start = threading.Thread(
                target=lambda: self._guard(lambda: self._start(mode, folder, name, config)), name="wandb", daemon=True
            )
            start.start()
            start.join(START_S)
            if start.is_alive():
                logger.warning("wandb has not answered within %.0f s: training begins, rows wait for it", START_S)

    def write(self, rows: list[dict[str, Any]]) -> None:
        if self._failed:
            return
        self._rows += [{k: v for k, v in row.items() if self._kinds or "/kind:" not in k} for row in rows]
        if self._run is not None:
            waiting, self._rows = self._rows, []
            self._guard(lambda: [self._run.log(row, step=row["step"]) for row in waiting])

    def close(self) -> None:
        """Send what waits and finish the upload, in bounded time."""
        self.write([])
        if self._run is not None:
            thread = threading.Thread(target=lambda: self._guard(self._run.finish), daemon=True)
            thread.start()
            thread.join(FINISH_S)
            if thread.is_alive():
                logger.warning("wandb did not finish within %.0f s; metrics.jsonl is complete", FINISH_S)

    def _start(self, mode: str, folder: Path, name: str, config: dict[str, Any]) -> None:
        import wandb

        run = wandb.init(
            mode=os.environ.get("WANDB_MODE", mode),  # type: ignore[arg-type]
            dir=folder,
            project=os.environ.get("WANDB_PROJECT", "weight-decay"),
            group=os.environ.get("WANDB_RUN_GROUP") or _sweep_of(folder),
            name=name,
            id=_id_of(folder),
            resume="allow",
            config=config,
        )
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
        self._run = run

    def _guard(self, act: Callable[[], Any]) -> None:
        try:
            act()
        except Exception as error:  # whatever wandb raises, training goes on
            logger.warning("wandb failed (%s: %s); metrics.jsonl goes on without it", type(error).__name__, error)
            self._run, self._failed, self._rows = None, True, []


def _id_of(folder: Path) -> str:
    """One run folder, one wandb run: the id is kept in the folder, so that it moves with it, and no two folders share one."""
    path = folder / "wandb.id"
    if not path.exists():
        write_text(path, secrets.token_hex(8) + "\n")
    return path.read_text(encoding="utf-8").strip()


def _sweep_of(folder: Path) -> str | None:
    """The name of the sweep that a run folder lies in: beside it are the sweep's configurations (slurm/cells.py)."""
    parent = folder.resolve().parent
    return parent.name if (parent / "cells").is_dir() else None
