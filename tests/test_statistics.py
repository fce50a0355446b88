"""What may be said of runs: intervals, twins, crossings, divergence, and which runs belong together."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis import best_decay, generalisation, loss_curves
from analysis.command import Options
from analysis.compare import divergence, paired_final
from analysis.pairing import group_runs
from analysis.reading import load_run
from analysis.statistics import Interval, crossing, crossing_interval, interval
from tests.recorded import base_curve, load, write_run

PLAIN = Options()


def test_pairing_cancels_the_shared_noise(tmp_path: Path) -> None:
    """Breaks if differences are not of runs with the same seeds: here the seeds' noise is fifty times the effect."""
    paths = []
    for seed in range(4):
        own = 0.5 * seed
        paths.append(write_run(tmp_path / f"a{seed}", lambda s, k=own: base_curve(s) + k, seed=seed, noise=0.1))  # type: ignore[misc]
        paths.append(
            write_run(tmp_path / f"b{seed}", lambda s, k=own: base_curve(s) + k - 0.01, decay=0.1, seed=seed, noise=0.1)  # type: ignore[misc]
        )
    groups, _ = group_runs(load(*paths))
    found = paired_final(groups[1], groups[0], "train/loss")
    assert (found.interval.n, found.upto, found.verdict()) == (4, 1000, "helps")
    assert found.interval.mean == pytest.approx(-0.01, abs=1e-9)


def test_intervals() -> None:
    """Breaks if the t interval is another's, one value claims something, or a value that is not finite counts."""
    found = interval([1.0, 2.0, 3.0, float("nan")])
    half = 4.302652729911275 / np.sqrt(3)  # t(0.975, 2 degrees of freedom), standard deviation 1
    assert (found.mean, found.n) == (2.0, 3)
    assert (found.low, found.high) == pytest.approx((2 - half, 2 + half))
    assert not Interval(1.0, float("nan"), float("nan"), 1).excludes_zero
    assert not interval([5.0]).excludes_zero
    assert not interval([5.0, 5.1]).excludes_zero, "two seeds that agree would claim"


def test_crossings() -> None:
    """Breaks if a difference that never was above, or comes back, crosses, or its band is another's."""
    steps = pd.Index([0, 100, 200, 300])
    assert crossing(pd.Series([1.0, 1.0, -1.0, -1.0], steps)) == 150
    assert crossing(pd.Series([-1.0, -1.0, -1.0, -1.0], steps)) is None
    assert crossing(pd.Series([1.0, -1.0, -1.0, 1.0], steps)) is None
    assert crossing(pd.Series([1.0, -1.0, 1.0, -3.0], steps)) == 225
    assert crossing(pd.Series([0.0, -1.0, -1.0, -1.0], steps)) is None
    wide = pd.Index(range(0, 1001, 10))
    shifted = [pd.Series(1 - wide.to_numpy() / 500 + shift, wide) for shift in (-0.02, 0.0, 0.02)]
    found = crossing_interval(shifted)
    assert found is not None
    half = 4.302652729911275 * 0.02 / np.sqrt(3) * 500  # the t band's half width, in steps
    assert (found.step, found.low, found.high) == pytest.approx((500, 500 - half, 500 + half), abs=11)
    alone = crossing_interval(shifted[1:2])
    assert alone is not None
    assert alone.text() == "step 500 (1 seed)"


@pytest.mark.parametrize(
    ("curve", "state", "expected"),
    [
        (lambda s: np.where(s < 600, 3.0, 6.0), "done", (600, 640)),
        (lambda s: np.where((s < 600) | (s > 800), 3.0, 6.0), "done", None),  # it came back
        (lambda s: 3 + s / 5000, "done", None),  # within the margin
        (lambda s: np.where(s < 600, 3.0, np.nan), "running", (600, 640)),
        (lambda s: np.full(len(s), 3.0), "diverged", (1000, 1000)),
    ],
)
def test_divergence_is_recovered(curve: Any, state: str, expected: tuple[int, int] | None, tmp_path: Path) -> None:
    """Breaks if the step of a divergence is off by more than half the median's window, or a spike counts as one."""
    found = divergence(load_run(write_run(tmp_path / "run", curve, noise=0.0, state=state)))
    assert (found is None) if expected is None else (found is not None and expected[0] <= found <= expected[1])


