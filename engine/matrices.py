"""Whole matrices at ZeRO stages 1–3, for Muon (optim/muon.py): each is put together at one rank, worked on there, and cut up again.

At stages 1–2 a rank holds a run of whole matrices, and at most one between two neighbours is cut: next to nothing is sent, and each
rank works on its own share of them. At stage 3 every matrix is cut, and the ranks share the work evenly. What travels is bfloat16,
which Newton–Schulz computes in: nothing is lost on the way. `benchmarks/muon_pieces.py` measures it.
"""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from engine.fragments import Fragments
from optim.muon import direction, factor, orthogonal


class Matrices:
    """The hidden matrices of a run, and at which rank each is made whole."""

    def __init__(self, fragments: Fragments) -> None:
        self.fragments, self.rank = fragments, dist.get_rank()
        names = [name for name, group in fragments.groups_by_name.items() if group["family"] == "muon"]
        self.homes = homes({name: fragments.owners[name] for name in names}, fragments.shapes)
        self.waves = waves(self.homes, fragments.shapes)

    @torch.no_grad()
    def gradients_to_steps(self) -> None:
        """Move the momentum on, and make of each hidden matrix's gradient what η multiplies in its step. Collective."""
        fragments = self.fragments
        held = {f.name: (f, gradient) for f, gradient in zip(fragments.local, fragments.gradients(), strict=True)}
        # A wave at a time: a rank holds one whole matrix, not its share of the model once more.
        for wave in self.waves:
            pieces = {}
            for name in (name for name in wave if name in held):
                fragment, gradient = held[name]
                rate = fragments.groups_by_name[name]["momentum"]
                pieces[name] = direction(fragments.view(fragment, "momentum_buffer"), gradient, rate)
            whole = {name: self._empty(name) for name in wave if self.homes[name] == self.rank}
            self._exchange(wave, pieces, whole, dist.irecv)
            for name, matrix in whole.items():
                whole[name] = orthogonal(matrix.view(fragments.shapes[name])).reshape(-1)
            self._exchange(wave, pieces, whole, dist.isend)
            for name, piece in pieces.items():
                held[name][1].copy_(piece).mul_(factor(fragments.shapes[name]))

    def _empty(self, name: str) -> Tensor:
        return torch.empty(self.fragments.shapes[name].numel(), dtype=torch.bfloat16, device=self.fragments.ds.device)

    def _exchange(self, wave: list[str], pieces: dict[str, Tensor], whole: dict[str, Tensor], home_does: Any) -> None:
        """Fill whole matrices from all ranks' pieces where the home receives, and pieces from them where it sends."""
        gathers, acts = home_does is dist.irecv, []
        for name in wave:
            home = self.homes[name]
            for rank, start, length in self.fragments.owners[name]:
                if home == self.rank:
                    part = whole[name][start : start + length]
                    if rank == home and gathers:
                        part.copy_(pieces[name])
                    elif rank == home:
                        pieces[name].copy_(part)
                    else:  # as bytes: not every backend knows bfloat16
                        acts.append(dist.P2POp(home_does, part.view(torch.uint8), rank))
                elif rank == self.rank:
                    does = dist.isend if gathers else dist.irecv
                    acts.append(dist.P2POp(does, pieces[name].view(torch.uint8), home))
        # All at once: one after another, two ranks could wait for each other.
        for work in dist.batch_isend_irecv(acts) if acts else ():
            work.wait()


def work_of(shape: torch.Size) -> int:
    """Newton–Schulz's products, in units that matter to no comparison: m·n·min(m, n)."""
    return shape.numel() * min(shape)


def homes(owners: dict[str, list[tuple[int, int, int]]], shapes: dict[str, torch.Size]) -> dict[str, int]:
    """The rank at which each matrix is whole: where it lies, or of those that hold a piece the one with the least work so far."""
    found: dict[str, int] = {}
    work: dict[int, int] = {}
    # Those that lie whole come first, then the largest: what is given out evens out what is not.
    for name in sorted(owners, key=lambda name: (len(owners[name]) > 1, -work_of(shapes[name]), name)):
        found[name] = min((rank for rank, _, _ in owners[name]), key=lambda rank: (work.get(rank, 0), rank))
        work[found[name]] = work.get(found[name], 0) + work_of(shapes[name])
    return found


def waves(homes: dict[str, int], shapes: dict[str, torch.Size]) -> list[list[str]]:
    """Matrices that are worked on at a time: one at each rank at most, the same order on all, of like size together."""
    by_rank: dict[int, list[str]] = {}
    for name in sorted(homes, key=lambda name: (-work_of(shapes[name]), name)):
        by_rank.setdefault(homes[name], []).append(name)
    return [[name for name in wave if name is not None] for wave in zip_longest(*by_rank.values())]
