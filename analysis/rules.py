"""Which rules and algorithms beat decoupled decay, each at its own best η and λ.

    python -m analysis rules configs/sweeps/small_rules_tuning.json configs/sweeps/small_rules.json

λ does not mean the same under two rules, so each is judged at its own best. Runs of the pilot's seeds chose it, 100 and above
unless --pilot-seeds-from says otherwise: given too, they say whether a rule was judged where they have it. The others are compared
with decoupled decay's in pairs of one seed on one data, by the loss at the end; Holm's correction is over all rules that were to be
compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.arms import (
    Arm,
    ArmKey,
    alone,
    are_several,
    arms_of,
    by_setting,
    is_pilot,
    key_of,
    name_of,
    seed_of,
    values_of,
)
from analysis.claims import Claim, corrected, difference_claim
from analysis.command import Options, Result
from analysis.compare import TRAIN, lost
from analysis.endpoint import Endpoint, endpoint_of, lowest
from analysis.figures import INTERVALS_DRAWN, Figure, by_name, numbered
from analysis.hypotheses import equivalence
from analysis.pairing import BASE, Group, group_runs
from analysis.runs import SEEDS, Run, differing_fields
from analysis.statistics import LEAST_SEEDS
from analysis.tuning import Tuned, tuned
from configs.decay_laws import OWN_SCALE, SCALES, product_acts
from configs.errors import InputError

BEATS, BEHIND = WORDS = "beats decoupled decay", "is behind decoupled decay"
SAME, OPEN, GONE = "no difference of interest", "undecided", "not ended"
SAID = {
    BEATS: "beat decoupled decay",
    BEHIND: "are behind it",
    SAME: "differ by nothing of interest",
    OPEN: "are undecided",
    GONE: "have no run that ended",
}
NO_PILOT = "not known: no run of the pilot's seeds is among these"


@dataclass(frozen=True)
class Judged:
    """An arm at the one cell that it is compared at, None where no run of it has ended. `declared`: it has no other cell, so the
    seeds that are compared did not choose it. `tuning`: what the pilot says of it."""

    arm: Arm
    cell: Group | None
    declared: bool
    tuning: str

    @property
    def name(self) -> str:
        if self.cell is None:
            return self.arm.name
        rate, decay = values_of(self.cell)
        return f"{self.arm.name} (η = {rate:g}" + (f", λ = {decay:g})" if self.arm.has_decay else ")")


def analyse(runs: list[Run], options: Options) -> Result:
    whole = alone(runs)
    first = options.pilot_from
    judged, pilots = [run for run in whole if not is_pilot(run, first)], [run for run in whole if is_pilot(run, first)]
    if not are_several(judged):
        raise InputError(_nothing(judged, pilots, first))
    # by the fields of all, so that the pilot's settings are told apart as these are
    names = options.by or [name for name in differing_fields(whole) if not name.startswith(SEEDS)]
    groups, notes = group_runs(judged, names)
    endpoint = endpoint_of(groups)
    notes.append(endpoint.note)
    if pilots:
        notes += _on_pilot(judged, pilots, first)
    if len(whole) < len(runs):
        notes.append(
            f"{len(runs) - len(whole)} branches or matched runs have no λ of their own over a whole run: left out"
        )
    bests = _pilots_best(pilots, names)
    findings, families = [], []
    for rest, members in by_setting(groups).items():
        arms = [_at_its_best(arm, bests.get((rest, arm.key)), bool(pilots), endpoint) for arm in arms_of(members)]
        base = next((one for one in arms if one.cell and one.arm.key == BASE), None)
        if base is None:
            start = f"{rest}: no" if rest else "No"
            findings.append(f"{start} run of AdamW with decoupled decay has ended: nothing to compare with.")
            continue
        others = [one for one in arms if one is not base]
        families.append(
            (rest, base, others, [_claim(rest, one, base, endpoint, options) for one in others if one.cell])
        )
    # one correction over all; an arm without an end was to be compared too
    before = [claim for *_, made in families for claim in made]
    family = sum(len(others) for _, _, others, _ in families) if any(claim.primary for claim in before) else 0
    claims = corrected(before, family - sum(claim.primary for claim in before) if family else 0)
    rows, after = [], iter(claims)
    figures: list[Figure] = []
    for rest, base, others, made in families:
        told = {id(one): next(after) for one in others if one.cell}
        assert len(told) == len(made)
        findings += [_sum(rest, others, told, family), *(claim.sentence for claim in told.values())]
        figures += _figure(rest, base, others, told, endpoint, len(figures))
        # the base first: the others are read against it
        rows += [_row(rest, one, told.get(id(one)), endpoint, options) for one in (base, *others) if one.cell]
    tables = {"Rules at their own best": pd.DataFrame(rows)}
    return Result("rules", "Decay rules", findings, figures, tables, notes, claims)


def _figure(
    rest: str, base: Judged, others: list[Judged], told: dict[int, Claim], endpoint: Endpoint, place: int
) -> list[Figure]:
    """Every arm's difference to `base`."""
    intervals = [(one.arm.name, told[id(one)].interval) for one in others if id(one) in told]
    if not intervals:
        return []
    label = f"{endpoint.words}, minus that of {base.arm.name} ({endpoint.unit})"
    caption = (
        f"Each rule and algorithm at its own η and λ, in pairs of a seed. Below zero it ends lower. {INTERVALS_DRAWN}"
    )
    return [Figure(numbered("rules", place), caption, [by_name(intervals, "rule or algorithm", label, title=rest)])]


