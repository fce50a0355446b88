"""One change from the best: the cell of the lowest loss, and every cell that differs from it in one thing alone.

It is the table of a sweep that readers understand fastest: what was best, and what each other choice would have cost. The best was
picked because it is the lowest, so its own mean is a little too low, and nothing here is corrected for the picking.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from analysis.arms import KNOBS
from analysis.claims import survival
from analysis.compare import lost
from analysis.endpoint import Endpoint, lowest
from analysis.levels import same_sum, sums_repeat
from analysis.pairing import Group, by_rest
from analysis.runs import LAMBDA, RATE, field_name, shown
from analysis.statistics import LEAST_SEEDS, Interval, seed_count

NAMED = 6  # cells that a sentence names one by one


def one_change(groups: list[Group], endpoint: Endpoint) -> tuple[list[str], pd.DataFrame]:
    """(a sentence on the lowest with all that it cannot be told from; a row the best and one each cell of one change)."""
    best = lowest(groups, endpoint)
    cells = [group for group in groups if endpoint.seed_losses(group)]
    if best is None or len(cells) < 2:
        return [], pd.DataFrame()
    chosen, seeds = best
    others = [(group, endpoint.difference(group, chosen)) for group in cells if group is not chosen]
    mean = float(np.mean([endpoint.seed_losses(chosen)[s] for s in seeds]))
    # the best is the first row: the others are read against it
    rows: list[dict[str, object]] = [
        {"change": "none: the lowest", "from": "", "to": chosen.name, "n": len(seeds), "loss": round(mean, 4)}
    ]
    repeated = sums_repeat(groups)
    changed = [
        (words, gap, survival(lost(group, chosen)))
        for group, gap in others
        if (words := _change(chosen, group, repeated)) is not None
    ]
    # a cell without a common seed has no difference: it comes last
    for (what, before, after), gap, gone in sorted(changed, key=lambda row: (not gap_known(row[1]), row[1].mean)):
        rows.append(
            {
                "change": what,
                "from": before,
                "to": after,
                "n": gap.n,
                "difference": round(gap.mean, 4) if gap_known(gap) else None,
                "95 % interval": _bounds(gap),
                "told from the lowest": told(gap),
            }
            # a column only where runs diverged
            | ({"condition": gone} if gone else {})
        )
    return [_sentence(chosen, seeds, mean, cells, others, endpoint)], pd.DataFrame(rows)


def by_rule(groups: list[Group], endpoint: Endpoint) -> tuple[list[str], pd.DataFrame]:
    """The same for each decay rule and algorithm by itself: under another rule λ is another thing."""
    sentences, tables = [], []
    for rest, members in by_rest(groups, (LAMBDA, RATE, *KNOBS)).items():
        sentence, table = one_change(members, endpoint)
        sentences += [f"{rest}: {text[0].lower()}{text[1:]}" for text in sentence]
        # whose lowest it is stands first
        if len(table):
            table.insert(0, "runs", rest)
            tables.append(table)
    return sentences, pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def gap_known(gap: Interval) -> bool:
    return math.isfinite(gap.mean)


def told(gap: Interval) -> str:
    """Whether a cell can be told from the lowest, by the declared rule."""
    if gap.n < LEAST_SEEDS:
        return f"no: {seed_count(gap.n)} in common" if gap.n else "no: no seed in common"
    if not gap.excludes_zero:
        return "no"
    # the lowest mean is over the seeds of all cells; of the seeds of these two alone it may be the higher
    return "yes: higher" if gap.mean > 0 else "yes: lower on their common seeds"


def _bounds(gap: Interval) -> str:
    return f"[{gap.low:+.4f}, {gap.high:+.4f}]" if math.isfinite(gap.low) else "–"


def _change(best: Group, group: Group, repeated: bool) -> tuple[str, str, str] | None:
    """What alone differs, and its two values; None where more does."""
    differing = [name for name in best.fields if shown(best.fields[name]) != shown(group.fields.get(name))]
    # sweeps that keep λ·Ση while η changes must change λ with it: that is one change
    if repeated and set(differing) == {LAMBDA, RATE} and same_sum(best, group):
        differing = [RATE]
        kept = f", λ·Ση kept (λ {best.decay:g} → {group.decay:g})"
    else:
        kept = ""
    if len(differing) != 1:
        return None
    (name,) = differing
    return field_name(name) + kept, shown(best.fields[name]), shown(group.fields.get(name))


def _sentence(
    chosen: Group,
    seeds: list[str],
    mean: float,
    cells: list[Group],
    others: list[tuple[Group, Interval]],
    end: Endpoint,
) -> str:
    """The lowest is never named alone."""
    fewer = sum(len(end.seed_losses(group)) < len(end.seed_losses(chosen)) for group in cells)
    text = (
        f"Of {len(cells)} cells the lowest mean {end.words} is {mean:.4f} at {chosen.name} ({seed_count(len(seeds))})"
    )
    text += f"; {fewer} with fewer seeds are no candidates" if fewer else ""
    few = [group for group, gap in others if gap.n < LEAST_SEEDS]
    alike = [(group, gap) for group, gap in others if gap.n >= LEAST_SEEDS and not gap.excludes_zero]
    if few:
        text += (
            f"; fewer than {LEAST_SEEDS} seeds in common with {len(few)} of the others, so it cannot be told from them"
        )
    if alike:
        names = "; ".join(f"{group.name} ({gap.mean:+.4f} {_bounds(gap)})" for group, gap in alike[:NAMED])
        more = f"; and {len(alike) - NAMED} more" if len(alike) > NAMED else ""
        text += f"; it cannot be told from {names}{more}"
    if not few and not alike:
        text += ", and every other is told from it"
    return text + "."
