"""What made ‖w‖² change in an update: alignment + injection − decay (2606.19367), exact for every decay rule and ZeRO stage.

An update moves w by the step s, which follows the gradient, and by the decay. With w̃ what the step finds, decayed already:

    injection   ‖s‖²: what any step adds, wherever it points to
    alignment   2⟨w̃, s⟩: what it adds because it points along the weights
    decay       ‖w‖² taken away by all that is not the step, below zero where the norm was raised

They sum to ‖w′‖² − ‖w‖², because each is a difference along w → w̃ → w̃ + s → w′. For AdamW, w′ = (1 − ηλ)·w − η·u, they are η²‖u‖²,
−2η(1 − ηλ)⟨w, u⟩ and (2ηλ − η²λ²)‖w‖²: what decay and step have in common, 2η²λ⟨w, u⟩, is alignment's.

Where torch's optimiser decays, w̃ is (1 − ηλ)·w without rounding; the rounding of the whole update is the step's. Where a rule
moves weights by itself (optim/rules), before or after the step, all that is decay: a mask's, a projection's, the leader's norms'.
L2 that is in the gradient (l2_coupled, l2_loss) is in the step: Adam's moments do not let it be told apart, and decay is 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from engine.fragments import Fragments
from engine.sums import slices
from optim.rules import Rule

PARTS = ("alignment", "injection", "decay")


class NormChange:
    """Sums per parameter, float64: of float32 sums the small differences would not be left."""

    def __init__(self, fragments: Fragments, rule: Rule, before: list[Tensor]) -> None:
        self.fragments, self.rule, self.before = fragments, rule, before
        self.found = before

    def decayed(self) -> None:
        """Between the rule's own decay before the step and the step."""
        if self.rule.moves_first:
            self.found = [weight.clone() for weight in self.fragments.weights()]

    @torch.no_grad()
    def stepped(self) -> None:
        """Right after the step."""
        columns = [torch.stack(list(self._of_piece(i))) for i in range(len(self.found))]
        # A rank may hold no piece at all, and yet all ranks sum.
        self.alignment, self.injection, self.inside, self.after_step = (
            self.fragments.sums([column[k]] for column in columns) for k in range(4)
        )
        self.first = 0.0
        if self.found is not self.before:
            self.first = _squares(self.fragments, self.before) - _squares(self.fragments, self.found)
            self.found = self.before  # not held any longer

    def _of_piece(self, i: int) -> Iterable[Tensor]:
        """Of a piece 2⟨w̃, s⟩, ‖s‖², what the optimiser's own decay took of ‖w‖², and ‖w̃ + s‖²."""
        group, weight = self.fragments.groups_of_pieces[i], self.fragments.local[i].weight
        keep = 1 - group["lr"] * group["decay"] if self.rule.inside == "decoupled" else 1.0
        total = torch.zeros(4, dtype=torch.float64, device=weight.device)
        for new, old in slices(weight, self.found[i]):
            after, start = new.double(), old.double()
            taken = (1 - keep**2) * start.dot(start)
            start *= keep
            step = after - start
            total += torch.stack([2 * start.dot(step), step.dot(step), taken, after.dot(after)])
        return total.unbind()

    @torch.no_grad()
    def parts(self) -> dict[str, list[float]]:
        """Each part, by parameter, when all that the update does to weights is done. Collective."""
        last = self.after_step - _squares(self.fragments, self.fragments.weights())
        decay = self.inside + self.first + last
        return dict(zip(PARTS, (part.tolist() for part in (self.alignment, self.injection, decay)), strict=True))


def _squares(fragments: Fragments, tensors: list[Tensor]) -> Tensor:
    def of(tensor: Tensor) -> Iterable[Tensor]:
        for (part,) in slices(tensor):
            wide = part.double()
            yield wide.dot(wide)

    return fragments.sums(map(of, tensors))


def norm_columns(parts: Mapping[str, list[float]], labels: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Columns `probe/norm2_PART/…` of each label: the sum over its tensors, by their places; the label "" is the whole model."""
    return {
        f"probe/norm2_{part}/{label}".rstrip("/"): math.fsum(values[i] for i in members)
        for part, values in parts.items()
        for label, members in labels.items()
    }
