"""Sums over large tensors, exact enough and without a copy of the whole."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

NORM_CHUNK = 1 << 16


def slices(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Flat tensors of one length, 2^22 elements at a time: what is computed of an embedding is not held whole."""
    return zip(*(tensor.split(1 << 22) for tensor in tensors), strict=True)


def square_sums(tensors: list[Tensor]) -> Tensor:
    """Sum of squares of each tensor, float64 (len(tensors),).

    In chunks: over 4·10⁷ elements at once, torch's float32 norm on a CPU is 0.3 % too small.
    """
    # One call for all chunks of all tensors: a call each would take longer than the sums, where tensors are small.
    # A split that makes one chunk costs as much as one that makes many.
    chunks = [tensor.split(NORM_CHUNK) if len(tensor) > NORM_CHUNK else (tensor,) for tensor in tensors]
    norms = torch._foreach_norm([chunk for pieces in chunks for chunk in pieces], 2, dtype=torch.float32)
    # Chunks are added in float64.
    squares = torch.stack(norms).double().square()
    if len(squares) == len(tensors):  # a chunk each: nothing to add
        return squares
    return torch.stack([piece.sum() for piece in squares.split([len(pieces) for pieces in chunks])])
