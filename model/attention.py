"""Causal self-attention: grouped heads, rotary positions, normalised queries and keys, and its arithmetic by name.

Shapes: B sequences, T tokens, C = n_embd, H = n_head, G = n_kv_head, D = C/H.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from configs.transformer import Model
from model.cache import Kept
from model.linear import Linear

SHIFT = 2.0  # what `stable` multiplies a positive row maximum by: 2510.04212 has it in 2 to 8, and any gives the same function


class Attention(nn.Module):
    """Causal self-attention. Keys and values have G heads, each read by H/G heads of queries (2305.13245)."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.n_head, self.n_kv_head, self.dropout = config.n_head, config.kv_heads, config.dropout
        width = config.n_embd // config.n_head
        self.arithmetic = config.attention
        self.qkv = Linear(config.n_embd, (config.n_head + 2 * config.kv_heads) * width, bias=config.bias)
        # One gain for all heads, before the rotation (Qwen3).
        self.q_norm = make_norm(config, width) if config.qk_norm else None
        self.k_norm = make_norm(config, width) if config.qk_norm else None
        self.proj = Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(
        self, x: Tensor, mask: Tensor | BlockMask | None, rotation: Tensor | None = None, kept: Kept | None = None
    ) -> Tensor:
        """x (B, T, C) → (B, T, C). `mask` (B, 1, T, T) bool, or FlexAttention's blocks: what may be seen; None: all before.
        `rotation` of Rotary.at.

        `kept`, for sampling: keys and values of the tokens before x, which x sees too; the mask is then (B, 1, T, S).
        """
        q, k, v = self.queries_keys_values(x, rotation)
        if kept is not None:
            k, v = kept.extend(k, v)  # (B, G, S, D)
        y = self.proj(self.attend(q, k, v, mask).transpose(1, 2).reshape(x.shape))  # (B, T, C)
        return F.dropout(y, self.dropout, self.training)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | BlockMask | None) -> Tensor:
        """q (B, H, T, D), k and v (B, G, T, D) → (B, H, T, D), by the arithmetic of model.attention.

        With a mask there may be more keys and values than queries: (B, G, S, D).
        """
        dropout, grouped = self.dropout if self.training else 0.0, self.n_kv_head < self.n_head
        if isinstance(mask, BlockMask):  # only where the arithmetic is sdpa and nothing is dropped
            y = flex_attention(q, k, v, block_mask=mask, enable_gqa=grouped)
            assert isinstance(y, Tensor)
            return y
        if self.arithmetic == "sdpa":
            return F.scaled_dot_product_attention(
                q, k, v, mask, dropout_p=dropout, is_causal=mask is None, enable_gqa=grouped
            )
        repeats = self.n_head // self.n_kv_head
        k, v = (one if repeats == 1 else one.repeat_interleave(repeats, 1) for one in (k, v))  # (B, H, T, D)
        return by_products(q, k, v, mask, dropout, stable=self.arithmetic == "stable")

    def queries_keys_values(self, x: Tensor, rotation: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, T, C) → q (B, H, T, D), k and v (B, G, T, D), as the scores are made of them."""
        B, T, C = x.shape
        heads = self.qkv(x).view(B, T, -1, C // self.n_head).transpose(1, 2)
        q, k, v = heads.split((self.n_head, self.n_kv_head, self.n_kv_head), 1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        # Under autocast norms give float32, and only matrix products are lowered again: the three must be of one dtype.
        return q.to(v.dtype), k.to(v.dtype), v


def by_products(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, stable: bool) -> Tensor:
    """Attention written out, as a flash kernel computes it: softmax(s)·v = (e^(s−m)·v) / Σe^(s−m), m the row's maximum.

    Scores, exponentials and sums are float32; the weights e^(s−m) are rounded to v's dtype, and so is their product with v. In
    bfloat16 that is biased where the maximum is not unique (2510.04212): several weights are then exactly 1, the sum of their
    values is often halfway between two numbers, and what the small weights add, mostly of one sign, decides all roundings alike.
    `stable` moves m in such rows, to SHIFT·m above 0 and to 0 below. The function is the same, whatever m is.
    """
    with torch.autocast(q.device.type, enabled=False):
        scores = q.float() @ k.float().transpose(-2, -1) / math.sqrt(q.shape[-1])  # (B, H, T, T)
        visible = mask if mask is not None else scores.new_ones(scores.shape[-2:], dtype=torch.bool).tril()
        scores = scores.masked_fill(~visible, -math.inf)
        with torch.no_grad():
            top = scores.amax(-1, keepdim=True)  # (B, H, T, 1)
            if stable:
                is_shared = (scores == top).sum(-1, keepdim=True) > 1
                apart = torch.where(top > 0, (SHIFT - 1) * top, -top)
                # e^−apart may not vanish. Nor may one number stand for all large ones: its rounding would be a bias of its own.
                apart = torch.where(apart > 60, 30 + apart % 30, apart)
                top = torch.where(is_shared, top + apart, top)
        weights = (scores - top).exp()
        total = weights.sum(-1, keepdim=True)
        return ((F.dropout(weights, dropout).to(v.dtype) @ v).float() / total).to(v.dtype)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn each pair (x_i, x_{i+D/2}) by its position's angle, in float32 (2104.09864; halves apart, as in Llama).

    x (B, heads, T, D), rotation (2, T, D/2): cosines and sines.
    """
    cos, sin = rotation
    first, second = x.float().chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


class Rotary:
    """The table of rotary positions. No module and no buffer: a bfloat16 engine casts every buffer (2104.09864)."""

    def __init__(self, config: Model) -> None:
        half = config.n_embd // config.n_head // 2
        rates = config.rotary_base ** -(torch.arange(half, dtype=torch.float64) / half)  # (D/2,)
        angles = torch.arange(config.seq_len, dtype=torch.float64)[:, None] * rates  # (T, D/2)
        self.table = torch.stack((angles.cos(), angles.sin())).float()  # (2, T, D/2)

    def at(self, length: int, device: torch.device, start: int = 0) -> Tensor:
        """(2, length, D/2) float32, on the device: of `length` positions from `start` on."""
        if self.table.device != device:
            self.table = self.table.to(device)
        return self.table[:, start : start + length]


def make_norm(config: Model, width: int) -> nn.Module:
    """The normalisation of the configuration over the last dimension."""
    if config.norm == "rmsnorm":
        return nn.RMSNorm(width, config.norm_eps, elementwise_affine=config.layernorm_gain)
    return nn.LayerNorm(width, config.norm_eps, elementwise_affine=config.layernorm_gain, bias=config.bias)
