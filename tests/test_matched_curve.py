"""Claim 3: whether a matched run repeats its leader's curve, on made-up runs whose distance is known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis import effective_lr
from analysis.claims import Claim
from analysis.command import Options
from tests.recorded import base_curve, load, write_run

pytestmark = pytest.mark.slow  # by its length alone: `make check` takes a minute

Bend = Callable[[np.ndarray, int], Any]


def judged(root: Path, bend: Bend, gap: float = 0.08, ended: int = 5, match: dict[str, str] | None = None) -> Claim:
    """Five seeds of λ = 0, a leader `gap` above it at 45 %, and a run matched to it that `bend`s away from its leader's curve."""
    paths = []
    for seed in range(5):
        above = gap + 0.001 * seed
        leader = root / f"leader{seed}"
        paths.append(write_run(root / f"plain{seed}", seed=seed))
        paths.append(write_run(leader, lambda s, k=above: base_curve(s) + k, decay=0.3, seed=seed))  # type: ignore[misc]
        follows = {"match": {"reference": str(leader), **(match or {})}}
        curve: Any = lambda s, k=above, i=seed: base_curve(s) + k + bend(s, i)  # noqa: E731
        state = {} if seed < ended else {"state": "running", "upto": 700}
        path = root / f"matched{seed}"
        paths.append(write_run(path, curve, seed=seed, schedule=follows, **state))  # type: ignore[arg-type]
    result = effective_lr.analyse(load(*paths), Options())
    (claim,) = result.claims
    assert claim.sentence in result.findings
    assert len(result.tables["Matched curves"]) == 1
    return claim


def bump(height: float, first: int, last: int) -> Bend:
    return lambda s, seed: height * ((s >= first) & (s <= last))


@pytest.mark.parametrize(
    ("bend", "distance", "verdict"),
    [
        (lambda s, seed: 0.004 + 0 * s, 0.004, "the same within ±0.02"),
        (bump(0.5, 0, 89), 0.0, "the same within ±0.02"),  # the start, and what smoothing carries of it
        (bump(0.06, 600, 700), 0.06, "differs by more than 0.02"),  # in one place, gone at the end
        (lambda s, seed: 0.06 * (-1) ** seed + 0 * s, 0.06, "differs by more than 0.02"),  # signs that cancel
        (lambda s, seed: (0.01 if seed < 3 else 0.035) + 0 * s, 0.02, "undecided: the 90 % interval holds the margin"),
        (bump(5.0, 600, 600), 0.25, "differs"),  # one update of a window of 20
    ],
)
def test_a_known_distance(tmp_path: Path, bend: Bend, distance: float, verdict: str) -> None:
    """Breaks if the distance is not the largest after the first tenth, if seeds of opposite signs cancel, if a distance inside the
    margin is said to differ because it is above zero, or the margin is not a quarter of mid-run."""
    claim = judged(tmp_path, bend)
    assert claim.margin == pytest.approx(0.0205)
    assert claim.estimate == pytest.approx(distance, abs=1e-3)
    assert claim.interval.n == 5
    assert claim.verdict.startswith(verdict)
    assert claim.decided == (not verdict.startswith("undecided"))
    assert "closed loop, by model" in claim.conditions


def test_no_verdict(tmp_path: Path) -> None:
    """Breaks if a verdict is given before all pairs have ended or with nothing to explain in mid-run, or an open loop is hidden."""
    same = bump(0.0, 0, 1)
    young = judged(tmp_path / "young", same, ended=4)
    assert (young.verdict, young.margin) == ("no claim yet: 1 of 5 pairs have not ended", None)
    flat = judged(tmp_path / "flat", same, gap=-0.002)
    assert flat.verdict == "no margin: the mid-run difference to λ = 0 is not told from zero"
    assert not flat.decided
    assert "open loop" in judged(tmp_path / "open", same, match={"own": "another"}).conditions
