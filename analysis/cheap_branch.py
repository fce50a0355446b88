"""The averages of a trunk's weights, as branches that cost nothing: how near they come to a branch's end.

An average c (averages.ema) looks back 1/(1 − c) updates. What share of the run that is decides what it averages over: c = 0.99
is 0.2 % of the paper's 50,000 updates and 5 % of 2,000, where 0.2 % is c = 0.75.
"""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from analysis.claims import Claim, Lost, equality_claim, too_few
from analysis.compare import VALIDATION
from analysis.pairing import Group
from analysis.runs import Run
from analysis.statistics import LEAST_SEEDS, interval

AVERAGE = f"{VALIDATION}_ema_"  # its columns in metrics.jsonl end with c


def averages(run: Run) -> dict[str, pd.Series]:
    """The validation losses of the run's averages, by the column's name."""
    return {name: run.column(name) for name in map(str, run.metrics) if name.startswith(AVERAGE)}


def averages_in(table: pd.DataFrame) -> list[str]:
    """The averages that rows of `decompose` have, the shortest first."""
    names = [name for name in map(str, table) if name.startswith(AVERAGE) and table[name].notna().any()]
    return sorted(names, key=_horizon)


def _horizon(name: str) -> float:
    """Updates that an average looks back."""
    return 1 / (1 - float(name.removeprefix(AVERAGE)))


def updates_of(name: str) -> str:
    """The horizon in words."""
    return f"{_horizon(name):.4g} updates"


def judged(steps: list[int]) -> list[int]:
    """The checkpoints that claims are about: the middle one and the last. Other places are not searched for effects."""
    # mid-run the order is the other one: both are told
    return list(dict.fromkeys([steps[(len(steps) - 1) // 2], steps[-1]]))


def same_as_branches(
    groups: list[Group],
    table: pd.DataFrame,
    is_lost_at: Callable[[int], Callable[[Run], bool]],
    condition: str,
    margin: float,
) -> list[Claim]:
    """Of each group, average and judged checkpoint: whether the average's loss is that of the branch's end, within `margin`.

    `is_lost_at(step)(trunk)`: whether it, or its branch of that step, diverged.
    """
    claims = []
    for group in groups:
        rows = table[table["group"] == group.name]
        for name in averages_in(rows):
            kept = rows.dropna(subset=[name])
            share = _horizon(name) / float(kept["steps"].iloc[0])
            title = f"{group.name}: average over {updates_of(name)} ({share:.2g} of the run) minus branch end"
            for step in judged(sorted(set(kept["step"]))):
                here = kept[kept["step"] == step]
                gap = interval((here[name] - here["branch"]).groupby(here["seeds"]).mean())
                endpoint = f"validation loss at the checkpoint of step {step:,}"
                gone = sum(map(is_lost_at(step), group.runs))
                lost = [Lost(group.name, gone, len(group.runs))] if gone else []
                claims.append(equality_claim(title, endpoint, gap, margin, condition=condition, lost=lost))
    return claims


def removed(table: pd.DataFrame) -> list[str]:
    """How much of the variance part each average removes, a seed's checkpoints together."""
    return [_removed(table.dropna(subset=[name]), name) for name in averages_in(table)]


def _removed(averaged: pd.DataFrame, name: str) -> str:
    # sums before the ratio: a checkpoint with next to no variance part has a ratio without meaning
    sums = averaged.assign(removed=averaged["loss"] - averaged[name]).groupby("seeds")[["removed", "variance"]].sum()
    whole = interval(list(sums["variance"]))
    gap = interval(list((averaged[name] - averaged["branch"]).groupby(averaged["seeds"]).mean()))
    lies = f"its loss lies {gap.text()} nats from theirs.{'' if gap.n >= LEAST_SEEDS else f' {too_few(gap.n).capitalize()}.'}"
    average = f"the average of the weights over {updates_of(name)}"
    # a share of nothing is no share: the whole must be told from zero first
    if not whole.low > 0:
        return (
            f"What share of the variance part {average} removes is not said: summed over the checkpoints of a "
            f"seed that part is {whole.text()}, not told from zero; {lies}"
        )
    share = interval(list(sums["removed"] / sums["variance"]))
    return (
        f"{average[0].upper()}{average[1:]} removes {share.text(2)} of the variance part that branches remove (all checkpoints of "
        f"a seed together); {lies}"
    )
