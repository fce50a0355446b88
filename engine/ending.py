"""Why and when a run ends, the same on all ranks."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from engine.agree import from_every_rank, on_first_rank
from record.run import State

if TYPE_CHECKING:
    from engine.stopping import StopRequest
    from engine.training import Training

logger = logging.getLogger(__name__)


def once_compared(training: Training, stop: StopRequest, state: State, reason: str) -> tuple[State, str]:
    """How a run ends that has nothing left to do: as it came out, once all its data is compared with the hashes. Collective.

    A request to stop is obeyed meanwhile; the next start only compares.
    """
    # In turns, between which the ranks ask each other: a signal need not wait for terabytes to be hashed.
    said = False
    while not training.data.guard.compared():
        if training.engine.any_rank(stop.pending):
            return "preempted", stop_reason(training, stop)
        if not said:
            logger.info("trained to the end; its data is still being compared with the hashes")
            said = True
    # what a resume went on from was kept until now; a start that has saved nothing deletes nothing
    if training.data.guard.has_saved:
        on_first_rank(training.delete_old)
    return state, reason


def stop_reason(training: Training, stop: StopRequest) -> str:
    """Why the ranks stop, the same on all: the first reason that a rank knows. Collective. Raises where damaged data is why."""
    # First what was found in the data: it makes a failure of what would be a stop.
    training.data.guard.check()
    return signalled(stop) or "asked to stop"


def signalled(stop: StopRequest) -> str:
    """The same, empty where no rank has been asked yet. Collective."""
    return next(filter(None, from_every_rank(stop.reason)), "")
