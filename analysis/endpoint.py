"""The loss that runs are judged by at their end: one and the same for all runs that are compared, and told by its name.

Of runs that all have val/final_loss over the same windows it is that one; else the last val/loss, if all have one over the same
windows; else the final training loss. These are of other tokens and differ by more than a λ does, so they are never mixed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from analysis.compare import TRAIN, VALIDATION, WHOLE, ended, is_ended, over, same_windows
from analysis.document_noise import contrast_error, documents_error
from analysis.pairing import Group, by_seed, pairs
from analysis.runs import Run
from analysis.statistics import Interval, final, interval
from record.blocks import WEIGHTS


@dataclass(frozen=True)
class Endpoint:
    """`column`: of metrics.jsonl. `words`: as an axis or a sentence calls it. `note`: which it is, and why no other.
    `unit`: empty for a fraction."""

    column: str
    words: str
    note: str
    unit: str = "nats"

    @property
    def whole(self) -> bool:
        """Whether it is over the final windows, of the last weights or of an average of them."""
        return self.column.startswith(WHOLE)

    @property
    def kind(self) -> str:
        """What it is of, as the blocks of a validation name it."""
        return self.column.removeprefix(WHOLE).removeprefix("_") or WEIGHTS

    def of(self, run: Run) -> float:
        """The run's loss at its end (nats); NaN where it has none."""
        values = run.column(self.column)
        if self.column == TRAIN:
            return final(values)
        return float(values.iloc[-1]) if len(values) else float("nan")

    def seed_losses(self, group: Group) -> dict[str, float]:
        """Seeds → loss at the end, of the runs that ended."""
        losses = by_seed([(run, self.of(run)) for run in ended(group)])
        return {seeds: loss for seeds, loss in losses.items() if np.isfinite(loss)}

    def difference(self, group: Group, base: Group, seeds: Collection[str] | None = None) -> Interval:
        """`group` minus `base` at the end, paired by seeds (of `seeds` alone, where given); of the final windows wider by the
        documents' standard error."""
        kept = {id(run) for g in (group, base) for run in ended(g)}
        used = [(a, b) for a, b in pairs(group, base) if {id(a), id(b)} <= kept and (seeds is None or a.seeds in seeds)]
        change = interval(by_seed([(a, self.of(a) - self.of(b)) for a, b in used]).values())
        return change.with_documents(documents_error(used, self.kind)) if self.whole else change

    def contrast(self, weights: Sequence[Mapping[Run, float]]) -> Interval:
        """For each seed a weighted sum of losses at the end. The weights add up to zero; a difference of two differences is one
        example. Of the final windows wider by the documents' standard error."""
        sums = interval(sum(weight * self.of(run) for run, weight in one.items()) for one in weights)
        return sums.with_documents(contrast_error(weights, self.kind)) if self.whole else sums


@dataclass(frozen=True)
class LargePhase(Endpoint):
    """The last value before the learning rate first falls below its peak: of two phases, the level that the first one held."""

    def of(self, run: Run) -> float:
        """That value; NaN where the run has none from there."""
        rates, values = run.column("optim/lr"), run.column(self.column)
        if rates.empty:
            return float("nan")
        # a row's weights are those after its update, so the first smaller rate is in them
        fallen = rates[(rates < rates.max() * (1 - 1e-6)) & (rates.index > rates.idxmax())]
        values = values[values.index < fallen.index[0]] if len(fallen) else values
        return float(values.iloc[-1]) if len(values) else float("nan")


@dataclass(frozen=True)
class FineTuned(Endpoint):
    """At the end of the branch from a run's last checkpoint that has one. `branches`: (the trunk's folder, step) → branch."""

    branches: Mapping[tuple[str, int], Run] = field(default_factory=dict, compare=False)

    def of(self, run: Run) -> float:
        """That value; NaN where no branch of this run has ended."""
        own = {step: b for (path, step), b in self.branches.items() if path == str(run.path) and is_ended(b)}
        return super().of(own[max(own)]) if own else float("nan")


def endpoint_of(groups: list[Group]) -> Endpoint:
    """The best endpoint that every run has which ended; the others have no end that could be compared."""
    runs = [run for group in groups for run in ended(group)]
    why: list[str] = []
    for column in (WHOLE, VALIDATION):
        having = [run for run in runs if len(run.column(column).loc[1:])]
        words = f"validation loss at the end {over(runs[0], column)}" if runs else "validation loss at the end"
        if runs and len(having) == len(runs) and same_windows(runs, column):
            return Endpoint(column, words, f"endpoint: {column}, the {words}{_because(why)}")
        # that no run has it needs no word: nothing was left unused
        if having and len(having) < len(runs):
            why.append(f"{column} is recorded of {len(having)} of the {len(runs)} runs that ended")
        elif having:
            why.append(f"the runs have {column} over unlike windows")
    words = "training loss at the end"
    return Endpoint(TRAIN, words, f"endpoint: {TRAIN}, mean of the last updates{_because(why)}")


def _because(why: list[str]) -> str:
    return f", which all have: {'; '.join(why)}" if why else ""


def lowest(groups: list[Group], endpoint: Endpoint) -> tuple[Group, list[str]] | None:
    """The group of the lowest mean, and the seeds it is the mean over: those that all groups of the most seeds have.

    A group of fewer seeds is no candidate: a lucky seed would choose it. None where nothing has ended, or no seed is shared.
    """
    losses = [(group, endpoint.seed_losses(group)) for group in groups]
    most = max((len(ends) for _, ends in losses), default=0)
    candidates = [(group, ends) for group, ends in losses if len(ends) == most]
    shared = [seeds for seeds in candidates[0][1] if all(seeds in ends for _, ends in candidates)] if most else []
    if not shared:
        return None
    return min(candidates, key=lambda pair: float(np.mean([pair[1][s] for s in shared])))[0], shared
