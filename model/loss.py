"""The training loss of the last hidden states: the head's matrix product and cross-entropy, a chunk of tokens at a time.

Shapes: N tokens, C width, V vocabulary. Of GPT-2's vocabulary at most 2,668 tokens' logits exist at once, in the dtype of
the matrix product; their softmax is taken in float32 whatever that is, and they are turned into their own gradient in
place. So the gradients of hidden states and head are known when the forward pass ends.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from configs.cost import LOGITS_AT_ONCE, SOFTMAX_AT_ONCE
from model.linear import product

CHUNK_ELEMENTS = LOGITS_AT_ONCE
# Logits whose softmax is taken at once: on a CPU 8 MiB of float32, which stay in its cache; on a GPU 128 MiB.
CACHE_ELEMENTS, CUDA_ELEMENTS = SOFTMAX_AT_ONCE, 1 << 25


def cross_entropy_sum(
    x: Tensor,
    head: Tensor,
    targets: Tensor,
    z_loss: float = 0.0,
    dtype: torch.dtype | None = None,
    compiled: bool = False,
) -> Tensor:
    """Sum over tokens of −log p(target), p = softmax(x·headᵀ): float32 scalar (nats).

    With `z_loss` the gradient is that of the cross-entropy plus z_loss·Σ log²Z, Z = Σ exp(logits) (PaLM, arXiv
    2204.02311, section 5); the value stays the cross-entropy, so that runs with and without it can be compared.

    x (N, C) and head (V, C) of any float dtype, targets (N,) int64, −100 where a token does not count. `dtype`: that of
    the matrix products, if not x's own. `compiled`: the softmax by torch.compile. The caller divides by the global
    token count: a sum is exact under any split into micro-batches and ranks, a mean of means is not.
    """
    options = (z_loss, dtype or x.dtype, compiled, torch.is_grad_enabled(), False)
    return _LinearCrossEntropy.apply(x, head, targets, *options)  # type: ignore[no-any-return,no-untyped-call]


@torch.no_grad()
def cross_entropies(
    x: Tensor, head: Tensor, targets: Tensor, dtype: torch.dtype | None = None, compiled: bool = False
) -> Tensor:
    """What `cross_entropy_sum` sums, token by token: float32 (N,), zero where a token does not count. It has no gradient."""
    options = (0.0, dtype or x.dtype, compiled, False, True)
    return _LinearCrossEntropy.apply(x, head, targets, *options)  # type: ignore[no-any-return,no-untyped-call]


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        head: Tensor,
        targets: Tensor,
        z_loss: float,
        dtype: torch.dtype,
        compiled: bool,
        with_gradient: bool,
        by_token: bool,
    ) -> Tensor:
        losses, of_x, of_head = [], [], None
        softmax = _compiled() if compiled else _softmax
        with torch.autocast(x.device.type, enabled=False):
            weight = head.to(dtype)
            for rows, wanted in _chunks(x.to(dtype), targets, _even(len(x), CHUNK_ELEMENTS // len(head))):
                logits = product(rows, weight)  # (n, V)
                losses += [
                    softmax(*piece, z_loss, with_gradient) for piece in _chunks(logits, wanted, _softmax_rows(logits))
                ]
                if with_gradient:  # the logits are their own gradient by now
                    of_x.append(product(logits, weight.T))
                    outer = logits.T @ rows  # (V, C)
                    of_head = outer if of_head is None else of_head.float().add_(outer)
        if of_head is not None:
            ctx.save_for_backward(torch.cat(of_x).to(x.dtype), of_head.to(head.dtype))
        each = torch.cat(losses)
        return each if by_token else each.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        of_x, of_head = ctx.saved_tensors
        return of_x.mul_(scale), of_head.mul_(scale), None, None, None, None, None, None


def _softmax(logits: Tensor, targets: Tensor, z_loss: float, with_gradient: bool) -> Tensor:
    """Cross-entropy of each token, float32 (n,). Overwrites logits (n, V): with_gradient by the gradient, z-loss included."""
    counted, places = targets >= 0, targets.clamp_min(0)[:, None]
    wide = logits.float()
    largest = wide.amax(-1, keepdim=True)
    of_target = wide.gather(-1, places)
    total = wide.sub_(largest).exp_().sum(-1, keepdim=True)
    log_z = total.log() + largest  # (n, 1)
    if with_gradient:
        shares = wide.mul_(((1 + 2 * z_loss * log_z) / total) * counted[:, None])
        logits.copy_(shares.scatter_add_(-1, places, -counted[:, None].float()))
    return (log_z - of_target)[:, 0].where(counted, 0.0)


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    return torch.compile(_softmax, fullgraph=True, dynamic=False)


def _even(count: int, at_most: int) -> int:
    """The rows of a chunk where `count` are split into the fewest of nearly one size: large matrix products, no small rest."""
    return math.ceil(count / math.ceil(count / max(1, at_most)))


def _softmax_rows(logits: Tensor) -> int:
    return max(1, (CUDA_ELEMENTS if logits.device.type == "cuda" else CACHE_ELEMENTS) // logits.shape[1])


def _chunks(tensor: Tensor, targets: Tensor, rows: int) -> Iterator[tuple[Tensor, Tensor]]:
    yield from zip(tensor.split(max(1, rows)), targets.split(max(1, rows)), strict=True)


def logit_statistics(x: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """Summed cross-entropy, summed log Σ exp(logits), wrong top-1 guesses, and the largest logit: float64 (4,).

    x (N, C), head (V, C), targets (N,); targets of −100 do not count.
    """
    found = torch.tensor([0.0, 0.0, 0.0, -math.inf], dtype=torch.float64, device=x.device)
    counted = targets >= 0
    if not counted.any():
        return found
    for rows, wanted in _chunks(x[counted], targets[counted], CUDA_ELEMENTS // len(head)):
        logits = F.linear(rows, head).float()  # (n, V)
        loss = F.cross_entropy(logits, wanted, reduction="sum")
        wrong = (logits.argmax(-1) != wanted).sum()
        found[:3] += torch.stack([loss.double(), logits.logsumexp(-1).double().sum(), wrong.double()])
        found[3] = torch.maximum(found[3], logits.max().double())
    return found
