"""The published cases nearest to a configuration, by tokens per parameter and λ·Ση; and where the best λ was inside those tried."""

from __future__ import annotations

import math

import pandas as pd

from analysis.outside_tables import Case, Place, Row, Table, places
from analysis.power_law import block_parameters, why_refused
from analysis.published import P1, curves, paper
from configs.cost import n_parameters
from configs.schema import RunConfig

SHOWN = 5  # cases: a table that is read in a glance
UNKNOWN = 1.0  # how far a case counts whose λ·Ση is not known: a factor of e
EDGE = 1.05  # a factor: sums are no more exact than the grids of λ that they are from


def paper_case() -> Place:
    """P1's own runs with a cosine schedule, as a case among the others: training loss at the last step, λ by λ."""
    # its numbers stay in one file: here they get the form that other tables have
    kept = paper(P1)["cosine"]
    rows = tuple(
        Row(weight_decay=decay, value=float(curve.iloc[-1])) for decay, curve in sorted(curves("cosine").items())
    )
    case = Case(
        name="GPT-2 124M, 3.3 B tokens",
        optimiser="AdamW",
        algorithm="adam",
        decay_rule="decoupled",
        parameters=124e6,
        tokens=3.28e9,
        unit="nats",
        laid=False,  # its whole curves are, by analysis/published.py
        fields={},
        rows=rows,
    )
    table = Table(
        table="P1",
        source=P1,
        shows=kept["shows"],
        how=kept["how"],
        corpus="OpenWebText",
        recipe=paper(P1)["recipe"],
        precisions=(),
        tokenizer=None,
        counts="all",
        tolerance=kept["uncertainty"],
        tolerance_means="how exactly the drawing was read",
        seeds=None,
        cases=(case,),
    )
    return Place(table, case)


def interior() -> list[Place]:
    """The cases whose best λ lies inside the λ tried, and whose λ·Ση is known."""
    return [place for place in (paper_case(), *places()) if place.is_interior and place.decay_sum]


def ratios(place: Place) -> tuple[float | None, float | None]:
    """Tokens per parameter, of all parameters and of the blocks alone; None for what is not known of the case."""
    if (config := place.config) is not None:
        return ratios_of(config)
    # the source's own N, whatever it counts, where the model is not known in full
    own = None if place.case.tokens is None else place.case.tokens / place.case.parameters
    return (None, own) if place.table.counts == "blocks" else (own, None)


def ratios_of(config: RunConfig) -> tuple[float, float]:
    tokens = config.schedule.steps * config.units_per_step
    return tokens / n_parameters(config.model), tokens / block_parameters(config.gpt)


def nearest(config: RunConfig, decay_sum: float | None) -> pd.DataFrame:
    """The nearest cases of the configuration's algorithm, the nearest first. `decay_sum`: its λ·Ση; None or 0 where it has none.

    How far a case is: the logarithms of the two ratios, of tokens per parameter and of λ·Ση, together.
    """
    ours = ratios_of(config)
    # λ of another algorithm is another number: of Muon's and Lion's steps, and of what is added to a gradient
    cases = [
        place
        for place in (paper_case(), *places())
        if place.case.algorithm == config.optim.algorithm and place.case.decay_rule == "decoupled"
    ]
    far = sorted(((_distance(place, ours, decay_sum), i, place) for i, place in enumerate(cases)), key=lambda t: t[:2])
    return pd.DataFrame([_row(place) for distance, _, place in far[:SHOWN] if math.isfinite(distance)])


def _distance(place: Place, ours: tuple[float, float], decay_sum: float | None) -> float:
    # like with like: all parameters with all, blocks with blocks
    ratio, mine = ratios(place)[0], ours[0]
    if ratio is None:
        ratio, mine = ratios(place)[1], ours[1]
    # the blocks' own, where a source tells no other; a case of an unknown horizon is near to nothing
    if ratio is None:
        return math.inf
    away, theirs = abs(math.log(ratio / mine)), place.decay_sum
    # without decay the horizon alone says what is near
    if not decay_sum:
        return away
    return math.hypot(away, math.log(theirs / decay_sum) if theirs else UNKNOWN)


def _row(place: Place) -> dict[str, object]:
    case, (everything, blocks), total = place.case, ratios(place), place.decay_sum
    return {
        "source": f"{place.table.table} {place.table.short}",
        "model": f"{case.name}, {case.optimiser}",
        "D/N": "–" if everything is None else f"{everything:.3g}",
        "D/N of blocks": "–" if blocks is None else f"{blocks:.3g}",
        "best λ": f"{case.best.weight_decay:g}",
        "its Σηλ": "–" if total is None else f"{total:.3g}",
        "gain over λ = 0": _gain(case),
        "lies": _lies(place),
    }


def _gain(case: Case) -> str:
    # that λ = 0 diverged is the largest gain of all, and has no number
    zero = case.at_zero
    if case.is_loss and case.best is zero:
        return "none: λ = 0 is best"
    if zero is not None and zero.diverged:
        return "λ = 0 diverged"
    if case.gain is not None:
        return f"{case.gain:.3f} nats"
    return {"rank": "an order alone", "updates": f"{case.best.value:,.0f} updates"}.get(case.unit, "λ = 0 not run")


def _lies(place: Place) -> str:
    """Where among the λ tried the best one is."""
    decays = [row.weight_decay for row in place.case.rows]
    # a setting of one λ was tuned by other means, or not at all
    if len(decays) == 1:
        return "one λ alone"
    # of a best λ at an end nobody knows where the optimum is
    best = place.case.best.weight_decay
    if best in (decays[0], decays[-1]):
        return "at an end of those tried"
    return "inside" if place.is_interior or not place.case.is_loss else "equal to an end"


def said_of_interior(config: RunConfig, decay_sum: float | None, one: float | None) -> str:
    """Where interior optima lie, and which λ of this run would lie there; `one`: Σηλ of λ = 1 over the run."""
    # computed, so that a table that is added moves the range
    cases = interior()
    sums = [place.decay_sum for place in cases if place.decay_sum is not None]
    low, high = min(sums), max(sums)
    text = (
        f"In {len(cases)} published cases the best λ lies inside those tried, at a Σηλ of about {low:.0f} to {high:.0f} "
        f"({low:.2f} to {high:.2f})"
    )
    # what was found under a falling rate, in longer runs, says nothing of the others
    if why_refused(config):
        shortest = min(ratio for place in cases if (ratio := ratios(place)[0]) is not None)
        more = f"all read {shortest:.0f} tokens per parameter or more while η falls"
        return f"{text}; {more}. This run does not: no λ is taken from them."
    if one is None:
        return f"{text}."
    where = "" if decay_sum is None else f"this configuration has {decay_sum:.3g}, {_beside(decay_sum, low, high)}; "
    return f"{text}; {where}λ from {low / one:.3g} to {high / one:.3g} would lie there."


def _beside(value: float, low: float, high: float) -> str:
    return "below them" if value * EDGE < low else "above them" if value > high * EDGE else "among them"


def said_of_n(config: RunConfig) -> str:
    """What N counts, here and in the tables: the one line without which a number of tokens per parameter says nothing."""
    everything, blocks = ratios_of(config)
    # which sources mean the other N is said by the tables themselves
    counting = sorted({place.table.table for place in places() if place.table.counts == "blocks"})
    return (
        f"N is all {n_parameters(config.model):,} parameters, embeddings and head included: {everything:.3g} tokens per parameter. "
        f"Of the blocks' {block_parameters(config.gpt):,} alone it is {blocks:.3g}, which is how {', '.join(counting)} counts "
        "sizes and horizons."
    )
