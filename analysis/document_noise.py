"""How much other validation documents would have changed a difference: its standard error over blocks of the validation split.

All seeds are judged on the same documents, so what these contribute is in no interval over seeds, and more seeds do not make it
smaller. The end of a run records its loss block by block (record/blocks.py). Blocks are contiguous, so they share few documents.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from analysis.runs import Run
from record.blocks import WEIGHTS

LEAST_BLOCKS = 20  # of fewer the deviation is itself a guess
COARSE = (
    32  # blocks that the file's are merged to as well: a long document spans several, which then are not independent
)


def documents_error(compared: list[tuple[Run, Run]], kind: str = WEIGHTS) -> float:
    """Standard error (nats) of the mean difference of these pairs over the documents of the split; NaN where it is not known.
    `kind`: of the last weights, or of an average of them (ema_0.99).

    By the ratio of two sums over blocks, loss and targets, of the difference that all pairs have in common: the blocks' means
    are averaged over pairs first, so that what only one seed does in a block counts as that seed's noise and not twice.
    """
    return contrast_error([{run: 1.0, twin: -1.0} for run, twin in compared], kind)


def contrast_error(contrasts: Sequence[Mapping[Run, float]], kind: str = WEIGHTS) -> float:
    """The same, of a weighted sum of runs for each seed. The weights add up to zero; a difference of two differences is one."""
    sums: list[np.ndarray] = []
    targets, place = None, None
    for weights in contrasts:
        parts = []
        for run, weight in weights.items():
            block = run.final_blocks
            # older runs recorded none; runs on other windows, or on other data, have other blocks
            if (
                block is None
                or kind not in block.loss_sums
                or (place is not None and place != (block.place, run.fields.get("data.digest")))
            ):
                return math.nan
            place, targets = (block.place, run.fields.get("data.digest")), np.array(block.targets, dtype=float)
            parts.append(weight * np.array(block.loss_sums[kind], dtype=float))
        sums.append(np.sum(parts, axis=0))
    if targets is None or len(targets) < LEAST_BLOCKS or not np.isfinite(sums).all():
        return math.nan
    common = np.mean(sums, axis=0)
    # the larger of the two: with short documents they agree, with long ones the fine blocks understate
    pieces = min(COARSE, len(targets))
    merged = [np.array([part.sum() for part in np.array_split(one, pieces)]) for one in (common, targets)]
    return max(_error(common, targets), _error(*merged))


def _error(sums: np.ndarray, targets: np.ndarray) -> float:
    """Of Σ sums / Σ targets: the linearised ratio estimator (Cochran, Sampling Techniques, 1977, 2.11)."""
    # what each block's sum is beyond its share
    beyond = sums - sums.sum() / targets.sum() * targets
    n = len(targets)
    return float(math.sqrt(n / (n - 1) * (beyond**2).sum()) / targets.sum())
