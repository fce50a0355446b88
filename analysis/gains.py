"""Whether other ways of decay, or a slower schedule, gain at least half of what AdamW's does.

    python -m analysis gains docs/study/records/study_s24 docs/study/records/study_gains

A way's gain is its loss at the end minus that of the same optimiser without decay, in pairs of one seed. By the declared rule
(docs/study/plan.md, claim 7) a way gives the same gain where the gain minus half of AdamW's lies below zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from analysis.arms import KNOBS, judged_runs
from analysis.claims import Claim, difference_claim
from analysis.command import Options, Result
from analysis.compare import ended_pairs, lost
from analysis.endpoint import Endpoint, endpoint_of, lowest
from analysis.figures import INTERVALS_DRAWN, Figure, by_name, numbered
from analysis.pairing import STEPS, Group, by_rest, group_by_length
from analysis.runs import ALGORITHM, LAMBDA, RATE, RULE, Run
from configs.errors import InputError

MASK, HORIZON = "optim.decay_mask", "schedule.horizon"
WAY = (ALGORITHM, RULE, MASK, HORIZON)  # what makes a way of decaying, beside its λ and η
ADAMW = ("adam", "decoupled", "matrices", None)
SHARE = 0.5  # of AdamW's gain, declared
WORDS = (f"gains more than {SHARE:g} of AdamW's", f"gains less than {SHARE:g} of AdamW's")


@dataclass(frozen=True)
class Gain:
    """A group and what it is compared with: the same optimiser without decay. `chosen`: by the seeds that are compared."""

    cell: Group
    plain: Group
    chosen: bool = False

    @property
    def own(self) -> dict[str, tuple[Run, Run]]:
        """Seeds → the two runs."""
        return ended_pairs(self.cell, self.plain)


def analyse(runs: list[Run], options: Options) -> Result:
    judged, notes = judged_runs(runs, options.pilot_from)
    groups, mixed = group_by_length(judged, options.by) if judged else ([], [])
    endpoint = endpoint_of(groups)
    notes += [*mixed, endpoint.note]
    rows: list[dict[str, object]] = []
    claims: list[Claim] = []
    figures: list[Figure] = []
    for rest, members in by_rest(groups, (LAMBDA, RATE, *WAY, *KNOBS)).items():
        adamw = _adamw(members, endpoint)
        if adamw is None:
            notes.append(f"{rest or 'these runs'}: no AdamW with decay and without, which the others are set against")
            continue
        # AdamW first: the others are read against it
        rows.append(_row(rest, adamw, endpoint))
        others = _others(members, endpoint)
        figures += [_figure(rest, adamw, others, endpoint, len(figures))] if others else []
        for gain in others:
            claims.append(_claim(rest, gain, adamw, endpoint, options))
            rows.append(_row(rest, gain, endpoint) | {"minus half of AdamW's": claims[-1].interval.text()})
            rows[-1]["verdict"] = claims[-1].verdict
    if not claims:
        raise InputError(
            f"a gain is set against AdamW's: runs of AdamW with λ = 0 and λ > 0, and of another way ({', '.join(WAY)}), are "
            f"needed; these are {len(groups)} groups of {len({way_of(group) for group in groups})} way(s)"
        )
    table = {"Gains": pd.DataFrame(rows)}
    return Result("gains", "Ways of decay", [claim.sentence for claim in claims], figures, table, notes, claims)


def way_of(group: Group) -> tuple[object, ...]:
    """Its algorithm, rule, mask and horizon. A horizon of the run's own length is none."""
    fields = group.runs[0].fields
    horizon = fields.get(HORIZON)
    mask = fields.get(MASK) or "matrices"
    return group.runs[0].algorithm, group.runs[0].rule, mask, None if horizon == fields[STEPS] else horizon


def _adamw(members: list[Group], endpoint: Endpoint) -> Gain | None:
    """AdamW's lowest cell with decay, beside its lowest without: each λ at its own η."""
    return _gain([g for g in members if way_of(g) == ADAMW and g.decay], _plain("adam", members), endpoint)


def _others(members: list[Group], endpoint: Endpoint) -> list[Gain]:
    """The lowest cell of every other way; a cell without decay is a way by its schedule alone."""
    ways: dict[tuple[object, ...], list[Group]] = {}
    for group in members:
        algorithm, rule, mask, horizon = way_of(group)
        # the value of a horizon is chosen as a λ is; with decay too it is another way
        if way_of(group) != ADAMW and (group.decay or horizon):
            ways.setdefault((algorithm, rule, mask, horizon is not None, bool(group.decay)), []).append(group)
    gains = [_gain(cells, _plain(str(key[0]), members), endpoint) for key, cells in ways.items()]
    return [gain for gain in gains if gain is not None]


