"""Losses of every λ at its own best learning rate, beside losses at one learning rate for all: the best one of λ = 0.

At one η for all, decay may look good because η is too large for λ = 0, or bad because it is too small for λ. So both are told. η is
chosen by the very seeds that are then compared, which favours the λ that has more η to choose from: that is exploratory.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.claims import Claim, difference_claim, survival
from analysis.compare import lost, verdict
from analysis.endpoint import Endpoint, lowest
from analysis.levels import Level, levels, rate_of
from analysis.pairing import Group

WORDS = ("helps", "harms")


@dataclass(frozen=True)
class Tuned:
    """A level at its own best η. `bracket`: empty where η were tried on both sides of it, else what is missing."""

    level: Level
    best: Group
    bracket: str


def at_own_rates(
    families: dict[str, list[Group]], endpoint: Endpoint, of_interest: float
) -> tuple[list[str], list[dict[str, object]], list[Claim]]:
    """`families`: groups that differ in λ and η alone, by what the others have in common.

    (two sentences a family, at own and at one η; rows; the claims at own η where that is another than the common one).
    """
    findings: list[str] = []
    rows: list[dict[str, object]] = []
    claims: list[Claim] = []
    for rest, members in families.items():
        cells = [group for group in members if endpoint.seed_losses(group)]
        # of one learning rate there is nothing to choose
        if len({rate_of(group) for group in cells}) < 2:
            continue
        tuned = [one for level in levels(cells) if (one := _tuned(level, endpoint)) is not None]
        # without λ = 0 there is no common η either
        if len(tuned) < 2 or tuned[0].level.value != 0:
            continue
        sentences, told, claimed = _family(rest, tuned, endpoint, of_interest)
        findings += sentences
        rows += told
        claims += claimed
    return findings, rows, claims


def _tuned(level: Level, endpoint: Endpoint) -> Tuned | None:
    best = lowest(level.cells, endpoint)
    if best is None:
        return None
    rates = sorted({rate_of(group) for group in level.cells})
    place = rates.index(rate_of(best[0]))
    bracket = ""
    if len(rates) == 1:
        bracket = f"only η = {rates[0]:g} was run"
    elif place == 0:
        bracket = f"η = {rates[0]:g} is the lowest tried"
    elif place == len(rates) - 1:
        bracket = f"η = {rates[-1]:g} is the highest tried"
    return Tuned(level, best[0], bracket)


def _family(
    rest: str, tuned: list[Tuned], endpoint: Endpoint, of_interest: float
) -> tuple[list[str], list[dict[str, object]], list[Claim]]:
    zero, common = tuned[0].best, rate_of(tuned[0].best)
    own_told, common_told, rows, claims = [], [], [], []
    for one in tuned:
        # the level's cell at the common η, if there is one
        beside = next((group for group in one.level.cells if rate_of(group) == common), None)
        row: dict[str, object] = {"runs": rest or "–", "decay": one.level.name, "best η": rate_of(one.best)}
        row |= {"bracketed": one.bracket or "yes"} | _columns(one.best, zero, endpoint, "at its own η")
        row["common η"] = common
        rows.append(row | (_columns(beside, zero, endpoint, "at the common η") if beside else {}))
        if one.best is zero:
            continue
        gap = endpoint.difference(one.best, zero)
        own_told.append(f"{one.level.name} at η = {rate_of(one.best):g} {_words(one.best, zero, endpoint)}")
        common_told.append(f"{one.level.name} {_words(beside, zero, endpoint) if beside else 'was not run there'}")
        # at the common η it is the comparison of the loss curves, and no second one
        if one.best is not beside and gap.n:
            condition = "η chosen by the same seeds" + (f"; not bracketed: {one.bracket}" if one.bracket else "")
            name = f"{one.best.name} minus {zero.name}, each at its own best η"
            gone = lost(one.best, zero)
            claim = difference_claim(
                name, endpoint.words, gap, WORDS, condition=condition, lost=gone, of_interest=of_interest
            )
            claims.append(claim)
    start = f"{rest}: each" if rest else "Each"
    own = f"{start} decay at its own best η, minus λ = 0 at its own (η = {common:g}), {endpoint.words}: {'; '.join(own_told)}."
    if open_ended := [f"{one.level.name} ({one.bracket})" for one in tuned if one.bracket]:
        own += f" Not bracketed, so the best η may lie beyond those tried: {', '.join(open_ended)}."
    start = f"{rest}: all" if rest else "All"
    return [own, f"{start} at η = {common:g}, the best of λ = 0: {'; '.join(common_told)}."], rows, claims


def _columns(cell: Group, zero: Group, endpoint: Endpoint, where: str) -> dict[str, object]:
    losses = list(endpoint.seed_losses(cell).values())
    row: dict[str, object] = {
        f"λ {where}": cell.decay,
        f"loss {where}": round(float(np.mean(losses)), 4),
        f"n {where}": len(losses),
    }
    return row | ({} if cell is zero else {f"minus λ = 0 {where}": endpoint.difference(cell, zero).text()})


def _words(cell: Group, zero: Group, endpoint: Endpoint) -> str:
    gap, gone = endpoint.difference(cell, zero), survival(lost(cell, zero))
    if not gap.n:
        return "has no seed in common with λ = 0"
    return f"{gap.text()}: {verdict(gap, *WORDS)}" + (f" ({gone})" if gone else "")
