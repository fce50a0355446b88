"""Which runs belong together: groups that make one curve, the group that others are compared with, and twins."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from analysis.runs import LAMBDA, PRECISION, RATE, SEEDS, Run, differing_fields, label
from configs.errors import InputError

STEPS = "schedule.steps"
BASE = ("adam", "decoupled")  # what other algorithms and rules are compared with: AdamW


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seeds alone (or in what the caller did not ask to see): one curve."""

    name: str
    fields: dict[str, Any]
    runs: list[Run]

    @property
    def decay(self) -> float:
        return self.runs[0].decay

    @property
    def precision(self) -> str:
        return str(self.runs[0].fields.get(PRECISION, "fp32"))


def group_runs(runs: list[Run], by: list[str] | None = None) -> tuple[list[Group], list[str]]:
    """Groups by the fields `by`, or by every field in which the runs differ, but for seeds. Ordered by the fields' values.

    Returns (groups, notes); a note for every group whose runs differ in more than their seeds.
    """
    names = by if by is not None else [name for name in differing_fields(runs) if not name.startswith(SEEDS)]
    if unknown := [name for name in names if not any(name in run.fields for run in runs)]:
        raise InputError(
            f"no run has the field {unknown[0]!r}; fields that differ: {', '.join(differing_fields(runs))}"
        )
    # JSON as the key: a field may hold a list
    members: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: [in_order(run.fields.get(name)) for name in names] + [in_order(run.seeds)]):
        members.setdefault(json.dumps([run.fields.get(name) for name in names]), []).append(run)
    groups, notes = [], []
    for inside in members.values():
        name = label(inside[0], names if names or len(inside) == 1 else [LAMBDA, RATE])
        groups.append(Group(name, {field: inside[0].fields.get(field) for field in names}, inside))
        # what a curve mixes is said: a mean over other things than seeds has no meaning that the reader could guess
        if hidden := [field for field in differing_fields(inside) if not field.startswith(SEEDS)]:
            notes.append(f"{name}: its {len(inside)} runs differ in more than seeds: {', '.join(hidden)}")
        # a run that was copied is one seed, not two
        elif len({run.seeds for run in inside}) < len(inside):
            notes.append(f"{name}: {len(inside)} runs, but only {len({run.seeds for run in inside})} seeds")
    return groups, notes


def group_by_length(runs: list[Run], by: list[str] | None = None) -> tuple[list[Group], list[str]]:
    """The same, and by the number of updates: at a constant rate that is no part of the experiment, but makes other ends."""
    if by is None and len({run.fields.get(STEPS) for run in runs}) > 1:
        by = list(dict.fromkeys([*(n for n in differing_fields(runs) if not n.startswith(SEEDS)), STEPS]))
    return group_runs(runs, by)


def in_order(value: Any) -> tuple[int, float, str]:
    """A key that sorts a field's values: numbers by size, before all that are none."""
    if isinstance(value, int | float):
        return (0, float(value), "")
    return (1, 0.0, json.dumps(value))


def baseline_of(group: Group, groups: list[Group]) -> Group:
    """The group that differs from `group` in λ alone and has the smallest λ; where λ does not vary, the first group, of several
    rules the first of AdamW with decoupled decay."""
    # nothing to call the smallest λ: whatever comes first is what the others are compared with
    if all(LAMBDA not in g.fields for g in groups):
        return next((g for g in groups if rule_of(g) == BASE), groups[0])
    # λ is compared within one precision, one model, one learning rate
    rest = {name: value for name, value in group.fields.items() if name != LAMBDA}
    alike = [g for g in groups if {name: v for name, v in g.fields.items() if name != LAMBDA} == rest]
    return min(alike, key=lambda g: g.decay)


def rule_of(group: Group) -> tuple[str, str]:
    """(algorithm, decay rule) of the group's runs; of runs that --by puts together, of the first."""
    return group.runs[0].algorithm, group.runs[0].rule


def by_rest(groups: list[Group], searched: tuple[str, ...]) -> dict[str, list[Group]]:
    """Groups that differ in the `searched` fields alone, by what the others have in common; "" where nothing else differs."""
    families: dict[str, list[Group]] = {}
    for group in groups:
        # what is searched is searched within each combination of the other fields
        names = [name for name in group.fields if name not in searched]
        families.setdefault(label(group.runs[0], names) if names else "", []).append(group)
    return families


def missing_baselines(groups: list[Group]) -> list[str]:
    """A sentence for every family of groups that differ in λ alone and have no λ = 0: which comparison is missing."""
    sentences = []
    several, undecayed = len(set(map(rule_of, groups))) > 1, {rule_of(group) for group in groups if group.decay == 0}
    # where λ is one for all, no comparison with λ = 0 was meant
    for rest, members in by_rest([group for group in groups if LAMBDA in group.fields], (LAMBDA,)).items():
        least = min(members, key=lambda group: group.decay)
        # of several rules those that were run without λ = 0 were meant to be compared with another rule
        if least.decay == 0 or (several and rule_of(least) not in undecayed):
            continue
        there = f" with {rest}" if rest else ""
        names = ", ".join(f"{group.decay:g}" for group in members)
        instead = (
            f"the others are compared with λ = {least.decay:g}" if len(members) > 1 else "it is compared with nothing"
        )
        sentences.append(
            f"λ = {names} minus λ = 0{there} is missing: no run of λ = 0{there} is among these; {instead}."
        )
    return sentences


def pairs(group: Group, base: Group) -> list[tuple[Run, Run]]:
    """Twins of two groups. Twins have the same seeds, so the same initial weights and the same windows in every step, and differ in
    no field but those that their groups differ in."""
    compared = {name for name in {*group.fields, *base.fields} if group.fields.get(name) != base.fields.get(name)}

    def alike(one: Run, other: Run) -> bool:
        # fields of which the groups were not made (`--by` may leave out some) must agree run by run
        names = (one.varied | other.varied) - compared
        return one.seeds == other.seeds and all(one.fields.get(name) == other.fields.get(name) for name in names)

    return [(run, twin) for run in group.runs for twin in base.runs if alike(run, twin)]


def by_seed(values: list[tuple[Run, float]]) -> dict[str, float]:
    """Seeds → value: the mean over runs that share their seeds, so that copies count once."""
    values_of: dict[str, list[float]] = {}
    for run, value in values:
        values_of.setdefault(run.seeds, []).append(value)
    return {seeds: sum(members) / len(members) for seeds, members in values_of.items()}
