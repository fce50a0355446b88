"""The training loss: cross-entropy as a sum, in float32 whatever the precision of the logits."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def cross_entropy_sum(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum over tokens of −log p(target), float32 scalar (nats).

    logits (B, T, V) of any float dtype, targets (B, T) int64. The caller divides by the global token count: a sum is
    exact under any split into micro-batches and ranks, a mean of means is not.
    """
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="sum")
