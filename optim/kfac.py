"""K-FAC (Martens and Grosse, 1503.05671; Grosse and Martens, 1602.01407): the step of a layer is divided by its curvature A ⊗ S.

    U = (S + √λ_d/π·I)⁻¹ · G · (A + π√λ_d·I)⁻¹,   m ← μm + U,   w ← w − ηm,   π² = (tr A/dim A) / (tr S/dim S)

G is the clipped gradient of a linear map or convolution, (outputs, inputs), its bias one more column. λ acts as in Three Mechanisms
of Weight Decay Regularization (1810.12281): decoupled after the preconditioner, w ← (1 − ηλ)w; l2_coupled before it, G + λw, which
also the momentum carries on. What has no factors (embeddings, gains, biases of normalisations, a head that is the embedding) takes
SGD's step with the same η, μ and λ. What the factors are is optim/kfac_statistics.py, when they are measured engine/curvature.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from configs.errors import InputError
from configs.factors import is_factored
from configs.schema import Optim
from configs.tensors import TensorSpec
from optim import sgd
from optim.kfac_statistics import float32_products
from optim.rules import rule_of

ABOUT = "the gradient divided by a layer's curvature A ⊗ S, with momentum; SGD's step for what is no such layer (1503.05671)"


def family(tensor: TensorSpec) -> str:
    """By which of the two a tensor is updated."""
    return "kfac" if is_factored(tensor) else "first_order"


def moments(config: Optim, family: str = "") -> tuple[str, ...]:
    """Of both families. The factors are no moments: they are not shaped like a parameter (`KFAC.state_of_layers`)."""
    return sgd.moments(config)


def build(groups: list[dict[str, Any]], config: Optim) -> torch.optim.Optimizer:
    """η is set before each step."""
    return KFAC(groups, config)


@dataclass
class Layer:
    """A layer: its tensors, its factors A (d, d) and S (m, m), float32 at least, and the inverses of the damped ones.

    `group`: the optimiser's group of its weight.
    """

    weight: Tensor
    bias: Tensor | None
    group: dict[str, Any]
    a: Tensor
    s: Tensor
    a_inverse: Tensor
    s_inverse: Tensor

    def gradient(self) -> Tensor:
        """(m, d), a copy."""
        assert self.weight.grad is not None
        of_weight = self.weight.grad.flatten(1)
        if self.bias is None:
            return of_weight.clone()
        assert self.bias.grad is not None
        return torch.cat([of_weight, self.bias.grad[:, None]], 1)

    def write(self, step: Tensor) -> None:
        """Put (m, d) where the gradients are."""
        assert self.weight.grad is not None
        if self.bias is not None:
            assert self.bias.grad is not None
            self.bias.grad.copy_(step[:, -1])
            step = step[:, :-1]
        self.weight.grad.copy_(step.reshape(self.weight.shape))


class KFAC(sgd.SGD):
    """SGD over gradients that are divided by curvature first. Every rank has all factors, and whole gradients (ZeRO stage 0)."""

    def __init__(self, groups: list[dict[str, Any]], config: Optim) -> None:
        inside = rule_of(config).inside
        super().__init__(groups, config.momentum, inside == "decoupled")
        self.coupled, self.kfac = inside == "coupled", config.kfac
        # How many measurements the factors hold, and inversions there were: on the CPU, for they are asked in every update.
        self.counts = {name: torch.zeros((), dtype=torch.int64) for name in ("statistics", "inverses")}
        groups_by_name = {name: group for group in self.param_groups for name in group["parameter_names"]}
        named = {
            name: p
            for group in self.param_groups
            for name, p in zip(group["parameter_names"], group["params"], strict=True)
        }
        self.layers: dict[str, Layer] = {}
        for name, weight in named.items():
            if groups_by_name[name]["family"] == "kfac" and weight.dim() > 1:
                layer = name.removesuffix(".weight")
                bias = named.get(f"{layer}.bias")
                d, m = weight[0].numel() + (bias is not None), len(weight)
                # Zeros now, not at the first measurement: memory is known, and a checkpoint of step 0 is whole.
                factors = [weight.new_zeros(n, n, requires_grad=False) for n in (d, m, d, m)]
                self.layers[layer] = Layer(weight, bias, groups_by_name[name], *factors)

    def state_of_layers(self) -> dict[str, Tensor]:
        """All that checkpoints hold beside the moments, by name; the live tensors."""
        named = {
            f"{name}.{kind}": getattr(layer, kind)
            for name, layer in self.layers.items()
            for kind in ("a", "s", "a_inverse", "s_inverse")
        }
        return named | self.counts

    @torch.no_grad()
    def fold(self, factors: dict[str, tuple[Tensor, Tensor]]) -> None:
        """Move the factors on by new ones (A, S) by layer; the first are taken whole."""
        decay = self.kfac.factor_decay if self.counts["statistics"] else 0.0
        for name, (a, s) in factors.items():
            self.layers[name].a.mul_(decay).add_(a, alpha=1 - decay)
            self.layers[name].s.mul_(decay).add_(s, alpha=1 - decay)
        self.counts["statistics"] += 1

    @torch.no_grad()
    def invert(self, names: list[str]) -> None:
        """Make the inverses of these layers anew. InputError names a factor that has none."""
        for name in names:
            layer = self.layers[name]
            for_a, for_s = dampings(layer.a, layer.s, self.kfac.damping)
            pairs = (("A", layer.a, layer.a_inverse, for_a), ("S", layer.s, layer.s_inverse, for_s))
            for which, factor, out, damping in pairs:
                found = inverse(factor, damping, self.kfac.inverse)
                if found is None:
                    raise InputError(
                        f"optim.kfac: {which} of layer {name} is singular, and damping {self.kfac.damping:g} does not make it "
                        "invertible (dead inputs or outputs, or fewer examples in a batch than the factor has rows); set "
                        "optim.kfac.damping above 0: 1e-3 is usual"
                    )
                out.copy_(found)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every group."""
        # Preconditioned L2: λw is divided by the curvature as the gradient is.
        for group in self.param_groups if self.coupled else ():
            for p in group["params"]:
                p.grad.add_(p, alpha=group["decay"])
        self._precondition()
        super().step(closure)  # decoupled decay, momentum, step

    def _precondition(self) -> None:
        """Turn the layers' gradients G into U, all scaled by one number where optim.kfac.kl_clip asks for it."""
        assert self.counts["inverses"], "a step before the first inverses"
        steps, products = {}, []
        with float32_products():
            for name, layer in self.layers.items():
                gradient = layer.gradient()
                steps[name] = layer.s_inverse @ gradient @ layer.a_inverse
                if self.kfac.kl_clip is not None:
                    square = layer.group["lr"] ** 2
                    products.append(square * (gradient * steps[name]).sum(dtype=torch.float64))
        # η²Σ g·F⁻¹g is twice the KL divergence that the step makes, by the quadratic model (Ba, Grosse and Martens, 2017).
        scale = 1.0
        if products and (total := torch.stack(products).sum().item()) > 0:
            assert self.kfac.kl_clip is not None
            scale = min(1.0, math.sqrt(self.kfac.kl_clip / total))
        for name, step in steps.items():
            self.layers[name].write(step if scale == 1.0 else step * scale)


def dampings(a: Tensor, s: Tensor, damping: float) -> tuple[float, float]:
    """What is added to the diagonals of A and S: π√λ_d and √λ_d/π, whose product is λ_d; π = 1 where a factor is zero."""
    means = [factor.diagonal().mean(dtype=torch.float64).item() for factor in (a, s)]
    pi = math.sqrt(means[0] / means[1]) if min(means) > 0 else 1.0
    return pi * math.sqrt(damping), math.sqrt(damping) / pi


def inverse(factor: Tensor, damping: float, how: str) -> Tensor | None:
    """(factor + damping·I)⁻¹ of a positive semidefinite matrix, float64; None where it has none."""
    wide = factor.double()
    if how == "eigen" or not damping:
        values, vectors = torch.linalg.eigh(wide)
        # What float32 sums leave of an eigenvalue of 0: it may be negative too.
        least = len(wide) * torch.finfo(factor.dtype).eps * values[-1]
        if not damping and not (values[0] > least):
            return None
        if how == "eigen":
            return (vectors / (values.clamp_min(0) + damping)) @ vectors.T
    damped = wide.clone()
    damped.diagonal().add_(damping)
    lower, info = torch.linalg.cholesky_ex(damped)
    return None if info else torch.cholesky_inverse(lower)