def _nothing(judged: list[Run], pilots: list[Run], first: int) -> str:
    wanted = (
        f"runs of several rules or algorithms with seeds below {first} are needed (configs/sweeps/small_rules.json)"
    )
    if not pilots:
        return f"these {len(judged)} runs are of one decay rule and algorithm; {wanted}"
    if not judged:
        return f"all {len(pilots)} runs have seeds of a pilot, which choose η and λ and enter no claim; {wanted}; {_mend(pilots)}"
    lost = " ".join(_on_pilot(judged, pilots, first))
    return f"the {len(judged)} runs that are no pilot's are of one decay rule and algorithm; {wanted}; {lost}"


def _on_pilot(judged: list[Run], pilots: list[Run], first: int) -> list[str]:
    """Which runs were taken as the pilot's, by what, and which rules have none beside them."""
    said = [
        f"{len(pilots)} runs are taken as the pilot's, for their seeds.init is {first} or above ({_seeds(pilots)}): they choose η "
        f"and λ and enter no claim (--pilot-seeds-from {first})"
    ]
    # nothing in the table would show that such a rule was given at all
    only = {key_of(run) for run in pilots} - {key_of(run) for run in judged}
    for key in sorted(only):
        own = [run for run in pilots if key_of(run) == key]
        said.append(
            f"{name_of(key)} is not compared: all its {len(own)} runs have seeds of a pilot ({_seeds(own)}); {_mend(own)}"
        )
    return said


def _mend(pilots: list[Run]) -> str:
    """The option under which none of these runs is a pilot's."""
    return f"if they are no pilot, --pilot-seeds-from {max(map(seed_of, pilots)) + 1} compares them"


def _seeds(runs: list[Run]) -> str:
    return ", ".join(map(str, sorted(set(map(seed_of, runs)))))


def _pilots_best(pilots: list[Run], names: list[str]) -> dict[tuple[str, ArmKey], Tuned]:
    """What the pilot chose for each arm, by what its runs have in common."""
    if not pilots:
        return {}
    groups = group_runs(pilots, names)[0]
    endpoint = endpoint_of(groups)
    return {
        (rest, arm.key): tuned(arm, endpoint)
        for rest, members in by_setting(groups).items()
        for arm in arms_of(members)
    }


