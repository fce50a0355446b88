"""What decays: the masks, the overrides, and the checked partition of a model's tensors into groups of one λ each.

The optimiser is built from this partition (optim/parameter_groups.py), the plan shows it, and the probes read λ back from it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import translate

from configs.echo import cut, shown
from configs.errors import InputError
from configs.schema import Optim
from configs.tensors import TensorSpec, is_convolution, is_last_layer


@dataclass(frozen=True)
class Group:
    """What a plan shows of a group: how many tensors and parameters it has, and their λ."""

    tensors: int
    parameters: int
    weight_decay: float


def is_decayed(tensor: TensorSpec, mask: str) -> bool:
    """Whether weight decay reaches a tensor under `optim.decay_mask`.

    `matrices` (P1) decays embeddings too; `matmul` leaves them out, also where the token embedding is the tied head. `conv` and
    `last` are parts of `matmul` that P2 sets against each other.
    """
    match mask:
        case "all":
            return True
        case "matrices":
            return tensor.role in ("matrix", "embedding")
        case "matmul":
            return tensor.role == "matrix"
        case "conv":
            return is_convolution(tensor)
        case "last":
            return is_last_layer(tensor)
    raise InputError(f"unknown decay mask {mask!r}")


def decay_groups(tensors: Mapping[str, TensorSpec], optim: Optim) -> dict[str, tuple[list[str], float]]:
    """The partition: group → (names of its tensors, λ). The same partition for every λ, λ = 0 included.

    A tensor goes to the first override whose pattern matches its name. The others go by the mask, to `decayed` or
    `undecayed`; of these two, one that stays empty is left out. InputError for an override or a mask that takes nothing.
    """
    patterns = [override.pattern for override in optim.decay_overrides]
    if len(patterns) != len(set(patterns)):
        raise InputError(f"optim.decay_overrides names a pattern twice: {shown(patterns)}")
    takes = [(pattern, re.compile(translate(pattern)).match) for pattern in patterns]
    groups: dict[str, list[str]] = {name: [] for name in ("decayed", "undecayed", *patterns)}
    for name, tensor in tensors.items():
        by_mask = "decayed" if is_decayed(tensor, optim.decay_mask) else "undecayed"
        groups[next((pattern for pattern, match in takes if match(name)), by_mask)].append(name)
    # A pattern with a typing error would leave its tensors to the mask, in silence.
    for pattern in patterns:
        if not groups[pattern]:
            near = ", ".join(list(tensors)[:4])
            raise InputError(
                f"optim.decay_overrides: {cut(pattern)!r} takes none of the model's {len(tensors)} tensors ({near}, …)"
            )
    # Also where overrides decay something: a mask without a tensor was meant for another model.
    if not any(is_decayed(tensor, optim.decay_mask) for tensor in tensors.values()):
        raise InputError(f"optim.decay_mask {optim.decay_mask}: {_why_none(tensors, optim.decay_mask)}")
    decay = {"decayed": optim.weight_decay, "undecayed": 0.0}
    decay |= {override.pattern: override.weight_decay for override in optim.decay_overrides}
    return {name: (names, decay[name]) for name, names in groups.items() if names}


def _why_none(tensors: Mapping[str, TensorSpec], mask: str) -> str:
    """Why a mask takes none of a model's tensors, and what would."""
    kinds = ", ".join(
        dict.fromkeys(tensor.kind for tensor in tensors.values() if tensor.role in ("matrix", "embedding"))
    )
    if mask == "conv":
        return f"the model has no convolution; it has {kinds}; use matmul, or optim.decay_overrides by name"
    if mask == "last":
        return (
            "the model has no last layer of its own that is trained: a tied head is the embedding (model.tied_head false gives it "
            "one), and a scale-invariant network's is frozen; use optim.decay_overrides by name"
        )
    return f"it takes none of the model's {len(tensors)} tensors"


def sized_groups(tensors: Mapping[str, TensorSpec], optim: Optim) -> dict[str, Group]:
    """The partition as a plan shows it."""
    return {
        group: Group(len(names), sum(tensors[name].size for name in names), weight_decay)
        for group, (names, weight_decay) in decay_groups(tensors, optim).items()
    }


def main_group(groups: Mapping[str, Group]) -> str:
    """The group whose λ stands for the run's in Σηλ: `decayed`; where overrides take all of it, the largest that decays."""
    if "decayed" in groups:
        return "decayed"
    return max(groups, key=lambda name: (groups[name].weight_decay > 0, groups[name].parameters))
