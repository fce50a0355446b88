"""Tests of hypotheses against scipy and against simulations with a fixed seed; the best λ's interval; what a claim says."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.claims import Claim, corrected, difference_claim, equality_claim, table_of_claims
from analysis.document_noise import contrast_error, documents_error
from analysis.hypotheses import count_p_value, detectable, drowned, equivalence, holm, p_value, power, seeds_needed
from analysis.runs import Run
from analysis.statistics import interval
from analysis.vertex import best_decay
from record.blocks import ValidationBlocks, write_blocks
from tests.recorded import load, write_run

WORDS = ("lower", "higher")


@pytest.mark.parametrize("n", [3, 5, 8])
def test_the_interval_covers(n: int) -> None:
    """Breaks if the 95 % t interval of a few seeds holds the truth in more or less than 95 % of simulated studies."""
    draws = np.random.default_rng(n).normal(0.3, 0.01, (4000, n))
    covered = np.mean([one.low < 0.3 < one.high for one in map(interval, draws)])
    assert 0.94 < covered < 0.96  # binomial: ± 0.007 at two standard errors


def test_p_values_are_scipys() -> None:
    """Breaks if a p value is not the t test's, or does not agree with its own interval once documents' noise is in it."""
    values = np.random.default_rng(1).normal(-0.01, 0.008, 6)
    assert p_value(interval(values)) == pytest.approx(stats.ttest_1samp(values, 0).pvalue, rel=1e-6)
    wide = interval(values).with_documents(0.004)
    assert wide.half(0.95) == pytest.approx(math.hypot(interval(values).half(0.95), 0.004 * stats.norm.ppf(0.975)))
    assert abs(wide.mean) == pytest.approx(wide.half(1 - p_value(wide)), rel=1e-6)
    assert math.isnan(p_value(interval([1.0, 1.1])))
    assert p_value(interval([0.1, 0.1, 0.1])) < 1e-30
    assert p_value(interval([0.0, 0.0, 0.0])) == 1.0


def test_equivalence_is_two_one_sided_tests() -> None:
    """Breaks if "the same" is said where either one-sided t test at 5 % fails, or is made of "undecided"."""
    dice, said = np.random.default_rng(2), set()
    for _ in range(200):
        values = dice.normal(dice.uniform(-0.012, 0.012), dice.choice([0.002, 0.008]), 5)
        above = stats.ttest_1samp(values, -0.01, alternative="greater").pvalue
        below = stats.ttest_1samp(values, 0.01, alternative="less").pvalue
        word = equivalence(interval(values), 0.01)
        assert (word == "the same within ±0.01") == (max(above, below) < 0.05)
        if word == "differs":
            assert stats.ttest_1samp(values, 0).pvalue < 0.05
        said.add(word)
    assert said == {"the same within ±0.01", "differs", "undecided"}


def test_holm_and_fisher() -> None:
    """Breaks if Holm's adjusted p values are others than by hand, or a count is judged by another test than Fisher's."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, math.nan, 0.6]) == pytest.approx([1.0, math.nan, 1.0], nan_ok=True)
    # 3 of 3 against 0 of 3 cannot reach 5 %, 4 of 4 against 0 of 4 can: two of C(6,3) = 20 and C(8,4) = 70 tables
    assert count_p_value(3, 3, 0, 3) == pytest.approx(2 / 20)
    assert count_p_value(4, 4, 0, 4) == pytest.approx(2 / 70)


