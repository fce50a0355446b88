"""Learning-rate schedules: pure functions of the update's index t = 0 … steps−1.

Warm-up is linear and never zero: η_t = η·(t+1)/(W+1) for t < W, the peak first at t = W. The decay then reaches
`final_lr_fraction` at t = steps (or at its own horizon), the update after the last one, so that even a decay to zero has
steps updates with a positive learning rate.
"""

from __future__ import annotations

import math
import operator
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable
from itertools import islice

from configs.errors import InputError
from configs.schema import RunConfig, Schedule


def lr_fraction(schedule: Schedule, t: int) -> float:
    """η_t over the peak learning rate for update t (0-based).

    Raises InputError outside 0 … steps−1.
    """
    if not 0 <= t < schedule.steps:
        raise InputError(f"update {t} lies outside the schedule's {schedule.steps} updates")
    return _curve(schedule)(t)


def _curve(schedule: Schedule) -> Callable[[int], float]:
    """lr_fraction as a function of t alone. What stays the same over the run is read once: plans ask for every update."""
    warmup, final, steps = schedule.warmup_steps, schedule.final_lr_fraction, schedule.steps
    match schedule.kind:
        case "constant":
            after: Callable[[int], float] = lambda t: 1.0  # noqa: E731 (as the other shapes)
        case "linear" | "cosine":
            falling, length = FALLING[schedule.kind], (schedule.horizon or steps) - warmup
            after = lambda t: final + (1.0 - final) * falling((t - warmup) / length)  # noqa: E731
        case "wsd":
            falling, share = FALLING[schedule.cooldown_shape or "linear"], (schedule.cooldown_fraction or 0.2) * steps
            after = lambda t: final + (1.0 - final) * falling(max(0.0, (t - (steps - share)) / share))  # noqa: E731
        case "piecewise":
            points = schedule.points or ()
            places = [place for place, _ in points]
            after = lambda t: _on_lines(points, places, t + 1)  # noqa: E731
        case "multistep":
            starts = [place for place, _ in schedule.points or ()]
            phases = [1.0, *(value for _, value in schedule.points or ())]
            after = lambda t: phases[bisect_right(starts, t + 1)]  # noqa: E731
    return lambda t: (t + 1) / (warmup + 1) if t < warmup else after(t)


# From 1 at progress 0 to 0 at progress 1.
FALLING: dict[str, Callable[[float], float]] = {
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
    "one_minus_sqrt": lambda progress: 1.0 - math.sqrt(progress),  # Hägele et al., 2405.18392
}


def _on_lines(points: tuple[tuple[int, float], ...], places: list[int], step: int) -> float:
    index = bisect_left(places, step)
    place, value = points[index]
    if place == step:
        return value
    before, start = points[index - 1]
    return start + (value - start) * (step - before) / (place - before)


def decay_factor(config: RunConfig, t: int) -> float:
    """What λ is multiplied by in update t: optim.decay_schedule, and what the rule adds of its own (optim/rules/)."""
    return _decay_curve(config)(t)


def plain_decay_factor(config: RunConfig, t: int) -> float:
    """The same for a tensor that the rule's own part is not for: optim.decay_schedule alone."""
    return _scheduled_decay(config)(t)


def _decay_curve(config: RunConfig) -> Callable[[int], float]:
    """decay_factor as a function of t alone."""
    scheduled, peak = _scheduled_decay(config), config.optim.lr
    match config.optim.decay_rule:
        case "independent":  # η_t·λ_t is s_t·λ, s_t the schedule's shape
            return lambda t: scheduled(t) / peak
        case "corrected":  # η_t·λ_t is η_t²/η·λ
            shape = _curve(config.schedule)
            return lambda t: scheduled(t) * shape(t)
    return scheduled


def _scheduled_decay(config: RunConfig) -> Callable[[int], float]:
    """plain_decay_factor as a function of t alone."""
    schedule = config.optim.decay_schedule
    if schedule is None:
        return lambda t: 1.0
    first, last = schedule.first_step - 1, (schedule.last_step or config.schedule.steps) - 1
    start, end = schedule.start, schedule.end
    if schedule.kind == "constant":
        return lambda t: start if first <= t <= last else 0.0
    falling, length = FALLING[schedule.kind], last + 1 - first
    return lambda t: end + (start - end) * falling((t - first) / length) if first <= t <= last else 0.0


def lr_at(config: RunConfig, t: int) -> float:
    """Learning rate η_t of update t."""
    return config.optim.lr * lr_fraction(config.schedule, t)


def lr_of_updates(config: RunConfig) -> array[float]:
    """η_t of every update, the bits of lr_at: 0.3 s for a million."""
    peak, curve = config.optim.lr, _curve(config.schedule)
    return array("d", (peak * curve(t) for t in range(config.schedule.steps)))


def peak_decay(config: RunConfig, rates: array[float], factors: list[float] | None = None) -> float:
    """The largest η_t times its factor on λ (optim.decay_schedule, the rule's own); `rates` from lr_of_updates.

    `factors` on η, one an update (schedule.match, branch.lr_by_norm_of): a matched run decays by η′_t·λ_t.
    """
    taken: Iterable[float] = map(operator.mul, rates, factors) if factors else rates
    if not _factored(config):
        return max(taken)
    factor = _decay_curve(config)
    return max(rate * factor(t) for t, rate in enumerate(taken))


def _factored(config: RunConfig) -> bool:
    """Whether λ_t is anything but λ."""
    return config.optim.decay_schedule is not None or config.optim.decay_rule in ("independent", "corrected")


def decay_at(config: RunConfig, t: int, weight_decay: float | None = None) -> float:
    """η_t·λ_t of update t; for decoupled decay what 1 − p_{t+1}/p_t would be without a gradient."""
    weight_decay = config.optim.weight_decay if weight_decay is None else weight_decay
    return lr_at(config, t) * weight_decay * decay_factor(config, t)


def lr_sum(config: RunConfig, factors: list[float] | None = None, rates: array[float] | None = None) -> float:
    """Ση_t over the run, each times its factor where there are any (schedule.match). P1's cosine run: 16.49.

    `rates`: lr_of_updates, where it is there already.
    """
    rates = lr_of_updates(config) if rates is None else rates
    return math.fsum(map(operator.mul, rates, factors) if factors else rates)


def decay_sum(
    config: RunConfig,
    updates: int,
    factors: list[float] | None = None,
    weight_decay: float | None = None,
    rates: array[float] | None = None,
) -> float:
    """Ση_tλ_t over the first `updates` updates. How many e-folds of decay that is depends on the rule (configs/equilibrium.py).

    `weight_decay`: the λ meant, where it is not optim.weight_decay (configs/groups.main_group). `rates` as of lr_sum.
    """
    weight_decay = config.optim.weight_decay if weight_decay is None else weight_decay
    assert updates <= config.schedule.steps
    # Multiplied in the order of decay_at, so that the sum has the same bits; a factor of 1 changes none.
    decays: Iterable[float] = (
        rate * weight_decay for rate in islice(lr_of_updates(config) if rates is None else rates, updates)
    )
    if _factored(config):
        decays = map(operator.mul, decays, map(_decay_curve(config), range(updates)))
    return math.fsum(map(operator.mul, decays, factors) if factors else decays)
