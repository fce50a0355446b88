"""Weights & Biases as a listener: it mirrors the metrics and never stops training."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


class WandbMirror:
    """Sends rows to wandb; after its first failure it is silent, with one line in the log."""

    def __init__(self, mode: str, folder: Path, name: str, run_id: str, config: dict[str, Any]) -> None:
        self._run: Any = None
        if mode != "disabled":
            self._guard(lambda: self._start(mode, folder, name, run_id, config))

    def write(self, rows: list[dict[str, Any]]) -> None:
        if self._run is not None:
            self._guard(lambda: [self._run.log(row, step=row["step"]) for row in rows])

    def close(self) -> None:
        if self._run is not None:
            self._guard(lambda: self._run.finish())

    def _start(self, mode: str, folder: Path, name: str, run_id: str, config: dict[str, Any]) -> None:
        import wandb

        self._run = wandb.init(
            mode=mode,  # type: ignore[arg-type]
            dir=folder,
            project="weight-decay",
            name=name,
            id=run_id,
            resume="allow",
            config=config,
        )

    def _guard(self, act: Any) -> None:
        try:
            act()
        except Exception as error:  # whatever wandb raises, training goes on
            logger.warning("wandb failed (%s: %s); metrics.jsonl goes on without it", type(error).__name__, error)
            self._run = None
