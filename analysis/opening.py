"""What the report opens with: one line of sum, then the claims, primary ones first, the largest first, the undecided apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from analysis.claims import Claim
from analysis.command import Result
from analysis.statistics import LEAST_SEEDS

AT_ONCE = 6  # decided claims that are shown unfolded
NAMED = 2  # comparisons of which the line of sum says how many seeds they need


@dataclass(frozen=True)
class Opening:
    """`decided` and `undecided` claims in their order; `cautions` say how to read them; `others`: findings that compare nothing."""

    sum: str
    decided: list[Claim]
    undecided: list[Claim]
    cautions: list[str]
    others: list[str]


def opening(results: list[Result]) -> Opening:
    claims = list(dict.fromkeys(claim for result in results for claim in result.claims))
    cautions = list(dict.fromkeys(text for result in results for text in result.cautions))
    # a finding that is a claim's sentence is told as the claim, in its place
    told = {claim.sentence for claim in claims} | set(cautions)
    findings = dict.fromkeys(finding for result in results for finding in result.findings)
    decided = sorted((claim for claim in claims if claim.decided), key=_order)
    undecided = sorted((claim for claim in claims if not claim.decided), key=_order)
    return Opening(
        _sum(decided, undecided), decided, undecided, cautions, [text for text in findings if text not in told]
    )


def _order(claim: Claim) -> tuple[bool, float]:
    # an estimate that is missing is the last
    return not claim.primary, -abs(claim.estimate) if math.isfinite(claim.estimate) else 0.0


def _sum(decided: Sequence[Claim], undecided: Sequence[Claim]) -> str:
    """One line: how many comparisons are decided, and how many seeds the others need."""
    claims = [*decided, *undecided]
    if not claims:
        return "Nothing is compared: that needs runs that differ in more than their seeds, with the same seeds."
    parts = [f"{len(decided)} of {len(claims)} comparisons decided"]
    if primary := [claim for claim in claims if claim.primary]:
        parts[0] += f" ({sum(claim.decided for claim in primary)} of {len(primary)} primary ones)"
    if all(claim.interval.n < LEAST_SEEDS for claim in claims):
        parts.append(f"a claim needs {LEAST_SEEDS} seeds, and no comparison has as many")
    # the cheapest of the primary ones first: what a reader would run next
    cheap = [claim for claim in undecided if claim.seeds_needed]
    cheap.sort(key=lambda claim: (not claim.primary, claim.seeds_needed or 0))
    for claim in cheap[:NAMED]:
        parts.append(
            f"{claim.name}, {claim.endpoint}: {claim.seeds_needed} seeds would tell {claim.of_interest:g} nats from zero"
        )
    if len(cheap) > NAMED:
        parts.append(f"and {len(cheap) - NAMED} more")
    return "; ".join(parts) + "."
