"""The arms of a comparison: an algorithm with a decay rule, at whatever η and λ; and which runs choose those, which judge.

λ does not mean the same under two rules (docs/rules.md), so cells of one λ are no pair. An arm is compared at its own best.
At λ = 0 every rule that has a λ is the plain optimiser: such cells are an arm of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from analysis.pairing import Group, by_rest
from analysis.runs import ALGORITHM, LAMBDA, RATE, RULE, Run
from configs.decay_laws import LAWS, NO_DECAY, Law

# What is an arm's own to choose, beside its η and λ.
KNOBS = ("optim.betas", "optim.momentum", "optim.projection_every", "model.head_scale")
PILOT = 100  # seeds from here up choose η and λ, and enter no claim, unless --pilot-seeds-from says otherwise
ArmKey = tuple[str, str]  # (algorithm, decay rule)


@dataclass(frozen=True)
class Arm:
    """`cells`: its groups, each of one η and λ."""

    algorithm: str
    rule: str
    cells: list[Group]

    @property
    def key(self) -> ArmKey:
        return self.algorithm, self.rule

    @property
    def name(self) -> str:
        return name_of(self.key)

    @property
    def law(self) -> Law | None:
        return LAWS.get(self.rule)

    @property
    def has_decay(self) -> bool:
        return self.rule != NO_DECAY and (self.law is None or self.law.has_decay)


def name_of(key: ArmKey) -> str:
    """Adam needs no word, nor decoupled decay where another algorithm is told of."""
    algorithm, rule = key
    if algorithm == "adam":
        return rule
    return algorithm if rule == "decoupled" else f"{algorithm}, {rule}"


def key_of(run: Run) -> ArmKey:
    law = LAWS.get(run.rule)
    # an override may decay what optim.weight_decay does not
    undecayed = run.decay == 0 and not run.fields.get("optim.decay_overrides")
    plain = undecayed and (law is None or law.has_decay)
    return run.algorithm, NO_DECAY if plain else run.rule


def arms_of(groups: Sequence[Group]) -> list[Arm]:
    """In the order of the algorithms and rules that a reader knows: AdamW first, the others as docs/rules.md has them."""
    cells: dict[ArmKey, list[Group]] = {}
    for group in groups:
        cells.setdefault(key_of(group.runs[0]), []).append(group)
    order = [NO_DECAY, *LAWS]
    place = {key: (key[0] != "adam", key[0], order.index(key[1]) if key[1] in order else len(order)) for key in cells}
    return [Arm(*key, cells[key]) for key in sorted(cells, key=lambda key: place[key])]


def are_several(runs: Sequence[Run]) -> bool:
    """Whether runs are of several rules or algorithms; λ = 0 beside one rule is the comparison of λ, and none of rules."""
    return len({key_of(run) for run in runs if key_of(run)[1] != NO_DECAY}) > 1


def by_setting(groups: Sequence[Group]) -> dict[str, list[Group]]:
    """Groups that differ in nothing but what an arm is and may choose, by what they have in common."""
    return by_rest(list(groups), (LAMBDA, RATE, RULE, ALGORITHM, *KNOBS))


def seed_of(run: Run) -> int:
    """The seed that tells a pilot's runs from others: of the initial weights."""
    return int(run.fields.get("seeds.init") or 0)


def is_pilot(run: Run, first: int = PILOT) -> bool:
    return seed_of(run) >= first


def alone(runs: Sequence[Run]) -> list[Run]:
    """Those that have a λ of their own over a whole run: no branches, no matched runs."""
    return [run for run in runs if run.origin is None and run.reference is None]


def without_pilots(groups: Sequence[Group], first: int = PILOT) -> list[Group]:
    """The groups without the runs of a pilot's seeds, and without those that have no others."""
    kept = [(group, [run for run in group.runs if not is_pilot(run, first)]) for group in groups]
    return [Group(group.name, group.fields, runs) for group, runs in kept if runs]


def judged_runs(runs: list[Run], first: int = PILOT) -> tuple[list[Run], list[str]]:
    """The runs that claims are about: alone, and no pilot's. And a note on the pilot's."""
    whole = alone(runs)
    kept = [run for run in whole if not is_pilot(run, first)]
    # that they were given is no fault: a pilot lies beside what it chose
    gone = len(whole) - len(kept)
    return kept, [f"{gone} runs of a pilot's seeds ({first} and above) enter no claim"] if gone else []


def values_of(group: Group) -> tuple[float, float]:
    """(η, λ)."""
    return float(group.runs[0].fields[RATE]), group.decay
