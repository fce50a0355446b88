"""What a classifier predicts, as probabilities: of one set of weights, of an ensemble, and how far two of them lie apart.

P1 (arXiv 2310.04415): averages of the weights stand for the stationary mean of SGD. Whether they predict as the mean of
the predictions does is the total variation between the two: mean over images of ½·Σ_k |p_k − q_k|, from 0 to 1.

Shapes: n examples, K classes. Probabilities are float64 on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from configs.errors import InputError
from weights.frozen import Batches, Frozen, chunks

FORWARD = 1024  # examples of one forward pass


@torch.no_grad()
def probabilities(network: Frozen, batches: Batches, progress: bool = True) -> Tensor:
    """softmax of the logits, (n, K)."""
    passes = chunks(network, batches, FORWARD, "predict", progress)
    return torch.cat([network.logits(network.parameters, inputs).double().softmax(1).cpu() for inputs, _ in passes])


def ensemble(snapshots: Sequence[Tensor]) -> Tensor:
    """The mean of the probabilities of several snapshots, (n, K): not the prediction of their mean weights.

    Each is of its own weights with their own BatchNorm statistics. InputError for none.
    """
    if not snapshots:
        raise InputError("an ensemble of no snapshot; give one or more")
    return torch.stack(list(snapshots)).mean(0)


def total_variation(one: Tensor, other: Tensor) -> Tensor:
    """½·Σ_k |p_k − q_k| of each example, (n,). Its mean over images is the measure. InputError for unlike shapes."""
    if one.shape != other.shape:
        raise InputError(
            f"predictions of shape {tuple(one.shape)} and {tuple(other.shape)}; give both of the same images"
        )
    return (one - other).abs().sum(1) / 2


@dataclass(frozen=True)
class Score:
    """`loss`: mean −ln p of the right class, nats. `error`: fraction whose most probable class is another one."""

    loss: float
    error: float


def score(found: Tensor, batches: Batches) -> Score:
    """Of probabilities, so of an ensemble too."""
    targets = torch.cat([theirs for _, theirs in batches]).cpu()
    right = found.gather(1, targets[:, None])[:, 0]
    return Score(-right.log().mean().item(), (found.argmax(1) != targets).double().mean().item())
