"""The median of Adam's effective learning rate η/(√v + ε) over elements, the same at every ZeRO stage.

The mean says little: an element that hardly ever has a gradient has a tiny √v and so a huge rate. A fifth of the embedding's
rows, those of tokens that the text never uses, then makes up nearly all of the mean (measured: 300 times the median), and can
turn the order of λ around.

A median needs all elements at once, and a rank holds only pieces of a tensor. So each rank counts its elements by their
rate, the counts are added over the ranks, and the median is read off them: within 0.8 %, the width of a bin.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from engine.agree import over_ranks
from engine.fragments import Fragments
from engine.sums import slices

# The upper half of a float32's bits orders positive numbers as their values do: a bin for each positive bfloat16.
SHIFT, BINS = 16, 1 << 15
# In a small run's embedding √v of unused rows is 2e-4 to 8e-4 of the tensor's RMS, of the next row 1.5e-2: the square is between.
IDLE = 1e-5


def rate_columns(fragments: Fragments, eps: float, labels: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Columns `probe/adam_lr_median/…` and `probe/adam_idle/…` of each label: its tensors, by their places in `fragments.names`.

    An element is idle, so without a gradient, where v is at most IDLE of its tensor's mean. The median is over the others; where
    all are idle there is none. The label "" is the whole model. Collective.
    """
    counts = _counts(fragments, eps)
    row: dict[str, float] = {}
    for label, members in labels.items():
        counted, size = counts[list(members)].sum(0), sum(fragments.shapes[fragments.names[i]].numel() for i in members)
        active = int(counted.sum())
        row[f"probe/adam_idle/{label}".rstrip("/")] = 1 - active / size
        if active:
            row[f"probe/adam_lr_median/{label}".rstrip("/")] = median(counted)
    return row


def damping(eps: float, norm: float, inverse: float) -> dict[str, float]:
    """What ε does, of a tensor of this norm before the update: `adam_epsilon` ε·‖w‖, and `adam_damping`, the mean of ε/(√v + ε).

    `inverse`: the mean of 1/(√v + ε), v the raw second moment. Where the loss depends on w's direction alone, the gradient at a·w
    is that at w over a. So m and √v are 1/‖w‖ times those of the direction ŵ, marked ^ here, and the update turns w by

        η/‖w‖ · m/(√v + ε) = η/‖w‖ · m̂/(√v̂ + ε·‖w‖):

    on the sphere Adam is damped by ε·‖w‖. That is P2's third mechanism (arXiv 1810.12281) by analogy: the curvature of K-FAC goes
    as 1/‖w‖², so that its λ_d acts as λ_d·‖w‖², and √v goes as 1/‖w‖. A smaller norm keeps what v knows. No matrix of a
    pre-LayerNorm GPT is invariant by itself, since the residual stream is a sum: there ε·‖w‖ is a tendency. `adam_damping`
    assumes nothing: 0 where v rules alone, 1 where all that is left is momentum over ε.
    """
    return {"adam_epsilon": eps * norm, "adam_damping": eps * inverse}


def _counts(fragments: Fragments, eps: float) -> Tensor:
    """How many elements of each parameter that are not idle have a rate in each bin, over all ranks: int64 (len(names), BINS)."""
    counts = torch.zeros(len(fragments.names), BINS, dtype=torch.int64, device=fragments.ds.device)
    places, groups = {name: i for i, name in enumerate(fragments.names)}, fragments.groups_by_name
    seconds = [(fragment.name, fragments.view(fragment, "exp_avg_sq")) for fragment in fragments.local]
    sums = fragments.sums((part.float() for (part,) in slices(second)) for _, second in seconds).tolist()
    for name, second in seconds:
        place, lr = places[name], float(groups[name]["lr"])
        idle = IDLE * sums[place] / fragments.shapes[name].numel()
        for (part,) in slices(second):
            counts[place] += count_rates(lr, part, eps, idle)
    # At stage 0 every rank has counted everything.
    if fragments.sharded:
        over_ranks(counts)
    return counts.cpu()


def count_rates(lr: float, second: Tensor, eps: float, idle: float) -> Tensor:
    """How many elements of Adam's second moment, (n,), that are above `idle` have a rate in each bin: int64 (BINS,)."""
    second = second.float()
    bins = (lr / (second.sqrt() + eps)).view(torch.int32) >> SHIFT
    return torch.bincount(bins[second > idle], minlength=BINS)


def median(counts: Tensor) -> float:
    """The rate below which half of the counted elements lie, on a straight line through its bin; `counts` of one or more."""
    below = counts.cumsum(0)
    half = float(below[-1]) / 2
    place = int(torch.searchsorted(below, math.ceil(half)))
    first, last = (torch.tensor([place, place + 1], dtype=torch.int32) << SHIFT).view(torch.float32).tolist()
    inside = int(counts[place])
    return float(first + (last - first) * (half - float(below[place] - inside)) / inside)
