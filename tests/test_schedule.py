"""Schedules: every value, exactly `steps` updates, never a zero learning rate, sums in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from configs.schedule import decay_sum, lr_at, lr_fraction, lr_sum
from configs.schema import RunConfig, Schedule


def values(**fields: object) -> list[float]:
    schedule = Schedule.model_validate(fields)
    return [lr_fraction(schedule, t) for t in range(schedule.steps)]


def test_every_value() -> None:
    """Breaks if a shape, the warm-up's first value, the peak's place or the end moves by one update."""
    third = 1 / 3
    assert values(kind="linear", warmup_steps=2, steps=6, final_lr_fraction=0.0) == pytest.approx(
        [third, 2 * third, 1, 0.75, 0.5, 0.25]
    )
    assert values(kind="constant", warmup_steps=2, steps=5) == pytest.approx([third, 2 * third, 1, 1, 1])
    cosine = [0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * k / 4)) for k in range(4)]
    assert values(kind="cosine", warmup_steps=1, steps=5, final_lr_fraction=0.1) == pytest.approx([0.5, *cosine])
    assert values(kind="cosine", warmup_steps=3, steps=3) == pytest.approx([0.25, 0.5, 0.75])


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("warmup", [0, 1, 40, 100])
def test_never_zero_and_exactly_steps(kind: str, warmup: int) -> None:
    """Breaks if an update would have no learning rate, or one more could be asked for."""
    end = {} if kind == "constant" else {"final_lr_fraction": 0.0}
    found = values(kind=kind, warmup_steps=warmup, steps=100, **end)
    assert len(found) == 100
    assert 0 < min(found) <= max(found) <= 1
    with pytest.raises(ValueError, match="outside the schedule's 100 updates"):
        lr_fraction(Schedule(steps=100), 100)


def test_sums(tiny_config: Callable[..., RunConfig]) -> None:
    """Breaks if Ση or Σηλ of the plan are not the sums of what the updates use."""
    config = tiny_config(
        {"schedule": {"steps": 1000, "warmup_steps": 100, "final_lr_fraction": 0.1}, "optim": {"lr": 2.0}}
    )
    closed = 2.0 * (
        100 / 2 + 900 * 1.1 / 2 + 0.9 / 2
    )  # warm-up W/2; half-cosine mean (1+f)/2, plus its first value's half step
    assert lr_sum(config) == pytest.approx(closed, rel=1e-12)
    assert decay_sum(config, 1000) == pytest.approx(0.5 * closed, rel=1e-12)
    assert decay_sum(config, 3) == pytest.approx(0.5 * sum(lr_at(config, t) for t in range(3)))