def _at_its_best(arm: Arm, pilot: Tuned | None, any_pilot: bool, endpoint: Endpoint) -> Judged:
    chosen = lowest(arm.cells, endpoint)
    if chosen is None:
        return Judged(arm, None, False, "")
    cell = chosen[0]
    if pilot is None or pilot.best is None:
        tuning = "no: no run of the pilot is of it" if any_pilot else NO_PILOT
    elif values_of(pilot.best) == values_of(cell):
        tuning = "yes" if pilot.is_inside else f"in part: the pilot's best, and {pilot.words}"
    else:
        rate, decay = values_of(pilot.best)
        tuning = f"no: the pilot's best is η = {rate:g}, λ = {decay:g}"
    return Judged(arm, cell, len(arm.cells) == 1, tuning)


def _claim(rest: str, one: Judged, base: Judged, endpoint: Endpoint, options: Options) -> Claim:
    """An arm minus decoupled decay, before Holm's correction."""
    assert one.cell
    assert base.cell
    declared = one.declared and base.declared
    conditions = [] if declared else ["η and λ chosen by the seeds that are compared"]
    # the pilot's word on either side is a condition of the verdict on both
    conditions += [
        f"{side.arm.name} not at the pilot's best, inside its cells"
        for side in (one, base)
        if side.tuning not in ("yes", NO_PILOT)
    ]
    return difference_claim(
        f"{rest + ': ' if rest else ''}{one.name} minus {base.name}",
        endpoint.words,
        endpoint.difference(one.cell, base.cell),
        WORDS,
        # named beforehand: the endpoint, and the cells that are compared at it
        primary=endpoint.column != TRAIN and declared,
        condition="; ".join(conditions),
        lost=lost(one.cell, base.cell),
        of_interest=options.of_interest,
    )


def _sum(rest: str, others: Sequence[Judged], claims: dict[int, Claim], family: int) -> str:
    """Which beat it, which are behind, which are the same, of which nothing is decided, and which have no end."""
    told: dict[str, list[str]] = {}
    for one in others:
        claim = claims.get(id(one))
        if claim is None:
            told.setdefault(GONE, []).append(one.arm.name)
            continue
        word = claim.verdict if claim.verdict in WORDS else SAME if claim.decided else OPEN
        told.setdefault(word, []).append(one.name)
    parts = [
        f"{text}: {', '.join(told.get(word, ['none']))}" for word, text in SAID.items() if word != GONE or GONE in told
    ]
    rule = f"Holm's correction over {family}" if family else "exploratory, without a correction"
    return f"{rest + ': o' if rest else 'O'}f {len(others)} rules and algorithms ({rule}) " + "; ".join(parts) + "."


def _row(rest: str, one: Judged, claim: Claim | None, endpoint: Endpoint, options: Options) -> dict[str, object]:
    assert one.cell
    (rate, decay), losses = values_of(one.cell), list(endpoint.seed_losses(one.cell).values())
    row: dict[str, object] = {"runs": rest} if rest else {}
    row |= {"rule": one.arm.name, "η": rate, "λ": decay if one.arm.has_decay else "–"}
    # of a rule whose decay η is no factor of, the product says nothing
    acts = one.arm.has_decay and product_acts(one.arm.rule, one.arm.algorithm)
    row["ηλ"] = float(f"{rate * decay:.3g}") if acts else "–"
    row |= {"n": len(losses), "loss": round(float(np.mean(losses)), 4)}
    row["minus decoupled decay"] = claim.interval.text() if claim else ""
    row["verdict"] = claim.verdict if claim else "what the others are compared with"
    # that two are the same is a claim of its own, and never follows from undecided
    enough = claim is not None and claim.interval.n >= LEAST_SEEDS
    row["the same?"] = equivalence(claim.interval, options.margin) if claim and enough else ""
    row["at the pilot's best"] = one.tuning
    row |= {"law": one.arm.law.law if one.arm.law else "", "its λ is": one.arm.law.decay if one.arm.law else ""}
    row["its scale"] = SCALES.get(one.arm.algorithm, OWN_SCALE)
    return row | ({"condition": claim.conditions} if claim and claim.conditions else {})