def test_seeds_needed() -> None:
    """Breaks if the effects that n seeds can tell are not those of the noncentral t, or a simulation with them fails more often."""
    # effect over standard deviation for a power of 80 %, two-sided 5 %
    for seeds, ratio in ((3, 3.27), (4, 2.13), (5, 1.69), (6, 1.44), (8, 1.16)):
        assert detectable(1.0, seeds) == pytest.approx(ratio, abs=0.01)
        assert seeds_needed(1.0, ratio * 1.01) == seeds
    # documents add what seeds cannot take away
    assert power(1.0, detectable(1.0, 8, 0.5), 8, 0.5) == pytest.approx(0.8, abs=1e-3)
    assert detectable(1.0, 8, 0.5) > 1.6 * detectable(1.0, 8)
    needed = seeds_needed(0.006, -0.007)
    assert needed is not None
    draws = np.random.default_rng(3).normal(-0.007, 0.006, (4000, needed))
    told = np.mean([one.excludes_zero for one in map(interval, draws)])
    assert told == pytest.approx(power(0.006, 0.007, needed), abs=0.02)
    assert told > 0.78
    assert seeds_needed(0.004, 0.003, documents=0.003) is None, "no number of seeds makes the documents more"
    assert seeds_needed(0.004, 0.0) is None


def test_documents_error(tmp_path: Path) -> None:
    """Breaks if the documents' error is not what other documents of the same kind would change of a difference, or is taken from
    runs on other windows, or shrinks with seeds that read the same documents."""
    dice, blocks, windows = np.random.default_rng(0), 64, 64

    def record(path: Path, sums: np.ndarray, in_split: int = windows) -> None:
        kept = ValidationBlocks(60, 80, windows, in_split, [80] * blocks, {"weights": [float(v) for v in sums]})
        write_blocks(path / "val_blocks.json", kept)

    def again() -> list[tuple[Run, Run]]:  # a run keeps what it has read
        return [tuple(load(run.path, twin.path)) for run, twin in compared]  # type: ignore[misc]

    # a block's difference: 0.02 by its documents, in every seed alike, and 0.001 of each seed's own
    by_block = 0.02 * dice.standard_normal(blocks)
    compared: list[tuple[Run, Run]] = []
    for seed in range(6):
        level = 3 + 0.3 * dice.standard_normal(blocks)
        runs = load(*(write_run(tmp_path / f"{name}{seed}", seed=seed, steps=60) for name in "ab"))
        own = 0.001 * dice.standard_normal(blocks)
        record(runs[0].path, 80 * (level + by_block + own))
        record(runs[1].path, 80 * level)
        compared.append((runs[0], runs[1]))
    coarse = by_block.reshape(32, 2).mean(axis=1).std(ddof=1) / np.sqrt(32)
    expected = max(by_block.std(ddof=1) / np.sqrt(blocks), coarse)
    assert documents_error(compared) == pytest.approx(expected, rel=0.05)
    assert documents_error(compared[:1]) == pytest.approx(expected, rel=0.05)
    halves = [{run: 0.5, twin: -0.5} for run, twin in compared]
    assert contrast_error(halves) == pytest.approx(documents_error(compared) / 2)
    # a document that spans two blocks is half as many documents
    for seed, (run, twin) in enumerate(compared):
        level = 3 + 0.3 * np.random.default_rng(seed).standard_normal(blocks)
        record(run.path, 80 * (level + np.repeat(by_block[::2], 2)))
        record(twin.path, 80 * level)
    assert documents_error(again()) == pytest.approx(by_block[::2].std(ddof=1) / np.sqrt(blocks / 2))
    wider = interval([0.01, 0.011, 0.012]).with_documents(0.003)
    assert wider.high - wider.mean == pytest.approx(np.hypot(4.302653 * 0.001 / np.sqrt(3), 1.959964 * 0.003))
    record(compared[0][1].path, np.full(blocks, 240.0), in_split=windows + 1)
    assert np.isnan(documents_error(again())), "other windows"
    (compared[0][1].path / "val_blocks.json").unlink()
    assert np.isnan(documents_error(again())), "not recorded"


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [4, 5])
def test_the_best_decay_covers(seeds: int) -> None:
    """Breaks if the interval of the best λ holds the true one in less than 93 % of simulated sweeps: a bootstrap over seeds held
    it in 75 to 80 %."""
    decays = np.array([0.015, 0.045, 0.15, 0.45])
    true, dice, held, intervals = 0.08, np.random.default_rng(seeds), 0, 0
    for _ in range(1500):
        # each seed: a level of its own, a best λ of its own, and noise at every λ
        own = np.log(true) + 0.2 * dice.standard_normal((seeds, 1))
        losses = 3 + 0.05 * dice.standard_normal((seeds, 1)) + 0.02 * (np.log(decays) - own) ** 2
        losses += 0.002 * dice.standard_normal(losses.shape)
        best = best_decay(pd.DataFrame(losses, columns=decays))
        assert best is not None
        if math.isfinite(best.low):
            intervals += 1
            held += best.low < true < best.high
    assert intervals > 1450
    assert 0.93 < held / intervals < 0.97


