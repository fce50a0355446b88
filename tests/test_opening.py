"""What the report opens with: the sum, and claims in the order of a reader's questions."""

from __future__ import annotations

from pathlib import Path

import pytest

from analysis import bias_variance, loss_curves
from analysis.claims import Claim, difference_claim
from analysis.command import Options, Result
from analysis.opening import opening
from analysis.statistics import interval
from tests.recorded import crossing_runs, load, write_run


def claim(name: str, values: list[float], *, primary: bool = False) -> Claim:
    return difference_claim(name, "loss at the end", interval(values), ("helps", "harms"), primary=primary)


SMALL = claim("small", [-0.020, -0.021, -0.022], primary=True)
LARGE = claim("large", [0.50, 0.51, 0.52])
LARGER = claim("larger", [-0.80, -0.81, -0.82])
OPEN = claim("open", [-0.03, 0.01, 0.05], primary=True)


def test_primary_claims_come_first_and_then_size() -> None:
    """Breaks if an aside stands above the question that was asked, a small effect above a large one, or one is told twice."""
    findings = ["About nothing.", LARGE.sentence, "Seeds differ.", OPEN.sentence]
    told = opening(
        [
            Result("a", "A", findings, claims=[OPEN, LARGE, SMALL], cautions=["Seeds differ."]),
            Result("b", "B", ["About nothing.", "Seeds differ."], claims=[LARGER], cautions=["Seeds differ."]),
        ]
    )
    assert [one.name for one in told.decided] == ["small", "larger", "large"]
    assert [one.name for one in told.undecided] == ["open"]
    assert told.cautions == ["Seeds differ."]
    assert told.others == ["About nothing."]


def test_the_sum_says_what_would_decide() -> None:
    """Breaks if the sum counts otherwise than the lists below it, or advises no more seeds than there are."""
    told = opening([Result("a", "A", claims=[OPEN, LARGE, SMALL])])
    assert told.sum.startswith("2 of 3 comparisons decided (1 of 2 primary ones); open, loss at the end: ")
    needed = int(told.sum.removesuffix(" seeds would tell 0.005 nats from zero.").rpartition(" ")[2])
    assert needed == OPEN.seeds_needed
    assert needed > OPEN.interval.n
    few = opening([Result("a", "A", claims=[claim("two", [0.1, 0.2])])])
    assert few.sum.startswith("0 of 1 comparisons decided; a claim needs 3 seeds")
    assert opening([]).sum.startswith("Nothing is compared")


def test_analyses_tell_their_comparisons(tmp_path: Path) -> None:
    """Breaks if a sentence of the loss curves is no claim, so that the page cannot sort it, or the end is not primary."""
    result = loss_curves.analyse(load(*crossing_runs(tmp_path, 5)), Options())
    assert [one.sentence for one in result.claims] == result.findings
    primary = [one for one in result.claims if one.primary]
    assert [one.endpoint for one in primary] == ["validation loss at step 1,000"]
    assert primary[0].decided
    assert "Below zero from step 7" in primary[0].after


def test_holm_takes_the_crossing_with_the_claim(tmp_path: Path) -> None:
    """Breaks if several λ are each judged as if they were the only one, or a crossing is told of a difference that is refused."""
    paths = [write_run(tmp_path / f"a{seed}", seed=seed) for seed in range(3)]
    # p of about 0.03 each: it holds alone, and not as one of three
    for decay in (0.1, 0.2, 0.3):
        for seed, end in enumerate((-0.020, -0.032, -0.044)):
            paths.append(
                write_run(
                    tmp_path / f"b{decay}-{seed}",
                    lambda s, e=end: 3 + 4 * 2.718281828 ** (-s / 150) + 0.1 + (e - 0.1) * s / 1000,  # type: ignore[misc]
                    decay=decay,
                    seed=seed,
                )
            )
    three = loss_curves.analyse(load(*paths), Options())
    ends = [one for one in three.claims if one.primary]
    assert len(ends) == 3
    assert all("Holm" in one.verdict and not one.decided and not one.after for one in ends)
    assert "validation crossing" not in three.tables["Losses"]
    alone = loss_curves.analyse(load(*paths[:6]), Options())
    assert [one.verdict for one in alone.claims if one.primary] == ["helps"]
    assert "validation crossing" in alone.tables["Losses"]


@pytest.mark.parametrize("variance", [0.05, 0.0])
def test_no_share_of_nothing(tmp_path: Path, variance: float) -> None:
    """Breaks if the average's share of the variance part is told where that part cannot be told from zero."""
    paths = []
    for seed, more in enumerate((-0.01, 0.0, 0.01)):
        level = 3 + 0.001 * seed
        ema = {"val/loss_ema_0.99": lambda s, k=level: 0 * s + k + 0.01}
        trunk = write_run(tmp_path / f"t{seed}", lambda s, k=level + variance + more: 0 * s + k, seed=seed, columns=ema)  # type: ignore[misc]
        branch = {"origin": f"{trunk}@1000"}
        paths += [
            trunk,
            write_run(
                tmp_path / f"b{seed}",
                lambda s, k=level: 0 * s + k,  # type: ignore[misc]
                seed=seed,
                steps=100,
                branch=branch,
                optim={"lr": 1e-4},
            ),
        ]
    text = " ".join(bias_variance.analyse(load(*paths), Options()).findings)
    assert ("average of the weights over 100 updates removes +0." in text) == bool(variance)
    assert ("not told from zero" in text) != bool(variance)
