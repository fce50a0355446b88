"""Whether a λ does as well in one setting as in another: under another block, precision, start, length, or on other data.

That λ helps in one setting and is undecided in another does not say that the two differ. What says it is the difference of the two
differences to λ = 0, in pairs of one seed, with its own interval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from analysis.arms import without_pilots
from analysis.claims import Claim, difference_claim
from analysis.compare import ended_pairs, lost
from analysis.document_noise import contrast_error
from analysis.endpoint import Endpoint, lowest
from analysis.levels import levels, same_sum
from analysis.pairing import Group
from analysis.runs import Run
from analysis.statistics import interval

WORDS = ("λ does better there", "λ does worse there")


@dataclass(frozen=True)
class Cell:
    """`chosen`: its η, of several, by the seeds that are compared."""

    group: Group
    chosen: bool


Gain = tuple[Cell, Cell]  # (with decay, without), each at its own best η


def gains_by_setting(families: Mapping[str, list[Group]], endpoint: Endpoint, pilot_from: int) -> dict[str, list[Gain]]:
    """`families`: groups that differ in λ and η alone, by what the others have in common; empty where fewer than two of them
    have λ = 0 and λ > 0. A pilot's seeds enter none."""
    gains = {rest: found for rest, members in families.items() if (found := _gains(members, endpoint, pilot_from))}
    return gains if len(gains) > 1 else {}


def between_settings(gains: Mapping[str, list[Gain]], endpoint: Endpoint, of_interest: float) -> list[Claim]:
    """Each setting against the one of the most seeds, of equal ones the first in float32; decay is the same where λ·Ση is, or λ."""
    if not gains:
        return []
    # what was run most is what the others are variations of; float32 is what other precisions are measured by
    first = max(
        gains, key=lambda r: (max(len(gain_pairs(one)) for one in gains[r]), gains[r][0][0].group.precision == "fp32")
    )
    claims = []
    for rest, found in gains.items():
        for own in found if rest != first else []:
            base = next((one for one in gains[first] if same_decay(one[0].group, own[0].group)), None)
            if base is not None:
                name = f"{_name(own, endpoint)} with {rest}, less {_name(base, endpoint)} with {first}"
                claims.append(_claim(name, own, base, endpoint, of_interest))
    return claims


def _gains(members: list[Group], endpoint: Endpoint, pilot_from: int) -> list[Gain]:
    judged = [group for group in without_pilots(members, pilot_from) if endpoint.seed_losses(group)]
    # of each amount of decay the lowest cell, as where all η are compared
    found = [(level, lowest(level.cells, endpoint)) for level in levels(judged)]
    best = [Cell(top[0], len(level.cells) > 1) for level, top in found if top]
    plain = next((cell for cell in best if not cell.group.decay), None)
    return [(cell, plain) for cell in best if cell.group.decay] if plain else []


def same_decay(one: Group, other: Group) -> bool:
    return one.decay == other.decay or same_sum(one, other)


def _name(gain: Gain, endpoint: Endpoint) -> str:
    """λ, and its difference to λ = 0 in its own setting: better than elsewhere may be less of a harm."""
    mean = interval(endpoint.of(run) - endpoint.of(plain) for run, plain in gain_pairs(gain).values()).mean
    return f"λ = {gain[0].group.decay:g} minus λ = 0 ({mean:+.4f})"


def _claim(name: str, own: Gain, base: Gain, endpoint: Endpoint, of_interest: float) -> Claim:
    pairs, others = gain_pairs(own), gain_pairs(base)
    shared = [seeds for seeds in pairs if seeds in others]
    here, there = ([{side[s][0]: 1.0, side[s][1]: -1.0} for s in shared] for side in (pairs, others))
    both = [{**one, **{run: -weight for run, weight in other.items()}} for one, other in zip(here, there, strict=True)]
    # on one split what documents add to all four alike is gone
    difference = endpoint.contrast(both)
    if endpoint.whole and not math.isfinite(difference.documents):  # two splits are two draws
        difference = difference.with_documents(math.hypot(contrast_error(here), contrast_error(there)))
    # the lowest of several η was picked for being low
    chosen = any(cell.chosen for cell in (*own, *base))
    return difference_claim(
        name,
        endpoint.words,
        difference,
        WORDS,
        condition="η chosen by the same seeds" if chosen else "",
        lost=(*lost(own[0].group, own[1].group), *lost(base[0].group, base[1].group)),
        of_interest=of_interest,
    )


def gain_pairs(gain: Gain) -> dict[str, tuple[Run, Run]]:
    """Seeds → the run with decay and that without."""
    return ended_pairs(gain[0].group, gain[1].group)
