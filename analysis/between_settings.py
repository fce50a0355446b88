"""Whether a λ gains as much in one setting as in another: under another block, precision, or start.

That λ helps in one setting and is undecided in another does not say that the two differ. What says it is the difference of the two
differences to λ = 0, in pairs of one seed, with its own interval.
"""

from __future__ import annotations

from collections.abc import Mapping

from analysis.claims import Claim, difference_claim
from analysis.compare import ended, lost
from analysis.document_noise import contrast_error
from analysis.endpoint import Endpoint, lowest
from analysis.levels import levels, same_sum
from analysis.pairing import Group
from analysis.runs import Run
from analysis.statistics import interval

WORDS = ("gains more there", "gains less there")
Gain = tuple[Group, Group]  # (with decay, without), each at its own best η


def between_settings(families: Mapping[str, list[Group]], endpoint: Endpoint, of_interest: float) -> list[Claim]:
    """`families`: groups that differ in λ and η alone, by what the others have in common. Each is set against the first, of
    several precisions the first in float32; decay is the same where λ·Ση is, or λ."""
    gains = {rest: found for rest, members in families.items() if (found := _gains(members, endpoint))}
    if len(gains) < 2:
        return []
    # float32 is what other precisions are measured by, wherever the alphabet puts it
    first = next((rest for rest, found in gains.items() if found[0][0].precision == "fp32"), next(iter(gains)))
    claims = []
    for rest, found in gains.items():
        for own in found if rest != first else []:
            base = next((one for one in gains[first] if _alike(one[0], own[0])), None)
            if base is not None:
                claims.append(
                    _claim(f"{_name(own)}: with {rest} less that with {first}", own, base, endpoint, of_interest)
                )
    return claims


def _gains(members: list[Group], endpoint: Endpoint) -> list[Gain]:
    cells = [group for group in members if endpoint.seed_losses(group)]
    # of each amount of decay the lowest cell, as where all η are compared
    best = [found[0] for level in levels(cells) if (found := lowest(level.cells, endpoint))]
    plain = next((group for group in best if not group.decay), None)
    return [(group, plain) for group in best if group.decay] if plain else []


def _alike(one: Group, other: Group) -> bool:
    return one.decay == other.decay or same_sum(one, other)


def _name(gain: Gain) -> str:
    cell, plain = gain
    own = f"λ = {cell.decay:g}"
    return (
        f"{own} minus λ = 0"
        if cell.fields.get("optim.lr") == plain.fields.get("optim.lr")
        else f"{own} minus λ = 0, each at its η"
    )


def _claim(name: str, own: Gain, base: Gain, endpoint: Endpoint, of_interest: float) -> Claim:
    pairs, others = _pairs(own), _pairs(base)
    weights = [
        {run: 1.0, plain: -1.0, others[seeds][0]: -1.0, others[seeds][1]: 1.0}
        for seeds, (run, plain) in pairs.items()
        if seeds in others
    ]
    difference = interval(sum(weight * endpoint.of(run) for run, weight in one.items()) for one in weights)
    # the documents are the same in all four, so what they add to all alike is gone
    if endpoint.whole:
        difference = difference.with_documents(contrast_error(weights))
    gone = (*lost(*own), *lost(*base))
    return difference_claim(name, endpoint.words, difference, WORDS, lost=gone, of_interest=of_interest)


def _pairs(gain: Gain) -> dict[str, tuple[Run, Run]]:
    """Seeds → the run with decay and that without."""
    with_decay, plain = ({run.seeds: run for run in ended(group)} for group in gain)
    return {seeds: (run, plain[seeds]) for seeds, run in with_decay.items() if seeds in plain}
