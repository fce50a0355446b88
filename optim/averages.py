"""Exponential moving averages of the weights, over whatever pieces of them a rank holds."""

from __future__ import annotations

import torch
from torch import Tensor


class Averages:
    """a ← c·a + (1 − c)·w after each update, float32, begun at the weights `start` is given (P1: c = 0.99, no debiasing).

    `tensors`: kind (`ema_0.99`) → name of the piece → average (n,).
    """

    def __init__(self) -> None:
        self.coefficients: dict[str, float] = {}
        self.tensors: dict[str, dict[str, Tensor]] = {}

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(self.coefficients)

    def start(self, coefficients: tuple[float, ...], pieces: dict[str, Tensor]) -> None:
        """Begin anew, at the weights as they are."""
        # The kind names its coefficient, so that two averages never share a file.
        self.coefficients = {f"ema_{c!r}": c for c in coefficients}
        self.tensors = {
            kind: {name: piece.detach().to(torch.float32, copy=True) for name, piece in pieces.items()}
            for kind in self.coefficients
        }

    @torch.no_grad()
    def update(self, pieces: dict[str, Tensor]) -> None:
        for kind, c in self.coefficients.items():
            # In float32 whatever the weights are: 1 − c is small, and bfloat16 would lose the step.
            ours = self.tensors[kind]
            torch._foreach_lerp_(list(ours.values()), [pieces[name].float() for name in ours], 1 - c)
