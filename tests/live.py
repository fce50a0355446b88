"""Live trainings for tests that run several cases in one process group."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor

from configs.plan import make_plan
from configs.schema import RunConfig
from data.any_manifest import AnyManifest
from data.loader import StepBatch
from engine import checkpoint
from engine.launch import World
from engine.supply import open_data
from engine.training import Training, begin
from engine.update import update
from record.progress import Progress
from record.recorder import Recorder
from record.run import RunFolder

KINDS = ("weights", "exp_avg", "exp_avg_sq")  # what AdamW's checkpoints hold


@dataclass(frozen=True)
class Step:
    loss: float
    grad_norm: float
    norm: float
    norm_decayed: float
    digest: str


def make_training(config: RunConfig, manifest: AnyManifest, world: World) -> Training:
    """A run at step 0 that records nothing."""
    plan = make_plan(config, world.ranks, manifest.summary())
    data = open_data(config, manifest, plan, world)
    return begin(config, plan, RunFolder("no such run"), world, data, Recorder(None, None, config.units_per_step))


def train_steps(training: Training, steps: Iterable[int]) -> list[Step]:
    """Take the given updates of the configuration's order, from whatever state the engine is in; none is probed."""
    rows = []
    for step in steps:
        training.progress.step, batch = step, batch_of(training, step)
        outcome = update(training, iter([batch]), look=lambda _: None)
        assert outcome.ended == "applied", outcome
        norms = training.engine.weight_norms()
        rows.append(Step(outcome.loss, outcome.grad_norm, norms[""], norms["decayed"], batch.digest))
    return rows


class ProbeRows(Recorder):
    """Keeps the rows of updates and of probes."""

    def __init__(self, units: int) -> None:
        super().__init__(None, None, units)
        self.updates: list[dict[str, Any]] = []
        self.rows: list[dict[str, Any]] = []

    def add(self, step: int, row: dict[str, Any]) -> None:
        self.updates.append(row)

    def add_probe(self, step: int, row: dict[str, Any]) -> None:
        self.rows.append(row)


def probed_step(training: Training, step: int) -> dict[str, Any]:
    """Take one update, which the configuration has probed; the probe's row, on every rank."""
    training.recorder = recorder = ProbeRows(training.config.units_per_step)
    training.progress.step = step
    assert update(training, iter([batch_of(training, step)])).ended == "applied"
    (row,) = recorder.rows
    return row


def batch_of(training: Training, step: int) -> StepBatch:
    """This rank's batch of an update, with the digest of an order that was read from its start."""
    return next(islice(training.data.batches(0, training.data.start_digest), step, None))


Kinds = dict[str, dict[str, Tensor] | None]  # all that a checkpoint holds, on rank 0


def whole_and_resumed(
    config: RunConfig, later: RunConfig, manifest: AnyManifest, world: World, folder: Path, save: bool = True
) -> tuple[Kinds, Kinds]:
    """What six updates come to, and three, a checkpoint in `folder`, and three more by `later` in a new engine.

    `save`: False where the checkpoint is there already, of other ranks.
    """
    whole = make_training(config, manifest, world)
    train_steps(whole, range(3))
    if save:
        checkpoint.save(folder, 3, whole.engine.fragments, whole.progress.counters(), {})
    train_steps(whole, range(3, 6))
    again = make_training(later, manifest, world)
    again.progress = Progress.of(checkpoint.load(folder / "step_00000003", again.engine.fragments), config.numerics)
    train_steps(again, range(3, 6))
    one, other = ({k: t.engine.fragments.gather(k, 0) for k in t.engine.fragments.kinds} for t in (whole, again))
    return one, other
