"""Live trainers for tests that run several cases in one process group."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from configs.plan import make_plan
from configs.schedule import lr_at
from configs.schema import RunConfig
from data.loader import TrainData, step_batches
from data.manifest import Manifest
from engine.launch import World
from engine.network import build_model
from engine.precision import set_matmul_precision
from engine.trainer import Trainer

KINDS = ("weights", "exp_avg", "exp_avg_sq")  # what AdamW's checkpoints hold


@dataclass(frozen=True)
class Step:
    loss: float
    grad_norm: float
    norm: float
    norm_decayed: float
    digest: str


def make_trainer(config: RunConfig, manifest: Manifest, world: World) -> Trainer:
    set_matmul_precision(config.precision, world.device)
    model = build_model(config, manifest.eot, world.device)
    model.init_weights(config.seeds.init)
    return Trainer(model, config, make_plan(config, world.ranks, manifest.summary()), world)


def train_steps(trainer: Trainer, manifest: Manifest, steps: Iterable[int]) -> list[Step]:
    """Run the given updates of the configuration's order."""
    config, world, wanted, found = trainer.config, trainer.world, set(steps), []
    data = TrainData(config.data.path, manifest, config)
    for batch in step_batches(data, min(wanted), None, trainer.plan.micro_batch, world.rank, world.ranks):
        if batch.step in wanted:
            result = trainer.step(batch, lr_at(config, batch.step))
            norms = trainer.weight_norms()
            found.append(Step(result.loss, result.grad_norm, norms[""], norms["decayed"], batch.digest))
    return found
