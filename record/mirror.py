"""Weights & Biases as a listener: it mirrors the metrics and never stops training."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

FINISH_S = 30.0  # how long a run that has ended waits for the last upload
logger = logging.getLogger(__name__)


class WandbMirror:
    """Sends rows to wandb; after its first failure it is silent, with one line in the log."""

    def __init__(self, mode: str, folder: Path, name: str, config: dict[str, Any]) -> None:
        self._run: Any = None
        if mode != "disabled":
            self._guard(lambda: self._start(mode, folder, name, config))

    def write(self, rows: list[dict[str, Any]]) -> None:
        if self._run is not None:
            self._guard(lambda: [self._run.log(row, step=row["step"]) for row in rows])

    def close(self) -> None:
        """Finish the upload, in bounded time."""
        if self._run is not None:
            thread = threading.Thread(target=lambda: self._guard(self._run.finish), daemon=True)
            thread.start()
            thread.join(FINISH_S)
            if thread.is_alive():
                logger.warning("wandb did not finish within %.0f s; metrics.jsonl is complete", FINISH_S)

    def _start(self, mode: str, folder: Path, name: str, config: dict[str, Any]) -> None:
        import wandb

        self._run = wandb.init(
            mode=mode,  # type: ignore[arg-type]
            dir=folder,
            project="weight-decay",
            name=name,
            id=hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16],  # one run folder, one wandb run
            resume="allow",
            config=config,
        )

    def _guard(self, act: Callable[[], Any]) -> None:
        try:
            act()
        except Exception as error:  # whatever wandb raises, training goes on
            logger.warning("wandb failed (%s: %s); metrics.jsonl goes on without it", type(error).__name__, error)
            self._run = None
