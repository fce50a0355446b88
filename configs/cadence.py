"""Everything that is done once in a while: which steps are probed, evaluated, saved and written, and which checkpoints stay.

Pure functions of the configuration and the step.
"""

from __future__ import annotations

import math

from configs.schema import Checkpoint, Eval, Log, Measures

START, START_EVERY = 100, 10  # a start is decided in its first updates: they are probed more often


def is_due(every: int | None, step: int) -> bool:
    """Whether `step` is a multiple of a cadence; never without one."""
    return every is not None and step % every == 0


def due_until(every: int, step: int) -> range:
    """The multiples of a cadence from `step` down to 1, the latest first."""
    return range(step - step % every, 0, -every)


def is_evaluated(evaluation: Eval, step: int, steps: int) -> bool:
    """Whether a run of `steps` updates has a validation loss after `step`: always at its start and at its end."""
    return step in (0, steps) or is_due(evaluation.every, step)


def is_measured(measures: Measures, step: int, steps: int) -> bool:
    """Whether update `step` (from 1) of `steps` has measures of the weights after it: where there are any, also the last."""
    return measures.every is not None and (step == steps or is_due(measures.every, step))


def is_written(log: Log, step: int) -> bool:
    """Whether the rows up to `step` are written to the disk after it."""
    return is_due(log.every, step)


def is_probed(log: Log, step: int) -> bool:
    """Whether update `step` (from 1) is probed: at log.probe_every, and every tenth of the first hundred."""
    in_start = log.probe_every is not None and step <= START and is_due(START_EVERY, step)
    return in_start or is_due(log.probe_every, step)


def is_saved(checkpoint: Checkpoint, step: int, steps: int) -> bool:
    """Whether a run of `steps` updates saves after `step`: always at its end."""
    return step == steps or is_due(checkpoint.every, step) or _is_milestone(checkpoint, step)


def is_kept(checkpoint: Checkpoint, step: int) -> bool:
    """Whether the checkpoint of `step` outlives the newest keep_last."""
    return checkpoint.keep_last is None or is_due(checkpoint.keep_every, step) or _is_milestone(checkpoint, step)


def why_kept(checkpoint: Checkpoint, step: int, newest: bool) -> list[str]:
    """The rules that keep the checkpoint of `step`; none: the next save deletes it. `newest`: it is one of the newest keep_last."""
    if checkpoint.keep_last is None:
        return ["keep_last null"]
    rules = {
        "at": step in checkpoint.at,
        "log_spaced": _is_log_spaced(checkpoint.log_spaced, step),
        "keep_every": is_due(checkpoint.keep_every, step),
        "keep_last": newest,
    }
    return [name for name, holds in rules.items() if holds]


def saved_and_kept(checkpoint: Checkpoint, steps: int) -> tuple[range, list[int]]:
    """The steps whose checkpoints a run of `steps` updates leaves: the multiples of a cadence, and the other steps in order."""
    every = checkpoint.every
    if every is not None and checkpoint.keep_last is not None:  # of the cadence only multiples of keep_every outlive it
        every = math.lcm(every, checkpoint.keep_every) if checkpoint.keep_every is not None else None
    multiples = range(every, steps + 1, every) if every is not None else range(0)
    return multiples, sorted(step for step in {steps, *_milestones(checkpoint, steps)} if step not in multiples)


def most_at_once(checkpoint: Checkpoint, steps: int) -> int:
    """The largest number of checkpoints on disk at one time, the one being written included.

    A resume may hold one more for a while: what it went on from, until its data is compared with the hashes (engine/guard.py).
    Multiples of `every` are counted without a walk over the steps, so that a run of ten million has its plan at once.
    """
    multiples, others = saved_and_kept(checkpoint, steps)
    milestones = _milestones(checkpoint, steps)
    saved = (steps // checkpoint.every if checkpoint.every else 0) + sum(
        not is_due(checkpoint.every, step) for step in {steps, *milestones}
    )
    last_goes = steps in others and not is_kept(checkpoint, steps)  # it is there at the end, as one of the newest
    kept = len(multiples) + len(others) - last_goes
    return min(saved, kept + (checkpoint.keep_last or 0) + 1)


def _milestones(checkpoint: Checkpoint, steps: int) -> set[int]:
    """The steps from 1 to `steps` in checkpoint.at or of log_spaced: whatever else is deleted, these stay."""
    milestones = {step for step in checkpoint.at if step <= steps}
    if checkpoint.log_spaced is not None:
        last = math.ceil(checkpoint.log_spaced * math.log10(steps)) + 1
        milestones |= {round(10 ** (k / checkpoint.log_spaced)) for k in range(last + 1)}
    return {step for step in milestones if step <= steps}


def _is_milestone(checkpoint: Checkpoint, step: int) -> bool:
    return step in checkpoint.at or _is_log_spaced(checkpoint.log_spaced, step)


def _is_log_spaced(per_decade: int | None, step: int) -> bool:
    """Whether `step` is round(10^(k/n)) for some k: n steps in every factor of ten."""
    if per_decade is None or step < 1:
        return False
    nearest = round(per_decade * math.log10(step))
    return any(round(10 ** (k / per_decade)) == step for k in (nearest - 1, nearest, nearest + 1))
