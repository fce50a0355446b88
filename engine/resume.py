"""Where a start continues: at a checkpoint of its run, at the checkpoint it branches from, or at step 0."""

from __future__ import annotations

import logging
from pathlib import Path

from configs.errors import InputError
from configs.identity import differences, render_differences
from configs.schema import Branch
from data.any_manifest import manifest_of
from data.manifest import Manifest
from data.named_tokenizer import check_beside
from engine import checkpoint
from engine.agree import on_every_rank, on_first_rank
from engine.foreign_tensors import open_foreign
from engine.training import Training
from record.checkpoint_manifest import read_manifest
from record.checkpoints import complete, find, find_address
from record.foreign import find_foreign
from record.metrics import lost_steps, read_log
from record.progress import Progress

logger = logging.getLogger(__name__)


def resume(training: Training, how: str, step: int | None = None) -> Path | None:
    """Load the checkpoint of `step`, or the newest complete and sound one; returns its path, None where there is none.

    `how` is auto, must or never (--resume). InputError if it is must and there is none, or never and there is one; if the one
    found is of another experiment; or if the one of `step` is damaged. Collective.
    """
    folder, metrics = training.folder.checkpoints, training.folder.metrics
    on_first_rank(lambda: checkpoint.delete_unfinished(folder))
    if how == "never" and (present := on_first_rank(lambda: complete(folder))):
        raise InputError(f"--resume never: {present[-1]} exists; remove it or give another --run-dir")

    # Which checkpoint: the one asked for must be sound; else the newest that is, and the damaged are set aside.
    if step is None:
        path = checkpoint.newest(folder)
    else:
        path = on_first_rank(lambda: find(folder, step))
        checkpoint.check(path)
    if path is None and how == "must":
        raise InputError(f"--resume must: no complete checkpoint in {folder}")
    load(training, path)

    # What was recorded before: rows that are missing are named, rows after this step are made void by a row that says so.
    for lost in on_first_rank(lambda: lost_steps(metrics, read_log(metrics), training.progress.step)):
        logger.warning("%s; they were lost before this start, and stay so", lost)
    if step is not None:
        on_first_rank(lambda: checkpoint.set_aside_after(folder, step))
    if path is not None or on_first_rank(lambda: metrics.stat().st_size > 0):
        training.recorder.add(training.progress.step, {"event": "resume"})
    return path


def load(training: Training, path: Path | None) -> None:
    """Continue from a checkpoint of this run whose files are sound; without one, from where the run starts."""
    config, steps = training.config, training.plan.steps
    if path is None:
        if config.branch is not None:
            _start_branch(training, config.branch)
        return
    # The folder was checked before; a checkpoint that was copied into it was not.
    manifest = on_first_rank(lambda: read_manifest(path))
    rows = differences(training.experiment, manifest.experiment)
    if rows:
        raise InputError(f"{path} is of another experiment:\n{render_differences(rows)}")
    if manifest.step > steps:
        raise InputError(f"{path} is past schedule.steps {steps}; set it to {manifest.step} or more")
    training.progress = Progress.of(checkpoint.load(path, training.engine.fragments), config.numerics)


def _start_branch(training: Training, branch: Branch) -> None:
    """Weights, and the optimiser's state unless dropped, of the trunk; the configuration's λ and η stay."""
    if training.plan.origin is not None and training.plan.origin.foreign is not None:
        _start_from_elsewhere(training, branch)
        return
    path = on_first_rank(lambda: find_address(branch.origin))
    checkpoint.check(path)
    keep = branch.optimizer == "keep"
    counters = checkpoint.load(path, training.engine.fragments, keep, branch=True)
    # Of the trunk's progress a branch takes what it judges losses by, what its own rule keeps too, and the digest of what was read.
    trunk = Progress.of(counters, training.config.numerics)
    training.progress.watch = trunk.watch
    training.progress.numbers = training.engine.rule.taken_over(trunk.numbers, keep)
    training.progress.watch.state["above_since"] = None
    training.engine.rule.on_branch(training.engine.weight_norms())
    if branch.data == "continue":
        training.progress.order_digest = trunk.order_digest
    logger.info("branch of %s, optimiser state %s", path, "kept" if keep else "dropped")


def _start_from_elsewhere(training: Training, branch: Branch) -> None:
    """Weights of a model that no run of ours made. Nothing else is taken over: the plan has refused to keep more."""
    fragments, foreign = training.engine.fragments, find_foreign(branch.origin)
    if foreign is None:
        raise InputError(f"branch.origin {branch.origin} is not there any more, and this run has no checkpoint yet")
    config = training.config
    # Said where nothing tells, refused where the tokens are others.
    manifest = on_first_rank(lambda: manifest_of(config))
    if isinstance(manifest, Manifest):
        logger.info("%s", on_first_rank(lambda: check_beside(foreign.path, Path(config.data.path), manifest.tokenizer)))
    read = on_every_rank(lambda: open_foreign(foreign, config.gpt)[1])
    fragments.load("weights", read)
    for kind in fragments.averages.kinds:
        fragments.begin(kind)
    fragments.refresh()
    fragments.check_forward(read)
    training.engine.rule.on_branch(training.engine.weight_norms())
    logger.info("the weights of %s, by a new optimiser", branch.origin)
