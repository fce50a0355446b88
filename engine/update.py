"""One update, from batch to row. Everything that changes weights, or is measured of an update, is called from here, in order."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from configs import cost
from configs.cadence import is_measured, is_probed, is_written
from configs.schedule import lr_at
from data.loader import StepBatch
from engine.engine import Backward, Wish
from engine.launch import device_name
from engine.layer_norms import take_norms
from engine.memory import peak_bytes
from engine.probes import Probe
from engine.training import Training
from optim.parameter_groups import set_step

Batches = Iterator[StepBatch]
Look = Callable[[list[Tensor]], None]  # is shown the gradients before they are clipped


@dataclass(frozen=True)
class Outcome:
    """How an update ended, with the loss and gradient norm of the global batch.

    applied    the weights moved
    skipped    a value was not finite: the weights are as before, the step counts, and the run goes on (numerics.nonfinite)
    refused    a value was not finite: the weights and the step are as before, and the run ends
    abandoned  a rank wished to stop between two micro-steps: the step must be taken again, in a new engine

    `stop`: some rank wishes to stop; all ranks agree on it.
    """

    ended: Literal["applied", "skipped", "refused", "abandoned"]
    stop: bool
    loss: float = math.nan
    grad_norm: float = math.nan


def update(training: Training, batches: Batches, wish: Wish = lambda: False, look: Look | None = None) -> Outcome:
    """Take the next update of a run and record it. Collective. `wish()`: whether this rank wishes to stop."""
    config, engine, progress = training.config, training.engine, training.progress
    rule, t, began = engine.rule, progress.step, time.perf_counter()
    pieces = engine.pieces(progress.numbers)

    # The batch: which windows it holds is a pure function of the step (data/order.py).
    batch = next(batches)
    assert batch.step == t, f"the batch of update {batch.step} in update {t}"

    # Some updates are probed: the gradients here, the weights at the end. A probe only looks.
    probe = Probe(engine, training.data.probe) if look is None and is_probed(config.log, t + 1) else None
    look = probe.look if probe is not None else look

    # Forward and backward passes. The gradients are summed over micro-steps and ranks.
    backward = engine.backward(batch, wish)
    if backward.abandoned:
        return Outcome("abandoned", stop=True)

    # η_t and λ_t of every group; and the gradients, as the rule would have them. Whoever looks sees them before they are clipped.
    set_step(engine.optimizer, config, t, lr_at(config, t), training.lr_factors())
    gradients = engine.gradients()
    rule.on_gradients(pieces, gradients)
    if look is not None:
        look(gradients)

    # Nothing that is not finite reaches the weights.
    norm = engine.norm(gradients)
    if not (math.isfinite(backward.loss) and math.isfinite(norm)):
        return _left_out(training, batch, backward, norm)

    # Clip, and step. Adam and SGD apply λ themselves; a rule may do more before and after. K-FAC first looks at the batch again.
    engine.curvature.measure(batch)
    engine.clip(gradients, norm)
    kept = rule.before_step(pieces, gradients, t)
    with probe.around_step() if probe is not None else nullcontext():
        engine.apply()
        rule.on_step(pieces, kept, t)
    rule.after_step(pieces, kept, t)
    if rule.moves_weights:
        engine.fragments.refresh()  # the forward pass reads copies of the weights
    engine.statistics.move()  # of batch normalisation, where there is one
    take_norms(training, t + 1)  # the leader's, of schedule.match.take norms
    engine.average()

    # The state moves on, and the row is written.
    progress.advance(batch.digest, training.windows_after(t + 1))
    progress.decay_sum += engine.lr * engine.weight_decay
    row = {
        "train/loss": backward.loss,
        "optim/lr": engine.lr,
        "optim/decay_sum": progress.decay_sum,
        "optim/grad_norm": norm,
        **training.measure_norms(),
        **progress.watch.add(progress.step, backward.loss, norm),
    }
    _record(training, row, time.perf_counter() - began, probe)
    return Outcome("applied", backward.stop, backward.loss, norm)


def _left_out(training: Training, batch: StepBatch, backward: Backward, norm: float) -> Outcome:
    """End an update without one, and record what was not finite. Whether the run goes on is for numerics.nonfinite."""
    numerics, progress = training.config.numerics, training.progress
    training.engine.leave_out()
    progress.watch.add(progress.step + 1, backward.loss, norm)
    row: dict[str, Any] = {
        "nonfinite/loss": backward.loss,
        "nonfinite/grad_norm": norm,
        "nonfinite/lr": training.engine.lr,
        "nonfinite/windows": batch.ids.tolist(),
    }
    goes_on = numerics.nonfinite == "skip" and progress.skipped < numerics.max_skipped
    if goes_on:  # the step counts and its windows are read
        progress.advance(batch.digest, training.windows_after(batch.step + 1))
        progress.skipped += 1
        row["nonfinite/skipped"] = progress.skipped
    training.recorder.add(progress.step, {"event": "nonfinite", **row})
    training.recorder.flush()
    return Outcome("skipped" if goes_on else "refused", backward.stop, backward.loss, norm)


def _record(training: Training, row: dict[str, Any], seconds: float, probe: Probe | None) -> None:
    """Add an update's row, and its probe's. How long it took is without the probe; every log.every updates rows are written."""
    config, step, device = training.config, training.progress.step, training.world.device
    if probe is not None:
        seconds -= probe.seconds
        training.recorder.add_probe(step, probe.finish())
    rate = config.units_per_step / seconds
    row |= {"time/step_s": seconds, f"perf/{config.unit}_per_s": rate}
    if training.measurer is not None and is_measured(config.measures, step, training.plan.steps):
        row |= training.measure()  # after the clock was read: it is no time of the update either
    flops = rate * training.plan.flops_per_unit
    mfu = cost.mfu(flops, device_name(device), config.precision, training.world.ranks)
    if mfu is not None:
        row["perf/mfu"] = mfu
    due = is_written(config.log, step)
    if due:
        row["perf/peak_memory_bytes"] = peak_bytes(device)
    training.recorder.add(step, row)
    if due:
        training.recorder.flush()
