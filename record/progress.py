"""Progress: everything of a run that must survive a stop, beside its tensors. Listed here, and nowhere else.

A checkpoint's manifest holds it as `counters`. What is not in here and not in the tensors is a pure function of the step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from configs.schema import Numerics
from record.watch import LossWatch


@dataclass
class Progress:
    """How far a run has come.

    `step`: updates done. `decay_sum`: Σηλ over them. `order_digest`: the digest of all windows that they read, which chains
    from update to update (data/loader.py). `windows`: how far in the data's order they read. `evaluated`: the step of the latest
    validation, −1 before the first. `skipped`: steps whose update was left out (numerics.nonfinite). `watch` judges spikes and
    divergence. `numbers`: what the decay rule keeps by tensor (optim/rules/), for most rules nothing.
    """

    order_digest: str
    windows: int
    watch: LossWatch
    step: int = 0
    decay_sum: float = 0.0
    evaluated: int = -1
    skipped: int = 0
    numbers: dict[str, dict[str, float]] = field(default_factory=dict)

    @classmethod
    def of(cls, counters: dict[str, Any], numerics: Numerics) -> Progress:
        """What a checkpoint's counters say. Keys that are not a run's progress (the optimiser's own step) are left alone."""
        watch = LossWatch(numerics.spike_deviations, numerics.divergence_margin, counters["watch"])
        names = ("order_digest", "windows", "step", "decay_sum", "evaluated", "skipped")
        return cls(watch=watch, numbers=counters.get("numbers", {}), **{name: counters[name] for name in names})

    def counters(self) -> dict[str, Any]:
        """The same as JSON, for a checkpoint's manifest."""
        return {
            "step": self.step,
            "decay_sum": self.decay_sum,
            "order_digest": self.order_digest,
            "evaluated": self.evaluated,
            "skipped": self.skipped,
            "windows": self.windows,
            "watch": self.watch.state,
            **({"numbers": self.numbers} if self.numbers else {}),
        }

    def advance(self, order_digest: str, windows: int) -> None:
        """One more step is done, whose batch ended at `windows` of the order."""
        self.step += 1
        self.order_digest, self.windows = order_digest, windows
