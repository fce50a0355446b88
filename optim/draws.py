"""Random numbers that are a pure function of (purpose, seed, step, tensor, element): the same for any ranks, and after a resume.

A counter goes through SplitMix64's finaliser (Steele, Lea, Flood 2014), in torch's int64, whose products wrap around.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

GOLDEN, ONE, OTHER = (c - (1 << 64) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
BITS = 24  # what a float32 holds exactly


def uniform(purpose: str, seed: int, step: int, name: str, start: int, like: Tensor) -> Tensor:
    """float32 (n,) in [0, 1): the numbers of elements `start` … of a tensor's flattened form, as many as `like` has."""
    digest = hashlib.sha256(f"{purpose}/{seed}/{step}/{name}".encode()).digest()
    key = int.from_bytes(digest[:8], "little", signed=True)
    # Element i has the counter key + i·GOLDEN: how the tensor is cut into pieces does not matter.
    x = torch.arange(start, start + like.numel(), dtype=torch.int64, device=like.device).mul_(GOLDEN).add_(key)
    x = _mixed(_mixed(x, 30, ONE), 27, OTHER)
    x ^= _shifted(x, 31)
    # The highest bits are the best mixed.
    return _shifted(x, 64 - BITS).to(torch.float32).mul_(2.0**-BITS)


def _mixed(x: Tensor, shift: int, factor: int) -> Tensor:
    return (x ^ _shifted(x, shift)).mul_(factor)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """x >> bits without its sign: torch's shift of a negative number would fill with ones."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
