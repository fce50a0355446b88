"""Run something so that all ranks succeed together or fail together.

If one rank raised alone, the others would hang in the next collective.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor

from configs.errors import InputError

T = TypeVar("T")
logger = logging.getLogger(__name__)


def on_first_rank(act: Callable[[], T]) -> T:
    """Run `act` on rank 0 and give its result to every rank.

    If it fails, every rank raises, with the same text: InputError for an InputError, OSError for an OSError (a full disk),
    RuntimeError for anything else.
    """
    # An exception is not raised but sent, as everything else that rank 0 found: then all ranks raise it together.
    outcome: list[Any] = [None, None]
    if dist.get_rank() == 0:
        outcome = _attempt(act)
    dist.broadcast_object_list(outcome, src=0)
    return _result(outcome[0], [outcome[1]])


def on_every_rank(act: Callable[[], T]) -> T:
    """Run `act` on every rank. If it fails anywhere, all ranks raise, with what happened where, as in `on_first_rank`."""
    result, problem = _attempt(act)
    return _result(result, from_every_rank(problem))


def from_every_rank(value: T) -> list[T]:
    """Every rank's value, on every rank."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def over_ranks(tensor: Tensor, op: Any = dist.ReduceOp.SUM) -> None:
    """Combine a tensor over all ranks, in place. One rank alone has what it wants, and need not wake gloo's thread for it."""
    if dist.get_world_size() > 1:
        dist.all_reduce(tensor, op)


def _attempt(act: Callable[[], Any]) -> list[Any]:
    """The result of `act` and None; or None and what went wrong: the kind of error, and its text."""
    # Bad input and a full disk are told in a sentence. Anything else is a bug: its traceback is shown here, and it too is
    # shared, or the other ranks would wait for this one.
    try:
        return [act(), None]
    except InputError as error:
        return [None, (InputError, str(error))]
    except OSError as error:
        return [None, (OSError, str(error))]
    except Exception as error:
        logger.exception("one rank failed, and so do all")
        return [None, (RuntimeError, f"{type(error).__name__}: {error}")]


def _result(result: Any, problems: list[Any]) -> Any:
    """The result, unless a rank had a problem. A text that several ranks give is said once, for the first of them."""
    # By text, for a missing file is missed by all ranks in the same words.
    first: dict[str, int] = {}
    for rank, problem in enumerate(problems):
        if problem:
            first.setdefault(problem[1], rank)
    if first:
        # Of several kinds the one that is least the user's to mend comes first.
        kinds = {problem[0] for problem in problems if problem}
        kind = next(kind for kind in (RuntimeError, OSError, InputError) if kind in kinds)
        text = "; ".join(f"rank {rank}: {text}" if rank else text for text, rank in first.items())
        raise kind(text)
    return result
