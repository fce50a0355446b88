"""Which layers take their norms from a leader (schedule.match.take norms), and after which updates."""

from __future__ import annotations

from collections.abc import Mapping

from configs.errors import InputError
from configs.schema import Match, RunConfig
from configs.tensors import TensorSpec, is_normalised, tensor_table


def transferred(config: RunConfig, match: Match) -> dict[str, TensorSpec]:
    """The tensors that are scaled, by name. InputError where the model has none of the kind, with what would work."""
    table = tensor_table(config.model)
    layers = {name: tensor for name, tensor in table.items() if _is_of(tensor, match.layers)}
    if not layers:
        raise InputError(
            f"schedule.match.layers {match.layers}: no {_WORDS[match.layers]} among the model's {len(table)} tensors; "
            f"{_instead(table)}"
        )
    return layers


def is_transferred(match: Match | None, step: int, steps_per_epoch: int | None) -> bool:
    """Whether layers are scaled after update `step` (from 1): every n-th of the run's own, or at each epoch's end."""
    if match is None or match.sets_rate:
        return False
    every = match.every or steps_per_epoch
    assert every is not None, "only a run on images has epochs"
    return step % every == 0


_WORDS = {
    "followed": "layer's outputs pass through one normalisation alone",
    "normalised": "layer is followed by a normalisation",
    "matrices": "matrix is",
}


def _is_of(tensor: TensorSpec, layers: str) -> bool:
    if layers == "followed":
        return bool(tensor.followed_by)
    return tensor.role == "matrix" and (layers == "matrices" or is_normalised(tensor))


def _instead(table: Mapping[str, TensorSpec]) -> str:
    """What would work, of a model that has no such layer."""
    if any(tensor.role == "matrix" and is_normalised(tensor) for tensor in table.values()):
        return "normalised takes those that write into a residual stream too, where scaling changes what the network computes"
    return "use a model with normalisation, or layers matrices, where scaling changes what the network computes"
