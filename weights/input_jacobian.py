"""The Jacobian of the logits by the inputs: its norm, exact or estimated, example by example.

P2 (arXiv 1810.12281): for networks without normalisation or biases, ‖θ‖² in the Gauss–Newton metric is a multiple of ‖∂z/∂x‖_F² or
near it, so decay under K-FAC-G penalises this norm. x are the inputs as the network sees them, pixels of mean 0 and deviation 1 a
channel (Classifier.normalised). By pixels from 0 to 255 it would be smaller by 255·deviation of each channel.

Shapes: n examples, K logits, D draws. BatchNorm normalises by its buffers (weights/frozen.py), so examples do not mix.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from weights.frozen import INPUT, Batches, Frozen, chunks, signs
from weights.jacobian import JacobianNorms

TOGETHER = 100  # examples of one pass: what bounds its memory


def exact(network: Frozen, batches: Batches, progress: bool = True) -> JacobianNorms:
    """Row by row: a backward pass for each class."""
    rows = torch.eye(network.classes(batches), dtype=network.dtype, device=network.device)
    squares = _pulled(network, batches, lambda _, count: rows.expand(count, -1, -1), "input Jacobian", progress)
    return JacobianNorms(squares.sum(1, keepdim=True), exact=True)


def estimate(network: Frozen, batches: Batches, draws: int, seed: int, progress: bool = True) -> JacobianNorms:
    """Hutchinson's, with random signs over the logits: `draws` backward passes.

    The square has no bias; its root has, which JacobianNorms.bias tells. A draw is a pure function of (seed, example, draw).
    """
    classes = network.classes(batches)

    def vectors(begin: int, count: int) -> Tensor:
        v = [
            torch.stack([signs(classes, seed, INPUT, e, d) for d in range(draws)]) for e in range(begin, begin + count)
        ]
        return torch.stack(v).to(network.device, network.dtype)

    return JacobianNorms(_pulled(network, batches, vectors, "input Jacobian, estimate", progress), exact=False)


def _pulled(
    network: Frozen, batches: Batches, vectors: Callable[[int, int], Tensor], title: str, progress: bool
) -> Tensor:
    """‖(∂z/∂x)ᵀv‖² of each example and of its R vectors, (n, R) float64. `vectors`: first example, how many → (count, R, K)."""
    found: list[Tensor] = []
    for inputs, _ in chunks(network, batches, TOGETHER, title, progress):
        v = vectors(sum(map(len, found)), len(inputs))
        with torch.enable_grad():
            x = network.seen(inputs).detach().requires_grad_()
            z = network.logits_of_seen(network.parameters, x)  # (B, K)
        # No example's logits depend on another's inputs, so one pass has a row of every example's Jacobian.
        pulled = [
            torch.autograd.grad((z * row).sum(), x, retain_graph=True)[0].flatten(1).double().square().sum(1)
            for row in v.unbind(1)
        ]
        found.append(torch.stack(pulled, 1).cpu())
    return torch.cat(found)