def test_runs_that_follow_others_are_told_apart(tmp_path: Path) -> None:
    """Breaks if matched runs or branches of different trunks share a curve, matched runs enter the means of λ = 0, or a group of
    them falls apart by seeds."""
    paths = []
    for seed in range(2):
        paths.append(write_run(tmp_path / f"zero{seed}", seed=seed))
        for decay in (0.1, 0.3):
            trunk = write_run(
                tmp_path / f"wd{decay}-{seed}", lambda s, k=decay: base_curve(s) - 0.1 * k, decay=decay, seed=seed
            )  # type: ignore[misc]
            follower = {"match": {"reference": str(trunk)}}
            paths.append(trunk)
            paths.append(
                write_run(tmp_path / f"m{decay}-{seed}", lambda s: base_curve(s) + 1, seed=seed, schedule=follower)
            )
            for step in (500, 1000):
                origin = {"origin": f"{trunk}@{step}"}
                paths.append(write_run(tmp_path / f"b{decay}-{seed}-{step}", seed=seed, steps=100, branch=origin))
    runs = load(*paths)
    groups, notes = group_runs([run for run in runs if run.origin is None])
    expected = [(0, "–"), (0, "λ 0.1"), (0, "λ 0.3"), (0.1, "–"), (0.3, "–")]
    assert {(group.name, len(group.runs)) for group in groups} == {(f"λ = {d}, follows = {f}", 2) for d, f in expected}
    assert not notes
    branches, _ = group_runs([run for run in runs if run.origin is not None])
    assert [(group.name, len(group.runs)) for group in branches] == [
        (f"starts from = λ {decay} steps 1000 step {step}", 2) for decay in (0.1, 0.3) for step in (1000, 500)
    ]
    text = " ".join(loss_curves.analyse(runs, PLAIN).findings)
    assert "λ = 0.1, follows = – minus λ = 0, follows = –, training loss at step 1,000: -0.0100" in text


def test_copies_and_mixtures_are_no_seeds(tmp_path: Path) -> None:
    """Breaks if a run copied, or another precision put into the same curve, counts as another seed and makes a claim."""
    paths = [write_run(tmp_path / "a"), write_run(tmp_path / "b", lambda s: base_curve(s) - 0.01, decay=0.1)]
    for path in list(paths):
        shutil.copytree(path, tmp_path / f"{path.name}-copy")
        paths.append(tmp_path / f"{path.name}-copy")
    text = " ".join(loss_curves.analyse(load(*paths), PLAIN).findings)
    assert "(1 seed): one seed: no claim" in text
    for path in paths[:2]:
        decay = load_run(path).decay
        shift = -0.01 if decay else 0.5
        paths.append(
            write_run(
                tmp_path / f"{path.name}-bf16",
                lambda s, k=shift: base_curve(s) + k,
                decay=decay,
                precision="bf16-mixed",
            )
        )  # type: ignore[misc]
    result = loss_curves.analyse(load(*paths[:2], *paths[4:]), Options(by=["optim.weight_decay"]))
    assert "-0.2600 (1 seed)" in " ".join(result.findings)  # the mean of −0.01 and −0.51: twins within a precision


def test_unfinished_runs_make_no_claim(tmp_path: Path) -> None:
    """Breaks if runs on their way, whose order may still turn, are said to harm; or one young seed cuts a mean short."""
    paths = []
    for seed in range(3):
        upto = 20 if seed == 2 else 400
        paths.append(write_run(tmp_path / f"a{seed}", seed=seed, upto=upto, state="running"))
        paths.append(
            write_run(
                tmp_path / f"b{seed}", lambda s: base_curve(s) + 0.05, decay=0.1, seed=seed, upto=upto, state="running"
            )
        )
    result = loss_curves.analyse(load(*paths), PLAIN)
    assert "training loss at step 400 of 1,000, unfinished: +0.0500 (2 seeds): no claim yet" in result.findings[0]
    assert result.figures[0].panels[0].lines[0].x[-1] == 400


