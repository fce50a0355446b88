"""Whether the data of a running run is sound, so that all ranks learn of damage together and none hangs.

Two things are looked for: files that differ from their hash, by a thread of rank 0 (data/verify.py), and tokens beyond the
vocabulary, by every rank in the batches that it reads ahead.
"""

from __future__ import annotations

import logging
from pathlib import Path

from configs.schema import RunConfig
from data.any_manifest import AnyManifest
from data.loader import Prefetcher
from data.verify import DamagedDataError, Hashing
from engine.agree import from_every_rank, on_first_rank

logger = logging.getLogger(__name__)

TURN_S = 5.0  # how long the ranks wait for the hashes before they ask each other whether to stop


class DataGuard:
    """`wish` is this rank's alone, for the step's own agreement; `check` and `compared` are collective."""

    def __init__(self, config: RunConfig, manifest: AnyManifest, rank: int) -> None:
        beside = config.data.verify is True and rank == 0
        self._hashing = Hashing(Path(config.data.path), manifest) if beside else None
        self._beside_training = config.data.verify is True
        self._batches: Prefetcher | None = None
        self._began, self._first_saved = 0, 0

    def start(self, batches: Prefetcher, step: int) -> None:
        """Begin to watch a run that goes on from `step`. Collective: the first batch is judged before any rank trains on it."""
        self._batches, self._began = batches, step
        if self._hashing is not None:
            self._hashing.start()
        # Data that is bad from the first batch on is better known before an update than after.
        self.check()

    @property
    def wish(self) -> bool:
        """Whether this rank has found something, and wants the ranks to stop and `check`."""
        return bool(self._problem())

    def check(self) -> None:
        """Raise DamagedDataError on every rank if any has found something."""
        if problem := next(filter(None, from_every_rank(self._problem())), ""):
            raise DamagedDataError(problem)

    def saved(self, step: int) -> None:
        """A checkpoint of `step` was written: on data that may yet turn out damaged."""
        self._first_saved = self._first_saved or step

    @property
    def has_saved(self) -> bool:
        """Whether this start has written a checkpoint; the same on all ranks."""
        return self._first_saved > 0

    @property
    def relied_on(self) -> int | None:
        """The step that this start went on from, until the data is compared with its hashes: should they differ, it is what the
        run has to go back to. None afterwards. For rank 0."""
        if self._hashing is None or (self._hashing.wait(0) and not self._hashing.problem):
            return None
        return self._began or None

    def compared(self) -> bool:
        """Whether all files are compared; waits a little for it. Raises as `check` does."""
        if not self._beside_training:
            return True
        # Rank 0 alone hashes; the others wait for its word, a turn at a time.
        ended = on_first_rank(lambda: self._hashing is None or self._hashing.wait(TURN_S))
        self.check()
        return ended

    def close(self) -> None:
        if self._hashing is not None:
            self._hashing.stop()

    def _problem(self) -> str:
        if self._hashing is not None and self._hashing.problem:
            return f"{self._hashing.problem}; {self._advice()}"
        return self._batches.problem() if self._batches is not None else ""

    def _advice(self) -> str:
        if not self._first_saved:
            suspects = "this start has written no checkpoint"
        else:
            suspects = f"the checkpoints that this start has written, from step {self._first_saved} on, are suspect"
        if self._began:
            return f"{suspects}. Restore the data or prepare it again, then continue with --resume must --step {self._began}"
        return f"{suspects}. Restore the data or prepare it again, then remove the run's folder and start it again"
