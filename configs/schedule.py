"""Learning-rate schedules: pure functions of the update's index t = 0 … steps−1.

Warm-up is linear and never zero: η_t = η·(t+1)/(W+1) for t < W, the peak first at t = W. The decay then reaches
`final_lr_fraction` at t = steps (or at its own horizon), the update after the last one, so that even a decay to zero has
steps updates with a positive learning rate.
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
    progress = (t - warmup) / ((schedule.horizon or schedule.steps) - warmup)
    match schedule.kind:
        case "constant":
            return 1.0
        case "linear" | "cosine":
            return final + (1.0 - final) * _falling(schedule.kind, progress)
        case "wsd":
            length = (schedule.cooldown_fraction or 0.2) * schedule.steps
            into = max(0.0, (t - (schedule.steps - length)) / length)
            return final + (1.0 - final) * _falling(schedule.cooldown_shape or "linear", into)
        case "piecewise":
            return _on_lines(schedule.points or (), t + 1)


def _falling(shape: str, progress: float) -> float:
    """From 1 at progress 0 to 0 at progress 1."""
    match shape:
        case "linear":
            return 1.0 - progress
        case "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * progress))
    return 1.0 - math.sqrt(progress)  # one_minus_sqrt (Hägele et al., 2405.18392)


def _on_lines(points: tuple[tuple[int, float], ...], step: int) -> float:
    index = next(i for i, (place, _) in enumerate(points) if place >= step)
    place, value = points[index]
    if place == step:
        return value
    before, start = points[index - 1]
    return start + (value - start) * (step - before) / (place - before)


def decay_factor(config: RunConfig, t: int) -> float:
    """What λ is multiplied by in update t: optim.decay_schedule."""
    schedule = config.optim.decay_schedule
    if schedule is None:
        return 1.0
    first, last = schedule.first_step - 1, (schedule.last_step or config.schedule.steps) - 1
    if not first <= t <= last:
        return 0.0
    if schedule.kind == "constant":
        return schedule.start
    return schedule.end + (schedule.start - schedule.end) * _falling(schedule.kind, (t - first) / (last + 1 - first))


def lr_at(config: RunConfig, t: int) -> float:
    """Learning rate η_t of update t."""
    return config.optim.lr * lr_fraction(config.schedule, t)


def decay_at(config: RunConfig, t: int, weight_decay: float | None = None) -> float:
    """η_t·λ_t of update t; for decoupled decay what 1 − p_{t+1}/p_t would be without a gradient."""
    weight_decay = config.optim.weight_decay if weight_decay is None else weight_decay
    return lr_at(config, t) * weight_decay * decay_factor(config, t)


def lr_sum(config: RunConfig, factors: list[float] | None = None) -> float:
    """Ση_t over the run, each times its factor where there are any (schedule.match). P1's cosine run: 16.49."""
    return math.fsum(lr_at(config, t) * (factors[t] if factors else 1.0) for t in range(config.schedule.steps))


def decay_sum(
    config: RunConfig, updates: int, factors: list[float] | None = None, weight_decay: float | None = None
) -> float:
    """Ση_tλ_t over the first `updates` updates: how many e-folds of decay the weights have seen.

    `weight_decay`: the λ meant, where it is not optim.weight_decay (configs/plan.main_group).
    """
    return math.fsum(decay_at(config, t, weight_decay) * (factors[t] if factors else 1.0) for t in range(updates))
