"""The next token of a text from a network's logits: temperature, top-k and top-p, and one draw.

Arithmetic alone, in float64 on any device. Shapes: n texts, V tokens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def probabilities(logits: Tensor, temperature: float, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """Logits (n, V) → the probabilities that are drawn from, float64 (n, V), 0 for tokens that cannot come.

    softmax(logits / temperature); of it the `top_k` likeliest tokens; of these, normalised again, the fewest likeliest whose sum
    reaches `top_p` (nucleus sampling, 1904.09751). Of equal tokens the smaller ids come first. At temperature 0 the likeliest
    alone. Each row's largest logit must be finite; another may be −∞.
    """
    ordered, tokens = logits.double().sort(dim=-1, descending=True, stable=True)
    count = ordered.shape[-1] if top_k is None else top_k
    if temperature == 0:
        count, temperature = 1, 1.0
    # The maximum is taken away first: divided by a small temperature it would overflow.
    scaled = (ordered - ordered[:, :1]) / temperature
    scaled[:, count:] = -math.inf
    likely = scaled.softmax(-1)  # (n, V), from the likeliest down
    if top_p is not None:
        is_reached = likely.cumsum(-1)[:, :-1] >= top_p  # by those that are likelier
        likely[:, 1:].masked_fill_(is_reached, 0.0)
        likely = likely / likely.sum(-1, keepdim=True)
    return torch.zeros_like(likely).scatter_(-1, tokens, likely)


def pick(chances: Tensor, uniform: Tensor) -> Tensor:
    """The token of each row of `chances` (n, V), by a number of [0, 1) each, (n,): int64 (n,), never one of chance 0."""
    upper = chances.cumsum(-1)
    total = upper[:, -1:]
    # The largest number below 1 is 1 − 2⁻⁵³, and its product with the total is rounded to less than the total. So there is a first
    # token whose sum exceeds the product, and its chance is not 0.
    return torch.searchsorted(upper, uniform[:, None].double() * total, right=True)[:, 0]
