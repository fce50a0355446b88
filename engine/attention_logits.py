"""The largest attention logit of every layer, q·k/√D over what a position may see: what grows before attention's entropy collapses.

Seen in a forward pass that a probe makes anyhow, over its fixed validation windows. The scores are made here, in float32, whatever
arithmetic the model's attention has; queries and keys are its own, normalised and turned as it has them.

Shapes: B sequences, T tokens, H heads, G heads of keys, D their width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from engine.agree import over_ranks
from model.attention import Attention

AT_ONCE = 1 << 23  # scores that are held at once: 32 MiB


class AttentionLogits:
    """Of the attention layers of a network; of a network without any, nothing."""

    def __init__(self, module: nn.Module, windows: int) -> None:
        """`windows`: how many of the batch's first sequences count; those behind them are filling."""
        self.layers = {name: one for name, one in module.named_modules() if isinstance(one, Attention)}
        self.windows, self.largest = windows, dict[str, Tensor]()

    @contextmanager
    def seen(self) -> Iterator[None]:
        """Within, a forward pass is looked at. It must not be compiled: a compiled block would be compiled anew."""
        for name, layer in self.layers.items():
            layer.attend = self._noting(name, layer.attend)  # type: ignore[method-assign]
        try:
            yield
        finally:
            for layer in self.layers.values():
                del layer.attend  # the class's own is there again

    def _noting(self, name: str, attend: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def noting(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
            n = self.windows
            self.largest[name] = largest_score(q[:n], k[:n], None if mask is None else mask[:n])
            return attend(q, k, v, mask)

        return noting

    def columns(self) -> dict[str, float]:
        """`probe/attention_logit/blocks.0.attn`, and of the whole model without a name, over all ranks. Collective."""
        if not self.layers:
            return {}
        largest = torch.stack([self.largest[name] for name in self.layers])
        over_ranks(largest, dist.ReduceOp.MAX)
        found = dict(zip(self.layers, largest.tolist(), strict=True))
        row = {f"probe/attention_logit/{name}": value for name, value in found.items()}
        return row | {"probe/attention_logit": max(found.values())}


@torch.no_grad()
def largest_score(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """float64 (): over q (B, H, T, D), k (B, G, T, D) and `mask` (B, 1, T, T), or all before; −∞ of no sequence at all."""
    (B, H, T, D), G = q.shape, k.shape[1]
    largest = torch.full((), -math.inf, dtype=torch.float64, device=q.device)
    rows = max(1, AT_ONCE // (H * T))
    with torch.autocast(q.device.type, enabled=False):
        for b in range(B):
            keys = k[b].float()[:, None].transpose(-2, -1)  # (G, 1, D, T)
            for first in range(0, T, rows):
                last = min(T, first + rows)
                # Nobody sees what comes later: the columns from `last` on are not made.
                queries = q[b, :, first:last].float().view(G, H // G, last - first, D)
                scores = queries @ keys[..., :last]  # (G, H/G, rows, last)
                if mask is not None:
                    scores.masked_fill_(~mask[b, :, first:last, :last], -math.inf)
                else:
                    hidden = torch.ones(last - first, last - first, dtype=torch.bool, device=q.device).triu(1)
                    scores[..., first:].masked_fill_(hidden, -math.inf)
                largest = torch.maximum(largest, scores.amax().double())
    return largest / math.sqrt(D)
