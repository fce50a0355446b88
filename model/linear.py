"""Matrix products with weights: torch's own, except in float32 on a CPU.

There the products of weights with activations and with their gradients go to the oneDNN kernel that torch has for its compiler:
on some processors it is faster than torch's own (docs/speed.md). Both add in float32; their sums differ in the order of adding.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

logger = logging.getLogger(__name__)
ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
if not ONEDNN:
    logger.warning("torch %s has no linear map of oneDNN: float32 on a CPU may be slower", torch.__version__)


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x (…, I) · weightᵀ, weight (O, I), of one dtype → (…, O); not differentiable."""
    if not _by_onednn(x):
        return F.linear(x, weight)
    return _compiled(x, weight) if torch.compiler.is_compiling() else _onednn(x, weight)


def _by_onednn(x: Tensor) -> bool:
    return ONEDNN and x.device.type == "cpu" and x.dtype == torch.float32


def _onednn(x: Tensor, weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")  # type: ignore[no-any-return]


# torch.compile takes that kernel for constant weights only, and leaves an operator it does not know alone.
_compiled = torch.library.custom_op("gpt::product", _onednn, mutates_args=())
_compiled.register_fake(lambda x, weight: x.new_empty(*x.shape[:-1], len(weight)))


class Linear(nn.Linear):
    """nn.Linear by `product`."""

    def forward(self, x: Tensor) -> Tensor:
        """(…, I) → (…, O)"""
        if not _by_onednn(x) or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        y: Tensor = _Product.apply(x, self.weight)  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + self.bias


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x = product(gradient, weight.T) if ctx.needs_input_grad[0] else None
        of_weight = gradient.flatten(0, -2).T @ x.flatten(0, -2) if ctx.needs_input_grad[1] else None
        return of_x, of_weight
