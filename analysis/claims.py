"""A claim: one comparison at one endpoint, with its interval, its verdict and what would decide it. The report sorts them.

A claim is primary if its endpoint was named beforehand: validation at the end. Holm's correction is over an analysis' primary
claims. All others are exploratory: shown with their intervals, and called so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd

from analysis.hypotheses import INSIDE, LEVEL, MOST_SEEDS, detectable, drowned, equivalence, holm, p_value, seeds_needed
from analysis.statistics import LEAST_SEEDS, NORMAL, Interval, seed_count

OF_INTEREST = 0.005  # nats: a smaller difference of losses, a quarter of the published gain, is of no interest
SAME = 0.01  # nats: the margin within which two losses, or gaps, are the same
UNDECIDED = "undecided: the interval holds zero"


@dataclass(frozen=True)
class Lost:
    """Of one side of a comparison: how many of its `runs` diverged, and are left out with their twins."""

    side: str
    diverged: int
    runs: int


def survival(sides: Sequence[Lost]) -> str:
    """The condition under which a comparison holds that leaves diverged runs out; empty where none diverged."""
    gone = [f"{side.diverged} of {side.runs} at {side.side}" for side in sides if side.diverged]
    return f"conditional on survival: {' and '.join(gone)} diverged" if gone else ""


@dataclass(frozen=True)
class Worth:
    """A difference of final losses in updates of the baseline `base` (analysis/worth.py), above zero where the other runs are ahead
    of it; NaN where `why` says why they are not told. `slope`: of the baseline's loss at its end, nats per update. `reach`: updates
    that it was read off."""

    base: str
    updates: float
    low: float
    high: float
    slope: float
    reach: float
    why: str = ""

    @property
    def short(self) -> str:
        """Updates with their interval; an end beyond the reach is …"""
        if self.why:
            return "–"
        ends = [f"{end:+,.0f}" if abs(end) <= self.reach else "…" for end in (self.low, self.high)]
        return f"{self.updates:+,.0f} [{', '.join(ends)}]"

    @property
    def text(self) -> str:
        if self.why:
            return f"not told in updates: {self.why}"
        return (
            f"worth {self.short} updates of {self.base}, which at its end falls by {-100 * self.slope:.4f} nats in 100"
        )


@dataclass(frozen=True)
class Claim:
    """`name`: what is compared. `endpoint`: of which measurement, where. `primary`: its endpoint was named beforehand.

    `interval`: the estimate with its bounds and `n` seeds. `verdict`: in a few words. `decided`: the verdict says something, and
    not that more is needed. `seeds_needed`: seeds in all, more than there are, that would tell the smallest difference of interest
    from zero four times of five; None where it is decided, or no number would. `advice`: the same in words, and what stands where
    there is no such number. `condition`: what it holds under. `lost`: the diverged runs of either side, which are left out, and so
    a condition too. `margin`: of a claim that two are the same; None for one that they differ.
    `after`: more words, as where curves cross. `worth`: of a difference of final losses, how many updates it is.
    """

    name: str
    endpoint: str
    primary: bool
    interval: Interval
    verdict: str
    decided: bool
    seeds_needed: int | None = None
    condition: str = ""
    margin: float | None = None
    after: str = ""
    lost: tuple[Lost, ...] = ()
    worth: Worth | None = None
    of_interest: float = OF_INTEREST
    advice: str = ""

    @property
    def conditions(self) -> str:
        """All that it holds under."""
        return "; ".join(text for text in (self.condition, survival(self.lost)) if text)

    @property
    def kind(self) -> str:
        return "primary" if self.primary else "exploratory"

    @property
    def estimate(self) -> float:
        return self.interval.mean

    @property
    def p(self) -> float:
        """Two-sided, of no difference; NaN for fewer than three seeds."""
        return p_value(self.interval)

    @property
    def number(self) -> str:
        """The estimate and its interval; of a claim of sameness also the interval that must lie inside the margin."""
        text = self.interval.text()
        if self.margin is None or not math.isfinite(self.interval.low):
            return text
        return f"{text}, {INSIDE:.0%} interval {self.inside}".replace("%", " %", 1)

    @property
    def inside(self) -> str:
        """The 90 % interval, that of two one-sided tests."""
        half = self.interval.half(INSIDE)
        return f"[{self.estimate - half:+.4f}, {self.estimate + half:+.4f}]" if math.isfinite(half) else "–"

    @property
    def sentence(self) -> str:
        """All of it in one sentence, as a finding."""
        parts = [f"{self.name}, {self.endpoint}: {self.number}: {self.verdict}"]
        parts += [text for text in (self.worth.text if self.worth else "", self.advice, self.conditions) if text]
        return "; ".join(parts) + f" ({self.kind})." + (f" {self.after}" if self.after else "")

    def row(self) -> dict[str, object]:
        """As a row of a table of verdicts. `σ of pairs`: the standard deviation over seeds; `told by so many`: what difference that
        many seeds tell from zero four times of five."""
        low, high = self.interval.low, self.interval.high
        return {
            "comparison": self.name,
            "endpoint": self.endpoint,
            "kind": self.kind,
            "estimate": round(self.estimate, 4),
            "95 % interval": f"[{low:+.4f}, {high:+.4f}]" if math.isfinite(low) else "–",
            "n": self.interval.n,
            "σ of pairs": _rounded(self.interval.deviation),
            "told by so many": _rounded(
                detectable(self.interval.deviation, self.interval.n, _documents(self.interval))
            ),
            "documents' standard error": _rounded(self.interval.documents),
            "verdict": self.verdict,
            "seeds needed": self.seeds_needed,
            "condition": self.conditions,
        }


def _documents(difference: Interval) -> float:
    """Their standard error; 0 where it is not known."""
    return difference.documents if math.isfinite(difference.documents) else 0.0


def _rounded(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None


def difference_claim(
    name: str,
    endpoint: str,
    difference: Interval,
    words: tuple[str, str],
    *,
    primary: bool = False,
    refused: str = "",
    condition: str = "",
    lost: Sequence[Lost] = (),
    of_interest: float = OF_INTEREST,
) -> Claim:
    """The declared rule for a difference: `words` are what below and above zero are called.

    `refused`: why no verdict may be given whatever the interval (an unfinished run, a damaged status). `of_interest`: the smallest
    difference of interest in nats, declared beforehand.
    """
    decided, verdict = False, refused
    if not verdict and difference.n < LEAST_SEEDS:
        verdict = too_few(difference.n)
    elif not verdict:
        decided = difference.excludes_zero
        verdict = words[0 if difference.mean < 0 else 1] if decided else UNDECIDED
        # That it is too small to matter is a claim too, and the only one that an interval over zero can make.
        if not decided and equivalence(difference, of_interest).startswith("the same"):
            decided, verdict = True, _of_no_interest(of_interest)
    needed, advice = (None, "") if decided or refused else _seeds(difference, of_interest)
    claim = Claim(name, endpoint, primary, difference, verdict, decided, needed, condition, lost=tuple(lost))
    return replace(claim, of_interest=of_interest, advice=advice)


def equality_claim(
    name: str,
    endpoint: str,
    difference: Interval,
    margin: float,
    *,
    refused: str = "",
    condition: str = "",
    lost: Sequence[Lost] = (),
) -> Claim:
    """The declared rule for "the same": the 90 % interval inside ± margin."""
    verdict = refused or (too_few(difference.n) if difference.n < LEAST_SEEDS else equivalence(difference, margin))
    decided = not refused and difference.n >= LEAST_SEEDS and verdict != "undecided"
    return Claim(name, endpoint, False, difference, verdict, decided, None, condition, margin, lost=tuple(lost))


def _seeds(difference: Interval, of_interest: float) -> tuple[int | None, str]:
    """How many seeds in all would tell a difference of interest from zero, and what to say of it.

    Of the declared difference and not of the one seen: that one is by luck too large where it is worth a second look, and asks for
    too few seeds.
    """
    if not math.isfinite(difference.deviation):
        return None, ""
    documents = _documents(difference)
    would = f"would tell {of_interest:g} nats from zero"
    # which documents were drawn is the same noise for every seed
    if drowned(of_interest, documents):
        return None, f"no number of seeds {would}: the documents alone add ±{documents * NORMAL:.4f}"
    needed = seeds_needed(difference.deviation, of_interest, documents)
    if needed is None:
        return None, f"more than {MOST_SEEDS:,} seeds {would}"
    # as many as there are were to tell it: so the difference is hardly larger
    if needed <= difference.n:
        return None, f"{seed_count(needed)} {would}, and there are as many"
    return needed, f"{seed_count(needed)} {would}"


def _of_no_interest(margin: float) -> str:
    return f"no difference of interest: within ±{margin:g}"


def too_few(seeds: int) -> str:
    """What is said of fewer seeds than a claim needs."""
    if not seeds:
        return "nothing to compare"
    return "one seed: no claim" if seeds == 1 else f"{seed_count(seeds)}: too few for a claim ({LEAST_SEEDS} at least)"


def corrected(claims: Sequence[Claim], absent: int = 0) -> list[Claim]:
    """Holm over the primary claims: one that does not hold after it is undecided, or too small to matter. The others stay.

    A primary claim that was refused, or has too few seeds for a p value, is a member of the family as well, and so are `absent`
    ones that have no pair of runs at all: else a lost run would make the claim about another λ easier.
    """
    # Sameness within a margin is no test of zero, and is not corrected.
    tested = [i for i, claim in enumerate(claims) if claim.primary and claim.margin is None]
    # what was to be tested and cannot be counts as a test that shows nothing; so does what was refused a verdict
    told = [claims[i].p if claims[i].decided else math.nan for i in tested]
    p_values = [p if math.isfinite(p) else 1.0 for p in (*told, *[1.0] * absent)]
    adjusted = dict(zip(tested, holm(p_values), strict=False))
    result = []
    for i, claim in enumerate(claims):
        p = adjusted.get(i, math.nan)
        if claim.decided and claim.interval.excludes_zero and claim.margin is None and p >= LEVEL:
            if equivalence(claim.interval, claim.of_interest).startswith("the same"):
                claim = replace(claim, verdict=_of_no_interest(claim.of_interest), after="")
            else:
                verdict = f"undecided after Holm's correction over {len(p_values)} comparisons (p = {p:.2g})"
                needed, advice = _seeds(claim.interval, claim.of_interest)
                claim = replace(claim, verdict=verdict, decided=False, after="", seeds_needed=needed, advice=advice)
        result.append(claim)
    return result


def table_of_claims(claims: Sequence[Claim]) -> pd.DataFrame:
    """A row each; columns without any value are left out."""
    table = pd.DataFrame([claim.row() for claim in claims])
    return table.loc[:, [bool((table[c].notna() & (table[c] != "")).any()) for c in table]] if len(table) else table