def _plain(algorithm: str, members: list[Group]) -> list[Group]:
    """The algorithm without decay: one run, whatever the rule or mask that it is compared for."""
    return [g for g in members if not g.decay and g.runs[0].algorithm == algorithm and way_of(g)[3] is None]


def _gain(cells: list[Group], plain: list[Group], endpoint: Endpoint) -> Gain | None:
    best, base = lowest(cells, endpoint), lowest(plain, endpoint)
    return Gain(best[0], base[0], len(cells) > 1 or len(plain) > 1) if best and base else None


def _claim(rest: str, gain: Gain, adamw: Gain, endpoint: Endpoint, options: Options) -> Claim:
    """The gain minus SHARE of AdamW's, over the seeds that all four have."""
    # only half of AdamW's gain is taken off: that is what the claim asks for
    shared = [seed for seed in gain.own if seed in adamw.own]
    weights = [_weights(gain.own[seed], adamw.own[seed]) for seed in shared]
    # half of no gain is no measure: a way that harms less would pass it
    gains = endpoint.difference(adamw.cell, adamw.plain).high < 0
    chosen = [one.cell.name for one in (gain, adamw) if one.chosen]
    return difference_claim(
        f"{f'{rest}: ' if rest else ''}{gain.cell.name} minus {gain.plain.name}, less {SHARE:g} of {adamw.cell.name}'s gain",
        endpoint.words,
        endpoint.contrast(weights),
        WORDS,
        refused="" if gains else "no claim: AdamW's own gain is not told from zero",
        condition=f"chosen by the same seeds: {'; '.join(chosen)}" if chosen else "",
        lost=(*lost(gain.cell, gain.plain), *lost(adamw.cell, adamw.plain)),
        of_interest=options.of_interest,
    )


def _weights(own: tuple[Run, Run], adamw: tuple[Run, Run]) -> dict[Run, float]:
    """Of each run in the contrast; AdamW without decay may be in both gains."""
    weights: dict[Run, float] = {}
    for run, weight in zip((*own, *adamw), (1.0, -1.0, -SHARE, SHARE), strict=True):
        weights[run] = weights.get(run, 0.0) + weight
    return weights


def _figure(rest: str, adamw: Gain, others: list[Gain], endpoint: Endpoint, place: int) -> Figure:
    """Every way's gain, AdamW's first, beside half of AdamW's."""
    # each with the documents' error, as the verdicts have it
    told = [(_in_words(gain), endpoint.difference(gain.cell, gain.plain)) for gain in (adamw, *others)]
    half = SHARE * told[0][1].mean, f"{SHARE:g} of AdamW's"
    label = f"{endpoint.words}, minus that without decay ({endpoint.unit})"
    caption = f"What each way of decay gains over the same optimiser without it. Below zero it helps. {INTERVALS_DRAWN}"
    return Figure(numbered("gains", place), caption, [by_name(told, "way of decay", label, half, title=rest)])


def _in_words(gain: Gain) -> str:
    """A way on a few short lines, as a tick has room for."""
    algorithm, rule, mask, horizon = way_of(gain.cell)
    name = {"adam": "Adam", "sgd": "SGD"}.get(str(algorithm), str(algorithm))
    if way_of(gain.cell) == ADAMW:
        return "AdamW"
    told = [name, *([str(rule)] if gain.cell.decay else ["no decay"])]
    told += [f"mask {mask}"] if gain.cell.decay and mask != "matrices" else []
    return "\n".join([*told, *([f"horizon {horizon}"] if horizon else [])])


def _row(rest: str, gain: Gain, endpoint: Endpoint) -> dict[str, object]:
    row: dict[str, object] = {"runs": rest} if rest else {}
    rate = gain.cell.runs[0].fields[RATE]
    # a horizon is a number, and empty where the schedule ends with the run
    algorithm, rule, mask, horizon = way_of(gain.cell)
    row |= {
        "algorithm": algorithm,
        "rule": rule,
        "mask": mask,
        "horizon": horizon or "",
        "η": rate,
        "λ": gain.cell.decay,
    }
    return row | {"gain": endpoint.difference(gain.cell, gain.plain).text()}
