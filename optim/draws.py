"""Random numbers that are a pure function of (purpose, seed, step, tensor, element): the same for any ranks, and after a resume.

A counter goes through SplitMix64's finaliser (Steele, Lea, Flood 2014), in torch's int64, whose products wrap around.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

GOLDEN, ONE, OTHER = (c - (1 << 64) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
BITS = 24  # what a float32 holds exactly
AT_ONCE = 1 << 18  # elements: eight bytes each, several times over, so that of an embedding they are not held whole


def uniform(purpose: str, seed: int, step: int, name: str, start: int, like: Tensor) -> Tensor:
    """float32 (n,) in [0, 1): the numbers of elements `start` … of a tensor's flattened form, as many as `like` has."""
    drawn = torch.empty(like.numel(), dtype=torch.float32, device=like.device)
    for part in drawn.split(AT_ONCE):
        # The highest bits are the best mixed.
        found = bits(purpose, seed, step, name, start, part)
        part.copy_(_shift(found, 64 - BITS, torch.empty_like(found))).mul_(2.0**-BITS)
        start += len(part)
    return drawn


def bits(purpose: str, seed: int, step: int, name: str, start: int, like: Tensor) -> Tensor:
    """int64 (n,), 64 random bits an element: of elements `start` … of a tensor's flattened form, as many as `like` has."""
    digest = hashlib.sha256(f"{purpose}/{seed}/{step}/{name}".encode()).digest()
    key = int.from_bytes(digest[:8], "little", signed=True)
    # Element i has the counter key + i·GOLDEN: how the tensor is cut into pieces does not matter.
    x = torch.arange(start, start + like.numel(), dtype=torch.int64, device=like.device).mul_(GOLDEN).add_(key)
    # In place: on a CPU new memory would take as long as the arithmetic.
    spare = torch.empty_like(x)
    x ^= _shift(x, 30, spare)
    x *= ONE
    x ^= _shift(x, 27, spare)
    x *= OTHER
    x ^= _shift(x, 31, spare)
    return x


def _shift(x: Tensor, by: int, out: Tensor) -> Tensor:
    """x >> by, in `out`, without its sign: torch's shift of a negative number would fill with ones."""
    torch.bitwise_right_shift(x, by, out=out)
    out &= (1 << (64 - by)) - 1
    return out
