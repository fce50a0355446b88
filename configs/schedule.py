"""Learning-rate schedules: pure functions of the update's index t = 0 … steps−1.

Warm-up is linear and never zero: η_t = η·(t+1)/(W+1) for t < W, the peak first at t = W. The decay then reaches
`final_lr_fraction` at t = steps, the update after the last one, so that even a decay to zero has steps updates
with a positive learning rate.
"""

from __future__ import annotations

import math

from configs.schema import RunConfig, Schedule


def lr_fraction(schedule: Schedule, t: int) -> float:
    """η_t over the peak learning rate for update t (0-based).

    Raises ValueError outside 0 … steps−1.
    """
    if not 0 <= t < schedule.steps:
        raise ValueError(f"update {t} lies outside the schedule's {schedule.steps} updates")
    warmup, final = schedule.warmup_steps, schedule.final_lr_fraction
    if t < warmup:
        return (t + 1) / (warmup + 1)
    progress = (t - warmup) / (schedule.steps - warmup)
    match schedule.kind:
        case "constant":
            return 1.0
        case "linear":
            return 1.0 - (1.0 - final) * progress
        case "cosine":
            return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress))


def lr_at(config: RunConfig, t: int) -> float:
    """Learning rate η_t of update t."""
    return config.optim.lr * lr_fraction(config.schedule, t)


def decay_at(config: RunConfig, t: int) -> float:
    """Decay of update t: η_t·λ, what 1 − p_{t+1}/p_t would be without a gradient."""
    return lr_at(config, t) * config.optim.weight_decay


def lr_sum(config: RunConfig) -> float:
    """Ση_t over the run. P1's cosine run: 16.49."""
    return math.fsum(lr_at(config, t) for t in range(config.schedule.steps))


def decay_sum(config: RunConfig, updates: int) -> float:
    """Ση_tλ over the first `updates` updates: how many e-folds of decay the weights have seen."""
    return math.fsum(decay_at(config, t) for t in range(updates))
