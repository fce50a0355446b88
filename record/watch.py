"""Spikes and divergence, judged from the losses and gradient norms of a run alone: it watches, and interferes with nothing.

A spike is a value far above the recent ones, in robust deviations: (value − median) / (1.4826·MAD) over the last
WINDOW updates, or as many as there are. A start can break within 30 updates, so values are judged from the second on. The
spread of a few is itself uncertain: FLOORS says which part of their median it counts as at least. At 8 deviations a value of
the first updates is a spike from 5 times the median on, from the fifth update on from 1.8 times.

The smoothed loss is the median of the last WINDOW losses; a run has diverged since the step from which it has stayed a
margin above its lowest smoothed loss.
"""

from __future__ import annotations

import math
from statistics import median
from typing import Any

WINDOW = 64
# With so many recent values their spread is at least this part of their median.
FLOORS = ((WINDOW // 2, 1e-3), (4, 0.1), (1, 0.5))
KEYS = ("loss", "grad_norm")


class LossWatch:
    """`state` is JSON and part of a checkpoint, so that a resumed run judges as the uninterrupted one does."""

    def __init__(self, deviations: float, margin: float | None, state: dict[str, Any] | None = None) -> None:
        """`deviations`: from where a value is a spike, 0 for never; `margin` in nats, None for no divergence."""
        self._deviations, self._margin = deviations, margin
        self.state: dict[str, Any] = state or {
            **{key: [] for key in KEYS},
            "smoothed": None,
            "lowest": None,
            "above_since": None,
        }

    def add(self, step: int, loss: float, grad_norm: float) -> dict[str, float]:
        """Take in the values of update `step`; returns `spike/…`: the deviations of what is a spike."""
        spikes = {}
        for key, value in zip(KEYS, (loss, grad_norm), strict=True):
            recent = [math.inf if earlier is None else earlier for earlier in self.state[key]]
            deviation = _deviation(value, recent)
            if self._deviations and deviation > self._deviations:
                spikes[f"spike/{key}"] = deviation
            self.state[key] = [*self.state[key], _json(value)][-WINDOW:]
        self._smooth(step)
        return spikes

    @property
    def divergence(self) -> str:
        """How the run has diverged; empty if it has not."""
        since = self.state["above_since"]
        if self._margin is None or since is None:
            return ""
        return (
            f"smoothed loss {_text(self.state['smoothed'])}, its lowest {_text(self.state['lowest'])}: more than "
            f"{self._margin:g} above it since step {since}"
        )

    def _smooth(self, step: int) -> None:
        if len(self.state["loss"]) < WINDOW:
            return
        smoothed = median(math.inf if value is None else value for value in self.state["loss"])
        lowest = min(math.inf if self.state["lowest"] is None else self.state["lowest"], smoothed)
        above = self._margin is not None and (smoothed > lowest + self._margin or math.isinf(smoothed))
        since = self.state["above_since"] if self.state["above_since"] is not None else step
        self.state.update(smoothed=_json(smoothed), lowest=_json(lowest), above_since=since if above else None)


def _deviation(value: float, recent: list[float]) -> float:
    """How many robust deviations `value` lies above `recent`; 0 where these are too few, or it is not finite itself."""
    floor = next((part for enough, part in FLOORS if len(recent) >= enough), None)
    if floor is None or not math.isfinite(value):
        return 0.0
    middle = median(recent)
    if not math.isfinite(middle):
        return 0.0
    spread = 1.4826 * median(abs(value - middle) for value in recent)
    return (value - middle) / max(spread, floor * abs(middle), 1e-12)


def _json(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _text(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"
