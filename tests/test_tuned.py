"""What a sweep says of its lowest cell, of each λ at its own learning rate, and of comparisons that are missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from analysis import best_decay, loss_curves
from analysis.command import Options, Result
from analysis.compare import WHOLE
from analysis.runs import Run
from record.run import RunFolder
from tests.recorded import load, write_run

pytestmark = pytest.mark.slow  # by its length alone: `make check` takes a minute

PLAIN = Options()
SUM = 20.0  # Ση of these runs over η


def cells(
    root: Path, ends: dict[tuple[float, float], list[float]], **more: dict[tuple[float, float], int]
) -> list[Run]:
    """Runs of (η, λ) → losses at the end, a seed each. `more`: warmup_steps of a cell."""
    paths = []
    for (rate, decay), losses in ends.items():
        warmup = more.get("warmup", {}).get((rate, decay), 0)
        for seed, loss in enumerate(losses):
            columns = {
                WHOLE: lambda s, k=loss: k + 0 * s,
                "optim/decay_sum": lambda s, k=rate * decay * SUM: k + 0 * s,
            }
            paths.append(
                write_run(
                    root / f"{rate}-{decay}-{warmup}-{seed}",
                    lambda s: 3 + 0 * s,
                    decay=decay,
                    seed=seed,
                    steps=60,
                    noise=0,
                    columns=columns,
                    optim={"lr": rate},
                    schedule={"warmup_steps": warmup},
                    eval={"final_tokens": "all"},
                )
            )
    return load(*paths)


def levelled(*levels: float) -> list[float]:
    """Three seeds around each level: their own levels cancel in pairs, a wiggle of 0.002 does not."""
    return [levels[0] + own + wiggle for own, wiggle in ((0.0, 0.002), (0.1, -0.002), (0.2, 0.0))]


GRID = {
    (0.1, 0.0): [3.2, 3.3, 3.4],
    (0.1, 0.1): levelled(3.0),
    (0.1, 0.2): [2.999, 3.104, 3.2],
    (0.2, 0.0): levelled(3.1),
    (0.2, 0.1): levelled(3.3),
    (0.2, 0.2): levelled(3.5),
    (0.4, 0.0): levelled(3.3),
    (0.4, 0.1): [3.5, 3.6],
    (0.4, 0.2): levelled(3.9),
}


def text_of(result: Result) -> str:
    return " ".join(result.findings)


def test_one_change_from_the_lowest(tmp_path: Path) -> None:
    """Breaks if a cell that differs in two fields is a row, one that differs in one is none, rows are not in the order of their
    differences, two seeds get an interval, or the lowest is named without what it cannot be told from."""
    result = best_decay.analyse(cells(tmp_path, GRID), PLAIN)
    table = result.tables["One change from the lowest"]
    assert list(table["change"]) == ["none: the lowest", "λ", "λ", "η", "η"]
    assert list(table["to"]) == ["λ = 0.1, η = 0.1", "0.2", "0", "0.2", "0.4"]
    assert list(table["n"]) == [3, 3, 3, 3, 2]
    assert list(table["difference"])[1:4] == pytest.approx([0.001, 0.2, 0.3], abs=1e-4)
    assert list(table["told from the lowest"])[1:] == ["no", "yes: higher", "yes: higher", "no: 2 seeds in common"]
    assert list(table["95 % interval"])[4] == "–"
    # by hand: differences of -0.003, 0.006, 0 have a deviation of 0.00458, and t of two degrees of freedom is 4.303
    assert table["95 % interval"][1] == "[-0.0104, +0.0124]"
    assert (
        "Of 9 cells the lowest mean validation loss at the end over the whole split is 3.1000 at λ = 0.1, η = 0.1"
        in text_of(result)
    )
    assert "it cannot be told from λ = 0.2, η = 0.1 (+0.0010 [-0.0104, +0.0124])" in text_of(result)
    assert "1 with fewer seeds are no candidates" in text_of(result)


def test_a_change_of_warm_up(tmp_path: Path) -> None:
    """Breaks if one change is only sought in λ and η."""
    ends = {(0.1, 0.0): levelled(3.0), (0.2, 0.0): levelled(3.2), (0.1, 0.1): levelled(3.3)}
    runs = cells(tmp_path, ends)
    runs += cells(tmp_path, {(0.1, 0.0): levelled(3.1)}, warmup={(0.1, 0.0): 5})
    runs += cells(tmp_path, {(0.2, 0.0): levelled(3.4)}, warmup={(0.2, 0.0): 5})
    table = best_decay.analyse(runs, PLAIN).tables["One change from the lowest"]
    assert list(table["change"])[1:] == ["warmup_steps", "η", "λ"]
    assert list(table["from"])[1:] == ["0", "0.1", "0"]


def test_each_decay_at_its_own_rate(tmp_path: Path) -> None:
    """Breaks if λ is not judged at the η that is best for it, λ = 0 not at its own, the common η is another than that of λ = 0, or
    an η at the end of the grid passes for a bracketed one."""
    result = best_decay.analyse(cells(tmp_path, GRID), PLAIN)
    table = result.tables["Each decay at its own best η"].set_index("decay")
    assert list(table["best η"]) == [0.2, 0.1, 0.1]
    assert list(table["bracketed"]) == ["yes", "η = 0.1 is the lowest tried", "η = 0.1 is the lowest tried"]
    assert list(table["common η"]) == [0.2] * 3
    assert table["minus λ = 0 at its own η"]["λ = 0.1"].startswith("-0.1000 [-0.1000, -0.1000] (3 seeds)")
    assert table["minus λ = 0 at the common η"]["λ = 0.1"].startswith("+0.2000 [+0.2000, +0.2000] (3 seeds)")
    (own,) = [text for text in result.findings if text.startswith("Each decay at its own best η")]
    assert "λ = 0 at its own (η = 0.2)" in own
    assert "λ = 0.1 at η = 0.1 -0.1000 [-0.1000, -0.1000] (3 seeds): helps" in own
    assert "Not bracketed, so the best η may lie beyond those tried: λ = 0.1 (η = 0.1 is the lowest tried)" in own
    (common,) = [text for text in result.findings if text.startswith("All at η = 0.2, the best of λ = 0")]
    assert "λ = 0.1 +0.2000 [+0.2000, +0.2000] (3 seeds): harms" in common
    assert [claim.name for claim in result.claims] == [
        f"λ = {decay}, η = 0.1 minus λ = 0, η = 0.2, each at its own best η" for decay in (0.1, 0.2)
    ]
    assert not any(claim.primary for claim in result.claims)
    coarse = best_decay.analyse(cells(tmp_path / "again", GRID), Options(of_interest=0.5))
    assert {claim.of_interest for claim in coarse.claims} == {0.5}


def test_levels_of_equal_sums(tmp_path: Path) -> None:
    """Breaks if a sweep that keeps λ·Ση over η, and no λ, is compared at other levels, or η is called two changes in it."""
    ends = {
        (0.1, 0.0): levelled(3.2),
        (0.14, 0.0): levelled(3.1),
        (0.1, 0.151): levelled(3.05),
        (0.14, 0.108): levelled(3.0),  # λη of 0.0151 and 0.01512
        (0.1, 0.454): levelled(3.3),
    }
    result = best_decay.analyse(cells(tmp_path, ends), PLAIN)
    rates = result.tables["Each decay at its own best η"].set_index("decay")
    assert list(rates.index) == ["λ = 0", "λ·Ση = 0.302", "λ·Ση = 0.908"]
    assert list(rates["best η"]) == [0.14, 0.14, 0.1]
    assert rates["bracketed"]["λ·Ση = 0.908"] == "only η = 0.1 was run"
    assert "λ·Ση = 0.908 was not run there" in text_of(result)
    table = result.tables["One change from the lowest"]
    assert list(table["change"])[1:] == ["η, λ·Ση kept (λ 0.108 → 0.151)", "λ"]
    # where a λ itself stands at two η, λ is compared
    again = best_decay.analyse(cells(tmp_path / "again", ends | {(0.14, 0.151): levelled(3.4)}), PLAIN)
    assert "λ = 0.151" in list(again.tables["Each decay at its own best η"]["decay"])


def test_diverged_runs_are_a_condition(tmp_path: Path) -> None:
    """Breaks if a cell that lost a seed is compared as if it had not, or is taken for the lowest by the seeds that are left."""
    cells(tmp_path, GRID)
    RunFolder(tmp_path / "0.1-0.1-0-2").write_status("diverged", 60, 60)
    result = best_decay.analyse(load(*sorted(tmp_path.iterdir())), PLAIN)
    table = result.tables["One change from the lowest"].set_index("to")
    assert table.index[0] == "λ = 0.2, η = 0.1"
    assert table["condition"]["0.1"] == "conditional on survival: 1 of 3 at λ = 0.1, η = 0.1 diverged"
    assert table["n"]["0.1"] == 2
    (own,) = [text for text in result.findings if text.startswith("Each decay at its own best η")]
    assert "λ = 0.1 at η = 0.2 +0.2000 [+0.2000, +0.2000] (3 seeds): harms;" in own


def test_a_missing_baseline_is_told(tmp_path: Path) -> None:
    """Breaks if a λ whose own η has no λ = 0 is left without a word, or one that has it is told of."""
    ends = {(0.1, 0.0): levelled(3.2), (0.1, 0.1): levelled(3.1), (0.2, 0.3): levelled(3.0)}
    ends |= {(0.3, 0.1): levelled(3.2), (0.3, 0.2): levelled(3.1)}
    runs = cells(tmp_path, ends)
    for analysis in (best_decay, loss_curves):
        said = [text for text in analysis.analyse(runs, PLAIN).findings if "is missing" in text]
        none = "is missing: no run of λ = 0 with η"
        assert said == [
            f"λ = 0.1, 0.2 minus λ = 0 with η = 0.3 {none} = 0.3 is among these; the others are compared with λ = 0.1.",
            f"λ = 0.3 minus λ = 0 with η = 0.2 {none} = 0.2 is among these; it is compared with nothing.",
        ], analysis.__name__