def test_where_no_best_decay_is_told() -> None:
    """Breaks if the minimum is not the parabola's, a seed's level tilts it, or an interval is given of few seeds, of minima at an
    end, or over decades of a penalty in the loss."""
    decays = [0.0, 0.03, 0.1, 0.3]

    def losses(best: float, seeds: int, columns: list[float] = decays) -> pd.DataFrame:
        rows = [
            [3 + 0.2 * k + 0.05 * np.log(max(d, 1e-9) / best * 1.05**k) ** 2 for d in columns] for k in range(seeds)
        ]
        return pd.DataFrame(rows, columns=columns)

    few, four = best_decay(losses(0.1, 3)), best_decay(losses(0.1, 4))
    assert few is not None
    assert four is not None
    assert few.decay == pytest.approx(0.1, rel=0.06)
    assert (few.seeds, few.why) == (3, "fewer than 4 seeds")
    assert math.isnan(few.low)
    vertices = stats.t.interval(0.95, 3, *(lambda v: (v.mean(), v.std(ddof=1) / 2))(np.log(0.1 / 1.05 ** np.arange(4))))
    assert (four.low, four.high) == pytest.approx(tuple(np.exp(vertices)), rel=1e-6)
    edge = best_decay(losses(5.0, 5))
    assert edge is not None
    assert edge.decay == pytest.approx(0.3)
    assert edge.why.startswith("5 of 5 seeds")
    wide = best_decay(losses(1e-4, 5, [1e-5, 1e-4, 1e-3]), "l2_loss")
    assert wide is not None
    assert "factor of 100" in wide.why
    lacking = losses(0.1, 3)
    lacking.loc[0, 0.3] = np.nan
    without = best_decay(lacking)
    assert without is not None
    assert without.seeds == 2
    assert best_decay(pd.DataFrame({0.0: [3.0], 0.1: [2.9], 0.2: [2.8]})) is None


