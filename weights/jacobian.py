"""The Jacobian of the logits by all trainable parameters: its norm, exact or estimated, example by example.

P1 (arXiv 2310.04415; Conjecture 1): SGD's noise acts as a penalty on ‖J(w)‖_F². Of one example J is (K, P), and its norm
‖J‖_F = √(Σ over logits and parameters of (∂z_k/∂w_p)²). P1's measure is the mean of that norm over 5,000 training images.

Shapes: n examples, K logits, P parameters, D draws. BatchNorm normalises by its buffers (weights/frozen.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import vjp, vmap

from weights.frozen import AT_ONCE, JACOBIAN, Batches, Frozen, Parameters, chunks, signs, square_sum


@dataclass(frozen=True)
class JacobianNorms:
    """`squares`: ‖J‖_F² of each example, exact, or draws of which each has that mean; (n, D) float64 on the CPU, D = 1 if exact."""

    squares: Tensor
    exact: bool

    @property
    def norm(self) -> float:
        """P1's measure, the mean over examples of ‖J‖_F. Of an estimate: the root of the draws' mean, too small by `bias`."""
        return self.squares.mean(1).sqrt().mean().item()

    @property
    def bias(self) -> float:
        """About how much `norm` of an estimate lies below the exact one, ≤ 0: −Var/(8 m^1.5) of each example, the second order of
        the root of a mean m. 0 if exact, NaN for a single draw."""
        if self.exact:
            return 0.0
        means = self.squares.mean(1)
        bias = -self.squares.var(1) / self.squares.shape[1] / (8 * means**1.5)
        return bias[means > 0].mean().item()

    @property
    def mean_square(self) -> float:
        """Mean over examples of ‖J‖_F². This is what an estimate has without bias."""
        return self.squares.mean().item()

    @property
    def error(self) -> float:
        """Standard error of `mean_square`: which examples and which draws they were. NaN for a single example.

        The draws of two examples have nothing to do with each other, so the spread of their means holds both.
        """
        return (self.squares.mean(1).std() / len(self.squares) ** 0.5).item()

    @property
    def norm_error(self) -> float:
        """Standard error of `norm`, as `error`."""
        return (self.squares.mean(1).sqrt().std() / len(self.squares) ** 0.5).item()

    @property
    def draw_error(self) -> float:
        """Standard error of `mean_square` for these very examples: the draws' alone. 0 if exact, NaN for a single draw."""
        if self.exact:
            return 0.0
        n, draws = self.squares.shape
        return (self.squares.var(1).sum().div(draws).sqrt() / n).item()


def exact(network: Frozen, batches: Batches, at_once: int = AT_ONCE, progress: bool = True) -> JacobianNorms:
    """Row by row, K backward passes an example. `at_once`: numbers of J that are held together."""
    rows = torch.eye(network.classes(batches), dtype=network.dtype, device=network.device)
    squares = _pulled(network, batches, lambda _, count: rows.expand(count, -1, -1), at_once, "Jacobian", progress)
    return JacobianNorms(squares.sum(1, keepdim=True), exact=True)


def estimate(
    network: Frozen,
    batches: Batches,
    draws: int,
    seed: int,
    first: int = 0,
    at_once: int = AT_ONCE,
    progress: bool = True,
) -> JacobianNorms:
    """Hutchinson's: with v of K random signs, E‖Jᵀv‖² = tr(J Jᵀ) = ‖J‖_F². `draws` backward passes an example.

    The square is without bias, its root is not (JacobianNorms.norm, .bias). A draw's variance is 2·Σ_{k≠l} (J Jᵀ)_{kl}²; normal v
    would have the diagonal in it too. v is a pure function of (seed, example, draw): neither chunks nor the number of draws change
    it. `first`: the number of the first example, where the examples are a part of more.
    """
    classes = network.classes(batches)

    def vectors(begin: int, count: int) -> Tensor:
        examples = range(first + begin, first + begin + count)
        v = torch.stack(
            [torch.stack([signs(classes, seed, JACOBIAN, e, draw) for draw in range(draws)]) for e in examples]
        )
        return v.to(network.device, network.dtype)

    squares = _pulled(network, batches, vectors, at_once, "Jacobian, estimate", progress)
    return JacobianNorms(squares, exact=False)


def _pulled(
    network: Frozen,
    batches: Batches,
    vectors: Callable[[int, int], Tensor],
    at_once: int,
    title: str,
    progress: bool,
) -> Tensor:
    """‖Jᵀv‖² of each example and each of its R vectors, (n, R) float64. `vectors`: first example, how many → (count, R, K)."""
    rows = vectors(0, 1).shape[1]
    # Whole examples where several fit; else a part of one example's vectors, which share its forward pass.
    examples = max(1, at_once // (network.size * rows))
    part = rows if examples > 1 else min(rows, max(1, at_once // network.size))

    def one(inputs: Tensor, v: Tensor) -> Tensor:
        def logits(parameters: Parameters) -> Tensor:
            return network.logits(parameters, inputs[None])[0]  # (K,)

        _, pull = vjp(logits, network.parameters)
        return vmap(lambda row: square_sum(pull(row)[0]), chunk_size=part)(v)  # (R,)

    found: list[Tensor] = []
    for inputs, _ in chunks(network, batches, examples, title, progress):
        begin = sum(map(len, found))
        found.append(vmap(one)(inputs, vectors(begin, len(inputs))).cpu())
    return torch.cat(found)
