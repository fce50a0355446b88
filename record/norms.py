"""Norms that a run recorded, for a run that follows its effective learning rate (schedule.match)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from configs.errors import InputError
from record.metrics import read_metrics
from record.run import RunFolder

TENSOR = "norm/"  # ‖w‖ of one tensor: norm/blocks.0.attn.qkv.weight


def read_norms(
    run: str | Path, rates: list[float] | None, steps: int, key: str, tensors: list[str]
) -> dict[str, list[float]]:
    """‖w‖ before each of `steps` updates: of `tensors` by name, or without any, column `key` under the name "".

    Raises InputError if the folder holds no run, or not every norm, or, where `rates` are given, another learning rate in one of
    its updates. That the run is a fit reference else is for configs/relations.py.
    """
    folder = RunFolder(run)
    if not folder.config.is_file():
        raise InputError(f"{run} is no run folder to match")
    rows = {row["step"]: row for row in read_metrics(folder.metrics)[0]}
    for step, rate in enumerate(rates or [], 1):
        found_rate = rows.get(step, {}).get("optim/lr")
        if found_rate is not None and abs(found_rate - rate) > 1e-9 * rate:
            raise InputError(
                f"{run} has learning rate {found_rate:g} in step {step}, this run's schedule {rate:g}: a matched run has its "
                "reference's schedule, so that the factor on it is the ratio of the norms"
            )
    keys = {name: TENSOR + name for name in tensors} or {"": key}
    found: dict[str, list[float]] = {}
    for name, column in keys.items():
        values: list[Any] = [rows.get(step, {}).get(column) for step in range(steps)]
        gaps = [step for step, value in enumerate(values) if not (isinstance(value, float) and 0 < value < math.inf)]
        if gaps:
            hint = "; record it with log.tensor_norms true" if tensors else "; let it finish first"
            if values[gaps[0]] == 0:
                raise InputError(
                    f"{run} has {column} = 0 after step {gaps[0]}: a tensor that begins at zero has no effective learning "
                    "rate to follow; match by model, or train without it (model.bias false)"
                )
            raise InputError(f"{run} has no {column} after step {gaps[0]} ({len(gaps)} of {steps} are missing){hint}")
        found[name] = values
    return found
