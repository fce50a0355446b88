"""What claims hold under: the diverged runs that they leave out, and the family of comparisons that they belong to."""

from __future__ import annotations

from pathlib import Path

import pytest

from analysis import bias_variance, effective_lr, generalisation, loss_curves, precision_gap
from analysis.__main__ import main
from analysis.claims import corrected, difference_claim
from analysis.command import Options, Result
from analysis.statistics import interval
from tests.recorded import base_curve, load, write_run

pytestmark = pytest.mark.slow  # by its length alone: `make check` takes a minute

SEEDS = 5


def study(root: Path, lost: tuple[int, ...]) -> list[Path]:
    """λ = 0 and 0.3, a branch of each at step 500; the runs of `lost` seeds diverged at λ = 0, and seed 4's branch of λ = 0.3."""
    paths = []
    for decay in (0.0, 0.3):
        for seed in range(SEEDS):
            gone = bool(lost) and decay == 0 and seed in lost
            path = root / f"t{decay}-{seed}"
            shift = 0.02 * decay * (1 + 0.01 * seed)
            trunk = write_run(
                path,
                lambda s, k=shift: base_curve(s) - k,  # type: ignore[misc]
                decay=decay,
                seed=seed,
                state="diverged" if gone else "done",
            )
            origin = {"origin": f"{trunk}@500"}
            state = "diverged" if lost and decay and seed == 4 else "done"
            branch = root / f"b{decay}-{seed}"
            paths += [
                trunk,
                write_run(branch, seed=seed, steps=100, branch=origin, optim={"lr": 1e-4}, state=state),  # type: ignore[arg-type]
            ]
    return paths


def trunks(paths: list[Path]) -> list[Path]:
    return [path for path in paths if path.name.startswith("t")]


