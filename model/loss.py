"""The training loss: cross-entropy as a sum, in float32 whatever the precision of the logits; z-loss."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def cross_entropy_sum(logits: Tensor, targets: Tensor, z_loss: float = 0.0) -> Tensor:
    """Sum over tokens of −log p(target), float32 scalar (nats).

    With `z_loss` the gradient is that of the cross-entropy plus z_loss·Σ log²Z, Z = Σ exp(logits) (PaLM, arXiv
    2204.02311, section 5); the value stays the cross-entropy, so that runs with and without it can be compared.

    logits (B, T, V) of any float dtype, targets (B, T) int64. The caller divides by the global token count: a sum is
    exact under any split into micro-batches and ranks, a mean of means is not.
    """
    logits = logits.float().flatten(0, 1)  # (B·T, V)
    loss = F.cross_entropy(logits, targets.flatten(), reduction="sum")
    if z_loss:
        penalty = z_loss * logits.logsumexp(-1).square().sum()
        loss = loss + (penalty - penalty.detach())
    return loss


def logit_statistics(logits: Tensor, targets: Tensor) -> Tensor:
    """Summed cross-entropy, summed log Σ exp(logits), wrong top-1 guesses, and the largest logit: float64 (4,).

    logits (B, T, V), targets (B, T); targets of −100 do not count.
    """
    counted = targets.flatten() >= 0
    logits = logits.float().flatten(0, 1)[counted]  # (N, V)
    targets = targets.flatten()[counted]
    if not len(targets):
        return torch.tensor([0.0, 0.0, 0.0, -math.inf], dtype=torch.float64, device=logits.device)
    loss = F.cross_entropy(logits, targets, reduction="sum")
    wrong = (logits.argmax(-1) != targets).sum()
    return torch.stack([loss.double(), logits.logsumexp(-1).double().sum(), wrong.double(), logits.max().double()])
