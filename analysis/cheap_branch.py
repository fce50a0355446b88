"""The average of the weights as the cheap estimate of what a branch shows: how much of the variance part it removes."""

from __future__ import annotations

import pandas as pd

from analysis.claims import too_few
from analysis.statistics import LEAST_SEEDS, interval


def of_averages(table: pd.DataFrame) -> list[str]:
    """How much of the variance part the average of the weights removes, a seed's checkpoints together.

    `table`: as bias_variance.decompose makes it.
    """
    averaged = table.dropna(subset=["ema"])
    if averaged.empty:
        return []
    # sums before the ratio: a checkpoint with next to no variance part has a ratio without meaning
    sums = averaged.assign(removed=averaged["loss"] - averaged["ema"]).groupby("seeds")[["removed", "variance"]].sum()
    whole = interval(list(sums["variance"]))
    gap = interval(list((averaged["ema"] - averaged["branch"]).groupby(averaged["seeds"]).mean()))
    lies = f"its loss lies {gap.text()} nats from theirs.{'' if gap.n >= LEAST_SEEDS else f' {too_few(gap.n).capitalize()}.'}"
    # a share of nothing is no share: the whole must be told from zero first
    if not whole.low > 0:
        return [
            "What share of the variance part the average of the weights removes is not said: summed over the checkpoints of a "
            f"seed that part is {whole.text()}, not told from zero; {lies}"
        ]
    share = interval(list(sums["removed"] / sums["variance"]))
    return [
        f"The average of the weights removes {share.text(2)} of the variance part that branches remove (all checkpoints of a seed "
        f"together); {lies}"
    ]
