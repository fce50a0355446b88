"""Σηλ: where it is a number of e-folds, where it is divided by 1 − μ, and where it is not shown as one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis import advise, best_decay
from analysis.command import Options
from analysis.pairing import group_runs
from analysis.settled import seen_by
from configs.equilibrium import e_folds
from configs.plan import make_plan
from configs.render import render_plan
from configs.schema import RunConfig
from tests.recorded import load, write_run

# the rule and its momentum → e-folds of a Σηλ of 0.5, and how the plan shows them
CASES: list[tuple[dict[str, Any], float | None, str]] = [
    ({}, 0.5, "Σηλ  "),
    ({"algorithm": "sgd"}, 0.5, "Σηλ  "),
    ({"algorithm": "sgd", "decay_rule": "l2_coupled", "momentum": 0.75}, 2.0, "Σηλ/(1 − μ)"),
    ({"algorithm": "sgd", "decay_rule": "l2_coupled", "momentum": 0.0}, 0.5, "Σηλ  "),
    ({"algorithm": "sgd", "decay_rule": "l2_loss"}, None, "and is clipped with it"),
    ({"decay_rule": "l2_coupled"}, None, "which Adam divides by √v"),
    ({"decay_rule": "l2_loss"}, None, "which Adam divides by √v"),
]


def simulated(rate: float, decay: float, momentum: float, steps: int) -> float:
    """ln of what is left of a weight without gradient, under SGD with λw in the gradient."""
    w, m = 1.0, 0.0
    for _ in range(steps):
        m = momentum * m + decay * w
        w -= rate * m
    return -float(np.log(w))


def test_momentum_carries_the_decay_on() -> None:
    """Breaks if e-folds of SGD's coupled decay are not what its recursion takes of a weight, or l2_loss is given any."""
    for momentum in (0.0, 0.9):
        folds = e_folds(1e-4 * 20_000, "l2_coupled", "sgd", momentum)
        assert folds == pytest.approx(simulated(1e-3, 0.1, momentum, 20_000), rel=0.02)
    assert e_folds(0.0, "l2_loss", "adam", 0.9) == 0.0


@pytest.mark.parametrize(("optim", "expected", "words"), CASES)
def test_shown(
    optim: dict[str, Any], expected: float | None, words: str, tiny_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    """Breaks if a plan, the advice, the sweep's table or the equilibrium takes Σηλ for e-folds where it is none, or hides why."""
    config = tiny_config({"optim": {"weight_decay": 0.01, **optim}})
    plan = make_plan(config, 1, None)
    text, rows = render_plan(config, plan), advise.analyse(config, [], Options()).tables["Known beforehand"]
    assert words in text
    said = " ".join(f"{row.what} {row.value}" for row in rows.itertuples())
    if expected is None:
        assert "Σηλ" not in text
        assert "no number of e-folds" in text
        assert "no λ·Ση" in said
        assert "Σηλ" not in said
        assert "time scale" not in said
    else:
        assert plan.decay_sum is not None
        shown = expected / 0.5 * plan.decay_sum
        assert f"{shown:.6g}" in text
        assert f"{shown:.4g}" in said
    path = write_run(tmp_path / "run", decay=0.3, columns={"optim/decay_sum": lambda s: s / 2000}, optim=optim)
    runs = load(path)
    result = best_decay.analyse(runs, Options())
    cell = result.tables["Runs"]["Σηλ"].iloc[0]
    assert (None if np.isnan(float(cell or np.nan)) else cell) == expected
    noted = [note for note in result.notes if "Σηλ" in note]
    assert len(noted) == (expected != 0.5)
    assert seen_by(group_runs(runs)[0][0]) == (expected or 0.0)
