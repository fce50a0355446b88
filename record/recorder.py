"""Collects the rows of a run and writes them, a few updates at a time, to metrics.jsonl and to wandb."""

from __future__ import annotations

from typing import Any

from record.metrics import MetricsLog
from record.mirror import WandbMirror


class Recorder:
    """Rows are buffered until `flush`. Without a log (ranks other than 0) everything is dropped."""

    def __init__(self, log: MetricsLog | None, mirror: WandbMirror | None, tokens_per_step: int) -> None:
        self._log, self._mirror, self._tokens_per_step = log, mirror, tokens_per_step
        self._rows: list[dict[str, Any]] = []

    def add(self, step: int, row: dict[str, Any]) -> None:
        self._rows.append({"step": step, "tokens": step * self._tokens_per_step, **row})

    def flush(self, sync: bool = False) -> None:
        """Write what was added; with `sync` it is on disk afterwards."""
        rows, self._rows = self._rows, []
        if self._log is not None:
            self._log.write(rows, sync)
        if rows and self._mirror is not None:
            self._mirror.write(rows)

    def close_log(self) -> None:
        self.flush()
        if self._log is not None:
            self._log.close()

    def close_mirror(self) -> None:
        if self._mirror is not None:
            self._mirror.close()
