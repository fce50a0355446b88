"""The noise of SGD's gradient: P1's noise scale, the variance of the gradient itself, and its ratio to the loss.

P1 (arXiv 2310.04415) writes the noise's covariance as σ²·(1/n)·JᵀJ with σ² = E[ℓ′²], for a loss ℓ of one output. With K logits z
and cross-entropy the gradient of one example is g = Jᵀr, J (K, P) its Jacobian and

    r = ∂ℓ/∂z = softmax(z) − onehot(y),   so that   E[g gᵀ] = E[Jᵀ r rᵀ J].

r takes the place of ℓ′. Here **σ² = E‖r‖²**, the sum over logits: for K = 1 it is P1's. Were r without relation to J, and the same
in all K directions, E[r rᵀ] would be (σ²/K)·I and E‖g‖² = (σ²/K)·E‖J‖_F²: in that formula, and in Conjecture 1, σ²/K stands
(`per_logit`). It is a model: r has sum 0, and one direction of K is the right class's. E‖g‖² is measured beside it.

Two bounds hold always. ‖r‖² ≤ 2(1 − p_y)² ≤ 2ℓ, since the wrong classes' p sum to 1 − p_y, and 1 − p ≤ −ln p. So σ² ≤ 2L, and
E‖g‖² ≤ max‖J‖²·2L: the noise vanishes with the training loss L, which is Proposition 2's upper half. (Two classes by one logit
d: ‖r‖² = 2·ℓ′(d)².)

The decay λw is the same for every example and no noise. BatchNorm normalises by its buffers (weights/frozen.py): with the batch's
statistics an example has no gradient of its own, so this is the noise of the drawn examples alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap
from torch.nn import functional as F

from configs.errors import InputError
from weights.frozen import AT_ONCE, Batches, Frozen, Parameters, chunks, square_sum

FORWARD = 1024  # examples of one forward pass without gradients


@dataclass(frozen=True)
class NoiseScale:
    """`squares`: ‖r‖² of each example, (n,) float64; `classes`: K; `loss`: the mean cross-entropy of the same examples."""

    squares: Tensor
    classes: int
    loss: float

    @property
    def scale(self) -> float:
        """σ² = E‖r‖², from 0 to 2."""
        return self.squares.mean().item()

    @property
    def per_logit(self) -> float:
        """σ²/K, the factor of E‖J‖_F²."""
        return self.scale / self.classes

    @property
    def error(self) -> float:
        """Standard error of `scale`, over examples."""
        return (self.squares.std() / len(self.squares) ** 0.5).item()


@torch.no_grad()
def noise_scale(network: Frozen, batches: Batches, progress: bool = True) -> NoiseScale:
    """One forward pass over the examples."""
    squares, losses, classes = [], [], 0
    for inputs, targets in chunks(network, batches, FORWARD, "noise scale", progress):
        logits = network.logits(network.parameters, inputs).double()
        classes = logits.shape[1]
        residual = logits.softmax(1) - F.one_hot(targets, classes)  # (B, K)
        squares.append(residual.square().sum(1).cpu())
        losses.append(F.cross_entropy(logits, targets, reduction="none").cpu())
    return NoiseScale(torch.cat(squares), classes, torch.cat(losses).mean().item())


@dataclass(frozen=True)
class GradientNoise:
    """Of m examples: `squares` ‖g_i‖² of each, (m,) float64; `square_of_mean` ‖ḡ‖², ḡ their mean; `loss` the mean cross-entropy."""

    squares: Tensor
    square_of_mean: float
    loss: float

    @property
    def examples(self) -> int:
        return len(self.squares)

    @property
    def of_one(self) -> float:
        """E‖g_i − ḡ‖², the noise of one example: (Σ‖g_i‖² − m‖ḡ‖²)/(m − 1). NaN for m = 1.

        Without bias where the m were drawn from more. Where ‖ḡ‖² is nearly all of E‖g_i‖², measure in float64.
        """
        m = self.examples
        if m < 2:
            return float("nan")
        return (self.squares.mean().item() - self.square_of_mean) * m / (m - 1)

    @property
    def error(self) -> float:
        """About the standard error of `of_one`: that of the mean of ‖g_i‖² over examples, with ḡ as it is."""
        return (self.squares.std() / self.examples**0.5).item()

    def of_batch(self, size: int, population: int | None = None) -> float:
        """E‖g_B − ḡ‖² of a batch of `size` examples: of_one/size. `population`: of how many it is drawn without replacement, as an
        epoch is; then times 1 − size/population, so that a batch of all has no noise. InputError for a batch larger than that."""
        if size < 1 or (population is not None and size > population):
            raise InputError(f"a batch of {size} examples of {population}; a batch has from 1 to all of them")
        return self.of_one / size * (1.0 if population is None else 1 - size / population)


def gradient_noise(network: Frozen, batches: Batches, at_once: int = AT_ONCE, progress: bool = True) -> GradientNoise:
    """Every example's own gradient of its cross-entropy, a chunk at a time. `at_once`: numbers of gradients held together."""

    def loss(parameters: Parameters, inputs: Tensor, target: Tensor) -> Tensor:
        return network.losses(parameters, inputs[None], target[None])[0]

    each = vmap(grad_and_value(loss), in_dims=(None, 0, 0))
    squares, losses, examples = [], [], max(1, at_once // network.size)
    total = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in network.parameters.items()}
    for inputs, targets in chunks(network, batches, examples, "gradient noise", progress):
        gradients, values = each(network.parameters, inputs, targets)  # (c, …) each, (c,)
        squares.append(vmap(square_sum)(gradients).cpu())
        losses.append(values.double().cpu())
        for name, gradient in gradients.items():
            total[name] += gradient.sum(0)
    found = torch.cat(squares)
    mean = {name: gradient / len(found) for name, gradient in total.items()}
    return GradientNoise(found, square_sum(mean).item(), torch.cat(losses).mean().item())
