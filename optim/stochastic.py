"""Stochastic rounding: an update of bfloat16 weights is computed in float32, and each result is rounded up or down by chance.

A number between two bfloat16 neighbours becomes the upper one with the probability of its place between them, so its mean is
kept whatever its size (Gupta et al., 1502.02551). A decay of ηλ far below bfloat16's rounding then acts on the average, where
rounding to the nearest number would lose it. What it costs is noise: an update that moves a weight w adds a variance of at
most (2⁻⁸·w)².

The arithmetic is the algorithm's own, of float32 copies, a slice at a time. Moments are rounded by chance too: to the nearest
number, Adam's second moment could rise and never fall where 1 − β₂ is below 2⁻⁹. The chance is a pure function of seed, step,
tensor and element (optim/draws.py), so that ranks, ZeRO stage, slices and a resume change nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from configs.cost import ROUNDED_AT_ONCE
from configs.precision import TABLE
from configs.schema import RunConfig
from optim.draws import bits

# bfloat16 is the upper half of a float32: what is rounded away is the lower 16 bits.
DROPPED = 16


class Piece(NamedTuple):
    """Elements `start` … `start + length` of a flattened parameter, from `offset` on in a tensor that the optimiser steps."""

    name: str
    start: int
    offset: int
    length: int


class StochasticRounding(torch.optim.Optimizer):
    """An optimiser of float32 tensors, for bfloat16 ones: the same groups, and a state of its own in bfloat16.

    `moments`: the state per element, all other state is counted. A group's `t` is the update's number (set_step).
    """

    def __init__(self, inner: torch.optim.Optimizer, moments: tuple[str, ...], seed: int) -> None:
        super().__init__(inner.param_groups, {})
        # The very groups of the inner optimiser: their options are looked at from outside (optim/algorithms.check_rounding).
        self.param_groups = inner.param_groups
        self.inner, self.moments, self.seed = inner, moments, seed
        self.pieces: dict[Tensor, list[Piece]] = {}

    def know(self, flats: Iterable[tuple[Tensor, Piece]]) -> None:
        """Which parameters lie in the tensors that will be stepped: chance is by parameter and element."""
        self.pieces = {}
        for flat, piece in flats:
            self.pieces.setdefault(flat, []).append(piece)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every group; DeepSpeed calls it once per group, with flat pieces (engine/fragments.py)."""
        assert closure is None, "DeepSpeed gives none"
        for group in self.param_groups:
            for flat in group["params"]:
                self._step(flat, group)

    def _step(self, flat: Tensor, group: dict[str, Any]) -> None:
        assert flat.grad is not None
        assert flat.dtype == torch.bfloat16, f"the masters are {flat.dtype}"
        weights, gradients, state = flat.view(-1), flat.grad.view(-1), self.state[flat]
        moments = {kind: state[kind].view(-1) for kind in self.moments}
        counts = {kind: value for kind, value in state.items() if kind not in moments}
        # A slice at a time, or the float32 copies would be as large as the model.
        for first in range(0, flat.numel(), ROUNDED_AT_ONCE):
            here = slice(first, min(first + ROUNDED_AT_ONCE, flat.numel()))
            w = weights[here].float()
            w.grad = gradients[here].float()
            # What is counted is counted once an update, so every slice starts from the same count.
            copies = {kind: moment[here].float() for kind, moment in moments.items()}
            copies |= {kind: count.clone() for kind, count in counts.items()}
            self.inner.param_groups, self.inner.state = [{**group, "params": [w]}], {w: copies}  # type: ignore[assignment]
            self.inner.step()
            after, drawn = self.inner.state[w], self._drawn(flat, group["t"], here)
            # 64 bits were drawn: each number that is rounded takes 16 of its own.
            for place, (own, exact) in enumerate([(weights, w), *((moments[kind], after[kind]) for kind in moments)]):
                own[here] = rounded(exact, (drawn >> (64 - DROPPED * (place + 1))) & ((1 << DROPPED) - 1))
        for kind in counts:
            counts[kind].copy_(after[kind])

    def _drawn(self, flat: Tensor, t: int, here: slice) -> Tensor:
        """64 random bits for each element of a slice, int64 (n,). Beyond the parameters, in DeepSpeed's padding, they are zero."""
        drawn = torch.zeros(here.stop - here.start, dtype=torch.int64, device=flat.device)
        for piece in self.pieces.get(flat, ()):  # none where a rank's part of a group is padding alone
            first, last = max(here.start, piece.offset), min(here.stop, piece.offset + piece.length)
            if first < last:
                part = drawn[first - here.start : last - here.start]
                part.copy_(bits("rounding", self.seed, t, piece.name, piece.start + first - piece.offset, part))
        return drawn


def rounded(values: Tensor, drawn: Tensor) -> Tensor:
    """bfloat16 (n,) of float32 `values` (n,), up or down by `drawn`: integers (n,) from 0 to 2¹⁶ − 1, all equally probable.

    The mean over `drawn` is the value, exactly. A value that bfloat16 holds stays what it is; infinite and NaN too.
    """
    # Added to the lower half, the number carries into the upper half as often as the lower half is large. Signs do not
    # matter: a float's lower bits count its magnitude.
    carried = (values.view(torch.int32) + drawn.to(torch.int32)) & -(1 << DROPPED)
    # A NaN's bits could carry into another number's.
    return torch.where(values.isfinite(), carried.view(torch.float32), values).to(torch.bfloat16)


def with_rounding(
    optimizer: torch.optim.Optimizer, moments: tuple[str, ...], config: RunConfig
) -> torch.optim.Optimizer:
    """The optimiser that rounds as the run's precision says: itself, where that is to the nearest number."""
    if TABLE[config.precision].rounding == "nearest":
        return optimizer
    return StochasticRounding(optimizer, moments, config.seeds.data)


def rounding_of(optimizer: torch.optim.Optimizer) -> str:
    """How a live optimiser rounds, in the words of configs/precision.py."""
    return "stochastic" if isinstance(optimizer, StochasticRounding) else "nearest"