def test_a_difference_is_conditional_on_survival(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if an analysis leaves diverged runs out of a paired difference and does not say so beside its verdict and in its
    table, names the wrong side, or says it where none diverged."""
    some, none = study(tmp_path / "some", (0, 1)), study(tmp_path / "none", ())
    said = "conditional on survival: 2 of 5 at λ = 0 diverged"
    result = loss_curves.analyse(load(*trunks(some)), Options())
    assert {claim.interval.n for claim in result.claims} == {3}
    assert all(f"; {said} (" in claim.sentence for claim in result.claims)
    assert all(claim.row()["condition"] == said for claim in result.claims)
    losses = result.tables["Losses"].set_index("run")
    assert losses.loc["λ = 0.3", "condition"] == said
    gaps = generalisation.analyse(load(*trunks(some)), Options())
    assert [claim.conditions for claim in gaps.claims] == [said]
    assert gaps.tables["Gaps"].set_index("run").loc["λ = 0.3", "condition"] == said
    # a checkpoint is lost with its trunk or with its branch
    parts = bias_variance.analyse(load(*some), Options())
    both = "conditional on survival: 1 of 5 at λ = 0.3 and 2 of 5 at λ = 0 diverged"
    assert set(parts.tables["Verdicts"]["condition"]) == {both}
    assert {claim.interval.n for claim in parts.claims} == {2}
    assert main(["sweep", *map(str, trunks(some))]) == 0
    assert f"({said})" in capsys.readouterr().out
    whole: list[Result] = [
        loss_curves.analyse(load(*trunks(none)), Options()),
        generalisation.analyse(load(*trunks(none)), Options()),
        bias_variance.analyse(load(*none), Options()),
    ]
    for one in whole:
        assert one.claims
        assert not any(claim.conditions for claim in one.claims)
        assert not any("condition" in table for table in one.tables.values())


def test_parity_is_conditional_on_survival(tmp_path: Path) -> None:
    """Breaks if a precision whose bad seeds diverged is called the same as float32 as if all of them had lived."""
    paths = [write_run(tmp_path / f"f{seed}", seed=seed) for seed in range(SEEDS)]
    for seed in range(SEEDS):
        state = "diverged" if seed == 2 else "done"
        paths.append(write_run(tmp_path / f"b{seed}", seed=seed, precision="bf16-mixed", state=state))  # type: ignore[arg-type]
    result = precision_gap.analyse(load(*paths), Options())
    said = "conditional on survival: 1 of 5 at precision = bf16-mixed diverged"
    assert [claim.conditions for claim in result.claims] == [said, said]
    assert set(result.tables["Loss gap to float32"]["condition"]) == {said}


def test_matched_runs_and_advice_are_conditional_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if the distance of matched runs to their leaders, or what advise says of finished runs, hides that some diverged."""
    norms = {"weights/norm": lambda s: 5 + 0 * s, "optim/lr": lambda s: 0.1 + 0 * s}
    leaders, matched = [], []
    for seed in range(4):
        state = "diverged" if seed == 3 else "done"
        leaders.append(write_run(tmp_path / f"l{seed}", decay=0.3, seed=seed, columns=norms))  # type: ignore[arg-type]
        match = {"match": {"reference": str(leaders[-1])}}
        matched.append(write_run(tmp_path / f"m{seed}", seed=seed, columns=norms, schedule=match, state=state))  # type: ignore[arg-type]
    text = " ".join(effective_lr.analyse(load(*leaders, *matched), Options()).findings)
    assert "minus its reference's final training loss: matched " in text
    assert "Conditional on survival: 1 of 4 at " in text
    plain = [
        write_run(tmp_path / f"p{seed}", seed=seed, state="diverged" if seed == 1 else "done") for seed in range(4)
    ]
    assert main(["advise", "configs/quickstart.json", *map(str, [*leaders, *plain])]) == 0
    assert "(conditional on survival: 1 of 4 at λ = 0 diverged)" in capsys.readouterr().out


def test_a_refused_claim_stays_in_the_family(tmp_path: Path) -> None:
    """Breaks if Holm's correction gets weaker where a primary comparison has too few seeds, or lost all of its pairs."""
    weak = [-0.02, -0.001, -0.012, -0.021, -0.015]  # p of 0.02
    words = ("lower", "higher")
    claim = difference_claim("a", "end", interval(weak), words, primary=True)
    few = difference_claim("b", "end", interval([0.1, 0.2]), words, primary=True)
    assert corrected([claim])[0].decided
    assert corrected([claim, few])[0].decided, "0.02 · 2 is still below 0.05"
    for family, absent in (([claim, few, few, few], 0), ([claim], 3), ([claim, few], 2)):
        told = corrected(family, absent)[0]
        assert not told.decided
        assert told.verdict.startswith("undecided after Holm's correction over 4 comparisons (p = 0.0")
    # one that was refused proves nothing, however far from zero it lies
    unfinished = difference_claim("b", "end", interval([1.0, 1.01, 1.02]), words, primary=True, refused="no claim yet")
    assert not corrected([claim, *[unfinished] * 3])[0].decided
    exploratory = difference_claim("b", "end", interval([0.1, 0.2]), words)
    assert corrected([claim, *[exploratory] * 3])[0].decided, "what is exploratory is no member"
    # three λ: of one all runs diverged, of one all but two
    paths = [write_run(tmp_path / f"a{seed}", seed=seed) for seed in range(3)]
    for decay, alive in ((0.1, 3), (0.2, 2), (0.3, 0)):
        for seed, end in enumerate((-0.020, -0.032, -0.044)):
            paths.append(
                write_run(
                    tmp_path / f"b{decay}-{seed}",
                    lambda s, e=end: base_curve(s) + 0.1 + (e - 0.1) * s / 1000,  # type: ignore[misc]
                    decay=decay,
                    seed=seed,
                    state="done" if seed < alive else "diverged",
                )
            )
    ends = [one for one in loss_curves.analyse(load(*paths), Options()).claims if one.primary]
    assert [one.interval.n for one in ends] == [3, 2]
    assert ends[0].verdict.startswith("undecided after Holm's correction over 3 comparisons")
    assert [c.verdict for c in loss_curves.analyse(load(*paths[:6]), Options()).claims if c.primary] == ["helps"]


def test_probes_of_other_windows_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if an analysis that reads probes sets runs side by side whose probes looked at other validation windows, and does not
    say so; or says it of runs whose probes are alike, or of an analysis that reads none."""

    def probed(name: str, *windows: int | None) -> Path:
        rows = [
            {"step": 100 * (i + 1), "tokens": 6400, "probe/max": 1.0, "probe/loss": 3.0}
            | ({"probe/windows": n} if n else {})
            for i, n in enumerate(windows)
        ]
        return write_run(tmp_path / name, probes=rows, decay=len(list(tmp_path.iterdir())) / 10)

    few, same, many, old, both = (
        probed("few", 32, 32),
        probed("same", 32, 32),
        probed("many", 64, 64),
        probed("old", None, None),
        probed("both", 32, 64),
    )

    def notes(analysis: str, *paths: Path) -> str:
        assert main([analysis, *map(str, paths)]) == 0
        return " ".join(line for line in capsys.readouterr().out.splitlines() if "validation windows" in line)

    for analysis in ("effective_lr", "precision"):
        assert "windows: 32 (few, same); 64 (many). What they say of the whole model" in notes(
            analysis, few, same, many
        )
        assert "windows: 32 (few); a number not recorded (old)." in notes(analysis, few, old)
        assert "windows: 32 and 64 (both)." in notes(analysis, both)
        assert not notes(analysis, few, same)
    assert not notes("generalisation", few, many)