@pytest.mark.parametrize(
    ("order", "rises", "gone"), [("documents", False, False), ("documents", True, True), ("windows", False, True)]
)
def test_hard_documents_at_the_end(tmp_path: Path, order: str, rises: bool, gone: bool) -> None:
    """Breaks if a stretch of hard documents is taken for divergence, or divergence in that order for such a stretch."""
    path = write_run(tmp_path / "run", lambda s: 3 + 1.0 * (s > 850), noise=0, data={"order": order, "path": "x"})
    if not rises:  # the validation, of the same windows each time, is as before
        lines = (path / "metrics.jsonl").read_text().replace('"val/loss": 4.0', '"val/loss": 3.0')
        (path / "metrics.jsonl").write_text(lines)
    assert (divergence(load_run(path)) is not None) is gone


def test_diverged_runs_enter_no_mean(tmp_path: Path) -> None:
    """Breaks if a run that diverged moves a mean in any analysis, or is not shown at all."""
    paths = [write_run(tmp_path / f"a{seed}", seed=seed) for seed in range(3)]
    paths.append(write_run(tmp_path / "lost", lambda s: base_curve(s) + 5.0 * (s > 500), seed=3, decay=0.0))
    runs = load(*paths)
    lines = loss_curves.analyse(runs, PLAIN).figures[0].panels[0].lines
    assert lines[0].y[-1] < 3.1
    assert [one.name for one in lines if "diverged" in one.name] == ["λ = 0, η = 0.1, seed 3: diverged"]
    assert "1 of 4 runs diverged" in loss_curves.analyse(runs, PLAIN).findings[0]
    assert generalisation.analyse(runs, PLAIN).tables["Gaps"].iloc[0]["seeds"] == 3


def test_runs_are_not_mixed_in_silence(tmp_path: Path) -> None:
    """Breaks if runs that differ in what is not plotted share a curve without a word, or are kept apart for their seeds."""
    runs = load(
        *(write_run(tmp_path / f"a{seed}", decay=0.1, seed=seed) for seed in range(2)),
        write_run(tmp_path / "b", decay=0.1, precision="bf16-mixed"),
    )
    groups, notes = group_runs(runs)
    assert [(group.name, len(group.runs)) for group in groups] == [
        ("precision = bf16-mixed", 1),
        ("precision = fp32", 2),
    ]
    assert not notes
    groups, notes = group_runs(runs, ["optim.weight_decay"])
    assert [len(group.runs) for group in groups] == [3]
    assert notes == ["λ = 0.1: its 3 runs differ in more than seeds: precision"]
    with pytest.raises(ValueError, match=r"no run has the field 'optim\.decay'"):
        group_runs(runs, ["optim.decay"])


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ((3.1587, 3.4867, 3.3313), True),  # a start that collapses, as badly as the seed will have it
        ((3.0963, 3.3262, 3.2221), True),
        ((3.1587, 3.3313), True),
        ((3.0521, 3.0712, 3.0616), False),  # the same setting with a sound start
        ((3.0458, 3.0685, 3.0641), False),
        ((3.1587,), False),
    ],
)
def test_seeds_that_disagree_about_the_run(losses: tuple[float, ...], said: bool, tmp_path: Path) -> None:
    """Breaks if seeds that a broken start has driven apart are read as λ's effect without a word, or sound ones are warned of."""
    paths = []
    for seed, loss in enumerate(losses):
        columns = {"optim/grad_norm": lambda s, k=seed: 1.0 + 12 * (s == 24 + k)}
        curve = lambda s, k=loss: k + 3 * np.exp(-s / 60)  # noqa: E731
        paths.append(write_run(tmp_path / f"a{seed}", curve, seed=seed, noise=0.001, columns=columns))
        paths.append(
            write_run(tmp_path / f"b{seed}", lambda s: 3 + 3 * np.exp(-s / 60), decay=0.1, seed=seed, noise=0.001)
        )
    for analysis in (loss_curves, best_decay):
        findings = analysis.analyse(load(*paths), PLAIN).findings
        (text,) = [text for text in findings if text.startswith("Seeds differ")] or [""]
        assert bool(text) == said
        if said:
            assert findings[0] == text, "before any difference"
            assert f"Seeds differ by {max(losses) - min(losses):.3f} nats at λ = 0 (validation loss at the end" in text
            assert "look at the start (gradient norms, loss at step 150" in text
            assert "in updates 126–150 they differ by 0." in text
            assert "the largest gradient norm up to there is 13.0" in text
