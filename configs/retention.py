"""Which steps are due, which are saved, and which checkpoints stay: pure functions of the configuration and the step."""

from __future__ import annotations

import math

from configs.schema import Checkpoint


def is_due(every: int | None, step: int) -> bool:
    """Whether `step` is a multiple of a cadence; never without one."""
    return every is not None and step % every == 0


def is_saved(checkpoint: Checkpoint, step: int, steps: int) -> bool:
    """Whether a run of `steps` updates saves after `step`: always at its end."""
    return step == steps or is_due(checkpoint.every, step) or _is_milestone(checkpoint, step)


def is_kept(checkpoint: Checkpoint, step: int) -> bool:
    """Whether the checkpoint of `step` outlives the newest keep_last."""
    return checkpoint.keep_last is None or is_due(checkpoint.keep_every, step) or _is_milestone(checkpoint, step)


def most_at_once(checkpoint: Checkpoint, steps: int) -> int:
    """The largest number of checkpoints on disk at one time, the one being written included."""
    saved = [step for step in range(1, steps + 1) if is_saved(checkpoint, step, steps)]
    kept = sum(is_kept(checkpoint, step) for step in saved)
    return min(len(saved), kept + (checkpoint.keep_last or 0) + 1)


def _is_milestone(checkpoint: Checkpoint, step: int) -> bool:
    return step in checkpoint.at or _is_log_spaced(checkpoint.log_spaced, step)


def _is_log_spaced(per_decade: int | None, step: int) -> bool:
    """Whether `step` is round(10^(k/n)) for some k: n steps in every factor of ten."""
    if per_decade is None or step < 1:
        return False
    nearest = round(per_decade * math.log10(step))
    return any(round(10 ** (k / per_decade)) == step for k in (nearest - 1, nearest, nearest + 1))
