"""Acts whose failure every rank must know of: one rank that raises alone leaves the others waiting in a collective."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar("T")


def on_first_rank(act: Callable[[], T]) -> T:
    """Run `act` on rank 0 and give its result to every rank; its ValueError or OSError is a ValueError on every rank."""
    outcome: list[Any] = [None, ""]
    if dist.get_rank() == 0:
        outcome = _attempt(act)
    dist.broadcast_object_list(outcome, src=0)
    return _result(outcome[0], [outcome[1]])


def on_every_rank(act: Callable[[], T]) -> T:
    """Run `act` on every rank; if any fails with ValueError or OSError, all raise a ValueError with what happened where."""
    result, problem = _attempt(act)
    return _result(result, from_every_rank(problem))


def from_every_rank(value: T) -> list[T]:
    """Every rank's value, on every rank."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def _attempt(act: Callable[[], Any]) -> list[Any]:
    try:
        return [act(), ""]
    except (ValueError, OSError) as error:
        return [None, str(error)]


def _result(result: Any, problems: list[str]) -> Any:
    found = {problem: rank for rank, problem in reversed(list(enumerate(problems))) if problem}
    if found:
        raise ValueError("; ".join(f"rank {rank}: {text}" if rank else text for text, rank in reversed(found.items())))
    return result
