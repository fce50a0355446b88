"""What K-FAC's factors are made of: gradients at the logits by metric, and sums of outer products at each layer.

Of one target (an image, or a token) with loss ℓ a layer has inputs a_p and gradients g_p = ∂ℓ/∂outputs at P positions. Its weights'
gradient is Σ_p g_p a_pᵀ. Grosse and Martens (1602.01407) take a_p and g_q as independent, the statistics of all positions as the
same, and g of different positions as uncorrelated. Then the mean over targets is E[vec vecᵀ] = A ⊗ S with

    A = mean of a_p a_pᵀ over targets and positions,      S = mean over targets of Σ_p g_p g_pᵀ.

In their notation Ω = P·A and Γ = S/P: the factor P stands on the other side, and Ω ⊗ Γ is the same. So is the damped product, for
π carries the factor over (optim/kfac.py). A linear map of images has P = 1. Of text T targets share the T positions of a sequence,
g at a position is of the losses of all later tokens, and both sums are divided by the number of tokens: the same formula.

Shapes: N targets, K classes, d inputs of one output (and one more, always 1, for a bias), m outputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from configs.factors import CHUNK
from optim.draws import bits

Metric = str  # of configs/kronecker.py


@torch.no_grad()
def output_gradients(metric: Metric, logits: Tensor, targets: Tensor, seed: int, step: int, first: int) -> Tensor:
    """Gradients v at the logits (N, K) such that E[v vᵀ] is the metric's Hessian there; 0 where a target is −100.

    fisher: p − e_y with y drawn from p, of mean diag(p) − ppᵀ. fisher_empirical: y is the target. gauss_newton: N(0, I). What is
    drawn depends on seed, step and the target's place in the global batch, of which `first` is that of row 0, and on nothing else.
    """
    if metric == "gauss_newton":
        v = torch.cat([_normal(part, seed, step, first * logits.shape[1] + start) for start, part in _parts(logits)])
    else:
        labels = targets.clamp_min(0)
        if metric == "fisher":
            drawn = [_drawn(rows, seed, step, first + start // logits.shape[1]) for start, rows in _parts(logits)]
            labels = torch.cat(drawn)
        v = logits.softmax(-1)
        v.scatter_add_(-1, labels[:, None], torch.full_like(v[:, :1], -1.0))
    return v * (targets >= 0)[:, None]


def _parts(logits: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Rows of a bounded size, each with the elements before it: what is drawn is in float64."""
    start = 0
    for rows in logits.split(max(1, (CHUNK >> 2) // logits.shape[1])):
        yield start, rows
        start += rows.numel()


def _drawn(logits: Tensor, seed: int, step: int, first: int) -> Tensor:
    """A label of each row, (N,), by where a uniform number falls in the sums of its probabilities."""
    sums = logits.double().softmax(-1).cumsum(-1)
    u = _uniform("kfac/label", seed, step, first, logits[:, 0]) * sums[:, -1]
    return (sums <= u[:, None]).sum(-1).clamp_max(logits.shape[1] - 1)


def _normal(like: Tensor, seed: int, step: int, start: int) -> Tensor:
    """Standard normal numbers in the shape and dtype of `like`, by Box and Muller (1958)."""
    # 1 − u lies in (0, 1]: its logarithm is finite.
    radius = (-2 * torch.log1p(-_uniform("kfac/radius", seed, step, start, like))).sqrt()
    angle = 2 * math.pi * _uniform("kfac/angle", seed, step, start, like)
    return (radius * angle.cos()).view(like.shape).to(like.dtype)


def _uniform(purpose: str, seed: int, step: int, start: int, like: Tensor) -> Tensor:
    """float64 in [0, 1), of 53 bits each, flat."""
    # A logical shift: torch's keeps the sign, which the mask takes away.
    whole = (bits(purpose, seed, step, "logits", start, like) >> 11) & ((1 << 53) - 1)
    return whole.double() * 2.0**-53


def input_products(layer: nn.Module, inputs: Tensor) -> tuple[Tensor, int]:
    """Σ a aᵀ over examples and positions, (d, d), and how many those were; float32, or float64 of inputs in it."""
    total, rows = None, 0
    for part in _in_chunks(layer, inputs):
        a = _wide(_rows(layer, part))
        if layer.bias is not None:
            a = torch.cat([a, a.new_ones(len(a), 1)], 1)
        total, rows = a.T @ a if total is None else total.addmm_(a.T, a), rows + len(a)
    assert total is not None
    return total, rows


def output_products(layer: nn.Module, gradients: Tensor) -> Tensor:
    """Σ g gᵀ over examples and positions, (m, m), in the dtype of `input_products`."""
    # A convolution has its channels second.
    g = _wide((gradients.movedim(1, -1) if isinstance(layer, nn.Conv2d) else gradients).flatten(0, -2))
    return g.T @ g


def _in_chunks(layer: nn.Module, inputs: Tensor) -> tuple[Tensor, ...]:
    """Images a few at a time where unfolding makes much of them."""
    if not isinstance(layer, nn.Conv2d):
        return (inputs,)
    unfolded = inputs[0].numel() * math.prod(layer.kernel_size)  # of an image, at most
    return inputs.split(max(1, CHUNK // unfolded))


def _rows(layer: nn.Module, inputs: Tensor) -> Tensor:
    """The inputs of one output each, (rows, d without the bias); of a convolution in the order of its weight's dimensions."""
    if isinstance(layer, nn.Conv2d):
        return F.unfold(
            inputs,
            layer.kernel_size,
            padding=layer.padding,
            stride=layer.stride,  # type: ignore[arg-type]
        ).mT.flatten(0, 1)
    return inputs.flatten(0, -2)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def is_known(layer: nn.Module) -> bool:
    """Whether the formulas above are the layer's: a linear map, or a convolution padded with zeros, in one group, undilated."""
    if isinstance(layer, nn.Conv2d):
        plain = layer.groups == 1 and layer.dilation == (1, 1) and layer.padding_mode == "zeros"
        return plain and not isinstance(layer.padding, str)
    return isinstance(layer, nn.Linear)


@contextmanager
def float32_products() -> Iterator[None]:
    """Within, float32 matrices are multiplied as such, also where a run's own products are TF32."""
    before = torch.backends.fp32_precision
    try:
        torch.backends.fp32_precision = "ieee"
        yield
    finally:
        torch.backends.fp32_precision = before