def test_what_a_claim_says() -> None:
    """Breaks if two seeds claim, an unfinished run claims, "undecided" passes for "the same", or Holm's correction is left out."""
    sure, weak, zero = [-0.02, -0.021, -0.019], [-0.02, -0.001, -0.012, -0.021, -0.015], [0.0001, -0.0001, 0.0, 0.0]
    first = difference_claim("a minus b", "loss at the end", interval(sure), WORDS, primary=True)
    assert (first.verdict, first.decided, first.seeds_needed) == ("lower", True, None)
    assert first.sentence.startswith("a minus b, loss at the end: -0.0200 [")
    assert first.sentence.endswith("(3 seeds): lower (primary).")
    two = difference_claim("a", "end", interval(sure[:2]), WORDS)
    assert (two.verdict, two.decided) == ("2 seeds: too few for a claim (3 at least)", False)
    assert "[" not in two.sentence
    early = difference_claim("a", "end", interval(sure), WORDS, refused="no claim yet")
    assert (early.verdict, early.decided, early.seeds_needed) == ("no claim yet", False, None)
    wide = difference_claim("a", "end", interval([-0.02, 0.01, -0.03, 0.005]), WORDS)
    assert wide.verdict.startswith("undecided")
    assert wide.seeds_needed is not None
    assert wide.seeds_needed > 4
    assert f"; {wide.seeds_needed} seeds would tell 0.005 nats from zero (" in wide.sentence
    none = difference_claim("a", "end", interval(zero), WORDS)
    assert (none.verdict, none.decided) == ("no difference of interest: within ±0.005", True)
    assert equality_claim("a", "gap", interval(zero), 0.01).verdict == "the same within ±0.01"
    assert not equality_claim("a", "gap", interval([-0.02, 0.02, 0.0]), 0.01).decided
    # Alone a p of 0.02 holds; beside another primary claim that fails it needs to be below 0.025, beside three below 0.0125.
    claim = difference_claim("a", "end", interval(weak), WORDS, primary=True)
    assert 0.0125 < claim.p < 0.025
    others: list[Claim] = [difference_claim("b", "end", interval([-0.02, 0.01, 0.01]), WORDS, primary=True)] * 3
    assert corrected([claim, others[0]])[0].decided
    assert not (spoiled := corrected([claim, *others]))[0].decided
    assert spoiled[0].verdict.startswith("undecided after Holm's correction over 4 comparisons")
    assert list(table_of_claims(spoiled)["kind"]) == ["primary"] * 4
    # too small to matter it is with the correction and without
    small = difference_claim("c", "end", interval([-0.002, -0.0001, -0.0012, -0.0021, -0.0015]), WORDS, primary=True)
    (held, *_) = corrected([small, *others])
    assert (small.verdict, held.verdict) == (WORDS[0], "no difference of interest: within ±0.005")
    assert held.decided


def test_seeds_for_the_declared_difference() -> None:
    """Breaks if seeds are counted for the difference that was seen, which luck makes large, or for another than the declared one,
    or if more seeds are asked for where the documents' noise hides it whatever their number."""
    spread = np.array([-0.01, 0.0, 0.01, 0.005, -0.005])
    seen = [difference_claim("a", "end", interval(spread + mean), WORDS) for mean in (0.001, 0.004, 0.007)]
    needed = seeds_needed(float(spread.std(ddof=1)), 0.005)
    assert needed is not None
    assert [claim.seeds_needed for claim in seen] == [needed] * 3
    assert all(f"; {needed} seeds would tell 0.005 nats from zero (" in claim.sentence for claim in seen)
    coarse = difference_claim("a", "end", interval(spread + 0.007), WORDS, of_interest=0.01)
    assert coarse.seeds_needed == seeds_needed(float(spread.std(ddof=1)), 0.01) != needed
    # the documents come in quadrature, and stay
    some = difference_claim("a", "end", interval(spread).with_documents(0.001), WORDS)
    assert some.seeds_needed == seeds_needed(float(spread.std(ddof=1)), 0.005, 0.001)
    assert (some.seeds_needed or 0) > needed
    never = difference_claim("a", "end", interval(spread).with_documents(0.003), WORDS)
    assert never.seeds_needed is None
    assert "; no number of seeds would tell 0.005 nats from zero: the documents alone add ±0.0059 (" in never.sentence
    assert (drowned(0.005, 0.0018), drowned(0.005, 0.00178), drowned(0.005, 0.0)) == (True, False, False)
    wild = difference_claim("a", "end", interval(spread * 40), WORDS)
    assert (wild.seeds_needed, wild.advice) == (None, "more than 1,000 seeds would tell 0.005 nats from zero")
    # enough seeds, and still undecided: the difference is then hardly of interest
    enough = difference_claim("a", "end", interval([-0.001, 0.007, -0.001, 0.007, -0.001, 0.007, 0.003, 0.003]), WORDS)
    assert (enough.decided, enough.seeds_needed) == (False, None)
    assert enough.advice.endswith(" seeds would tell 0.005 nats from zero, and there are as many")
    sure = difference_claim("a", "end", interval([-0.02, -0.021, -0.019]), WORDS)
    assert (sure.seeds_needed, sure.advice) == (None, "")
