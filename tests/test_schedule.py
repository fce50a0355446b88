"""Schedules: every value, exactly `steps` updates, never a zero learning rate, sums in closed form."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from configs.identity import experiment
from configs.load import load_config
from configs.schedule import decay_sum, lr_at, lr_fraction, lr_sum
from configs.schema import RunConfig, Schedule


def values(**fields: object) -> list[float]:
    schedule = Schedule.model_validate_json(json.dumps(fields))
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


def test_phases() -> None:
    """Breaks if a phase of a multistep schedule begins an update early or late, touches the warm-up, or is no constant."""
    phases = values(kind="multistep", steps=10, warmup_steps=2, points=[[5, 0.1], [9, 0.01]])
    assert phases == [1 / 3, 2 / 3, 1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01]
    assert values(kind="multistep", steps=4, points=[[1, 0.5], [4, 1.0]]) == [0.5, 0.5, 0.5, 1.0]
    # P1's two phases, and P2's a tenth every 60 epochs of 200, here one update an epoch.
    assert values(kind="multistep", steps=4, points=[[3, 0.125]]) == [1, 1, 0.125, 0.125]
    p2 = values(kind="multistep", steps=200, points=[[61, 0.1], [121, 0.01], [181, 0.001]])
    assert p2 == [1.0] * 60 + [0.1] * 60 + [0.01] * 60 + [0.001] * 20


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


def test_p1_and_later_shapes() -> None:
    """Breaks if the slower cosine, WSD or points miss a value: P1's horizon beyond the run, a cool-down's first step."""
    slow = [0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * t / 8)) for t in range(5)]
    assert values(kind="cosine", steps=5, horizon=8) == pytest.approx(slow)
    wsd = {"kind": "wsd", "steps": 8, "warmup_steps": 2, "cooldown_fraction": 0.5, "final_lr_fraction": 0.0}
    assert values(**wsd) == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 0.75, 0.5, 0.25])
    cosine = [0.5 * (1 + math.cos(math.pi * k / 4)) for k in range(4)]
    assert values(**wsd, cooldown_shape="cosine")[4:] == pytest.approx(cosine)
    assert values(**wsd, cooldown_shape="one_minus_sqrt")[4:] == pytest.approx([1 - math.sqrt(k / 4) for k in range(4)])
    points = [[1, 0.5], [3, 1.0], [7, 0.0]]
    assert values(kind="piecewise", steps=6, points=points) == pytest.approx([0.5, 0.75, 1.0, 0.75, 0.5, 0.25])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "constant", "final_lr_fraction": 0.5}, "a constant schedule has no final_lr_fraction"),
        ({"kind": "wsd", "horizon": 20}, "a wsd schedule has no horizon"),
        ({"horizon": 9}, "lies before the run's end; set it to steps 10 or more"),
        ({"cooldown_fraction": 0.5}, "a cosine schedule has no cooldown_fraction"),
        ({"kind": "piecewise"}, "points must rise from step 1 to step 10"),
        ({"kind": "piecewise", "points": [[1, 1.0], [9, 1.0]]}, "points must rise from step 1 to step 10"),
        ({"kind": "piecewise", "points": [[1, 1.0], [10, 0.0]]}, "put 0 past the end, at step 11"),
        ({"kind": "piecewise", "points": [[1, 0.0], [10, 1.0]]}, "lie in"),
        ({"kind": "multistep"}, r"needs points, for example \[\[6, 0.1\]\]: from that step on a tenth"),
        ({"kind": "multistep", "points": [[5, 0.1], [5, 0.01]]}, r"\[5, 0.01\] must lie after step 5, and at step 10"),
        ({"kind": "multistep", "points": [[0, 0.1]]}, "must lie after the warm-up's 0 steps"),
        (
            {"kind": "multistep", "points": [[6, 0.1], [11, 0.01]]},
            r"\[11, 0.01\] must lie after step 6, and at step 10 at the latest",
        ),
        ({"kind": "multistep", "warmup_steps": 3, "points": [[3, 0.1]]}, "after the warm-up's 3 steps"),
        ({"kind": "multistep", "points": [[6, 0.0]]}, r"\[6, 0\]: fractions of the peak lie in \(0, 1\]"),
        ({"kind": "multistep", "points": [[6, 1.5]]}, r"lie in \(0, 1\]"),
        ({"kind": "multistep", "points": [[6, 0.1]], "final_lr_fraction": 0.5}, "a multistep schedule has no final_lr"),
        ({"kind": "constant", "points": [[6, 0.1]]}, "a constant schedule has no points"),
    ],
)
def test_bad_schedules(fields: dict[str, object], message: str) -> None:
    """Breaks if a field that does nothing, or a schedule with a hole, is accepted."""
    with pytest.raises(ValueError, match=message):
        Schedule.model_validate_json(json.dumps({"steps": 10, **fields}))


def test_points_from_a_file(tmp_path: Path, tiny_config: Callable[..., RunConfig]) -> None:
    """Breaks if the identity takes a file's name for its content."""
    (tmp_path / "points.json").write_text('{"points": [[1, 1.0], [6, 0.5]]}')
    given = tiny_config().model_dump(mode="json")
    given["schedule"] = {"kind": "piecewise", "steps": 6, "points": "points.json"}
    (tmp_path / "config.json").write_text(json.dumps(given))
    config, _ = load_config(tmp_path / "config.json")
    assert config.schedule.points == ((1, 1.0), (6, 0.5))
    assert experiment(config, "d")["schedule"]["points"] == [[1, 1.0], [6, 0.5]]
    (tmp_path / "points.json").write_text("{}")
    with pytest.raises(ValueError, match="expected"):
        load_config(tmp_path / "config.json")
