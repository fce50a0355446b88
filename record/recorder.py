"""Collects the rows of a run and writes them, a few updates at a time, to metrics.jsonl and to wandb."""

from __future__ import annotations

from typing import Any

from configs.schema import RunConfig, Unit
from record.metrics import MetricsLog
from record.mirror import WandbMirror
from record.run import RunFolder


class Recorder:
    """Rows are buffered until `flush`. Without a log (ranks other than 0) everything is dropped.

    Probes have a log of their own, where a resume is noted too.
    """

    def __init__(
        self,
        log: MetricsLog | None,
        mirror: WandbMirror | None,
        units_per_step: int,
        probes: MetricsLog | None = None,
        unit: Unit = "tokens",
    ) -> None:
        self._log, self._mirror, self._probes = log, mirror, probes
        self._unit, self._units_per_step = unit, units_per_step
        self._rows: list[dict[str, Any]] = []
        self._probe_rows: list[dict[str, Any]] = []

    def add(self, step: int, row: dict[str, Any]) -> None:
        self._rows.append({"step": step, self._unit: step * self._units_per_step, **row})
        if row.get("event") == "resume":
            self._probe_rows.append(self._rows[-1])

    def add_probe(self, step: int, row: dict[str, Any]) -> None:
        """The mirror gets what is not of a single tensor."""
        self._probe_rows.append({"step": step, self._unit: step * self._units_per_step, **row})

    def flush(self, sync: bool = False) -> None:
        """Write what was added; with `sync` it is on disk afterwards."""
        rows, self._rows = self._rows, []
        probe_rows, self._probe_rows = self._probe_rows, []
        if self._log is not None:
            self._log.write(rows, sync)
        if self._probes is not None and probe_rows:
            self._probes.write(probe_rows, sync)
        if self._mirror is not None and (rows or probe_rows):
            whole = [{k: v for k, v in row.items() if not _of_a_tensor(k)} for row in probe_rows if "event" not in row]
            self._mirror.write(sorted(rows + whole, key=lambda row: row["step"]))

    def close_log(self) -> None:
        self.flush()
        for log in (self._log, self._probes):
            if log is not None:
                log.close()

    def close_mirror(self) -> None:
        if self._mirror is not None:
            self._mirror.close()


def open_recorder(config: RunConfig, folder: RunFolder) -> Recorder:
    """The recorder of a run's only writer, with the logs and the mirror that its configuration asks for."""
    settings = config.model_dump(mode="json")
    mirror = WandbMirror(config.log.wandb, folder.path, config.name, settings, config.log.wandb_kinds)
    probes = MetricsLog(folder.probes) if config.log.probe_every else None
    return Recorder(MetricsLog(folder.metrics), mirror, config.units_per_step, probes, config.unit)


def _of_a_tensor(key: str) -> bool:
    return key.count("/") > 1 and "/kind:" not in key
