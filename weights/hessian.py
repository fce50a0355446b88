"""The Hessian of the mean cross-entropy by all trainable parameters: its products with vectors, trace, and largest eigenvalue.

P1 (arXiv 2310.04415) measures the trace, of the fine-tuned weights, over 5,000 training images. BatchNorm normalises by its buffers
(weights/frozen.py), so this is the curvature of what is evaluated, not of the loss of a training batch. A decay term ½λ‖w‖² is
not in it: it adds λ to every eigenvalue and λ·P to the trace.

A product is a backward pass through a backward pass: exact up to rounding, about four times a gradient's work. Shapes: P
parameters; vectors are flat, (P,), in the order of Frozen.parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from weights.frozen import TOP, TRACE, Batches, Frozen, bar, signs


class _Curved:
    """A batch's gradient, of its share of the mean loss over all examples, ready to be differentiated again and again."""

    def __init__(self, network: Frozen, inputs: Tensor, targets: Tensor, examples: int) -> None:
        self.network = network
        # Leaves of this graph alone: the network's own parameters stay without a gradient.
        self.weights = {name: p.clone().requires_grad_() for name, p in network.parameters.items()}
        losses = network.losses(self.weights, network.placed(inputs), targets.to(network.device))
        self.gradient = torch.autograd.grad(losses.sum() / examples, list(self.weights.values()), create_graph=True)

    def product(self, vector: Tensor) -> Tensor:
        """The batch's share of H·v, (P,)."""
        against = list(self.network.unflat(vector).values())
        # Zeros, not None, where the gradient does not depend on a tensor (the last bias of a linear loss).
        pieces = torch.autograd.grad(
            self.gradient, list(self.weights.values()), against, retain_graph=True, materialize_grads=True
        )
        return torch.cat([piece.reshape(-1) for piece in pieces])


def product(network: Frozen, batches: Batches, vector: Tensor) -> Tensor:
    """H·v, (P,) in the network's dtype."""
    examples, total = _count(batches), torch.zeros_like(vector)
    for inputs, targets in batches:
        total += _Curved(network, inputs, targets, examples).product(vector)
    return total


@dataclass(frozen=True)
class Trace:
    """`forms`: vᵀHv of each probe, float64."""

    forms: tuple[float, ...]

    @property
    def value(self) -> float:
        """Their mean, without bias: E[v vᵀ] = I."""
        return math.fsum(self.forms) / len(self.forms)

    @property
    def error(self) -> float:
        """Standard error over probes, for these very examples; NaN for one probe."""
        n = len(self.forms)
        if n < 2:
            return math.nan
        return math.sqrt(math.fsum((form - self.value) ** 2 for form in self.forms) / (n - 1) / n)


def trace(network: Frozen, batches: Batches, probes: int, seed: int, progress: bool = True) -> Trace:
    """Hutchinson's estimate: the mean of vᵀHv over vectors of random signs. Variance of one: 2·Σ_{i≠j} H_ij².

    Probe i is a pure function of (seed, i): more probes keep the first ones.
    """

    def probe(i: int) -> Tensor:
        return signs(network.size, seed, TRACE, i).to(network.device, network.dtype)

    return Trace(quadratic_forms(network, batches, probe, probes, progress))


def quadratic_forms(
    network: Frozen, batches: Batches, vector: Callable[[int], Tensor], count: int, progress: bool = True
) -> tuple[float, ...]:
    """vᵀHv of vector(0) … vector(count − 1). Over a full orthonormal set their sum is the trace itself."""
    forms, examples = [0.0] * count, _count(batches)
    with bar("Hessian trace", count * len(batches), " products", progress) as shown:
        for inputs, targets in batches:
            # All vectors go through a batch's graph while it is there; of each only a number is kept.
            curved = _Curved(network, inputs, targets, examples)
            for i in range(count):
                v = vector(i)
                forms[i] += torch.dot(v.double(), curved.product(v).double()).item()
                shown.update()
    return tuple(forms)


def _count(batches: Batches) -> int:
    return sum(len(inputs) for inputs, _ in batches)


@dataclass(frozen=True)
class Top:
    """The largest eigenvalue as Lanczos found it. `residual`: ‖H·x − value·x‖ of its vector x of length 1: some eigenvalue lies
    within it, and the value itself errs by about residual²/gap. `converged`: residual ≤ tolerance·|value| was reached."""

    value: float
    residual: float
    products: int
    converged: bool


def top_eigenvalue(
    network: Frozen,
    batches: Batches,
    seed: int,
    tolerance: float = 1e-3,
    most: int = 100,
    progress: bool = True,
) -> Top:
    """The algebraically largest eigenvalue of H, by Lanczos from a random vector; at most `most` products.

    Without reorthogonalisation: three vectors in memory, whatever the number of products. Lost orthogonality brings copies of
    eigenvalues that have converged, and leaves the largest one and its residual right (Paige 1980). In float32 a relative
    tolerance below about 1e-5 is not reached. A vector without any part along the largest one's would miss it: the start is
    random, so that has no chance. A result that has not converged says so.
    """
    v = signs(network.size, seed, TOP, 0).to(network.device, network.dtype)
    v /= math.sqrt(network.size)
    before, beta = torch.zeros_like(v), 0.0
    diagonal: list[float] = []
    beside: list[float] = []
    value, residual = math.nan, math.inf
    with bar("top eigenvalue", most, " products", progress) as shown:
        for count in range(1, most + 1):
            after = product(network, batches, v)
            shown.update()
            after -= beta * before
            alpha = torch.dot(after.double(), v.double()).item()
            after -= alpha * v
            beta = after.double().norm().item()
            diagonal.append(alpha)
            value, last = _largest(diagonal, beside)
            residual = beta * abs(last)
            # an invariant subspace, to rounding: nothing is left to go on with
            exhausted = beta <= torch.finfo(v.dtype).eps * max(map(abs, [*diagonal, *beside, 1e-300]))
            if residual <= tolerance * abs(value) or exhausted:
                return Top(value, residual, count, True)
            beside.append(beta)
            before, v = v, after / beta
    return Top(value, residual, most, False)


def _largest(diagonal: list[float], beside: list[float]) -> tuple[float, float]:
    """Largest eigenvalue of the tridiagonal matrix, and the last entry of its vector."""
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    if beside:
        matrix += torch.diag(torch.tensor(beside, dtype=torch.float64), 1)
        matrix += torch.diag(torch.tensor(beside, dtype=torch.float64), -1)
    values, vectors = torch.linalg.eigh(matrix)
    return values[-1].item(), vectors[-1, -1].item()
