"""Losses at the end of other people's runs (analysis/outside_tables.py), as levels under runs of the same experiment.

The same means: model, tokens of an update, horizon, optimiser, schedule and precision, and tokens of the same tokenizer. A run
that differs in one of them has no level, and a note says why where it is of a table's setting but for what no field can say.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from analysis.command import Options
from analysis.figures import Line
from analysis.outside_tables import Case, Place, Row, places
from analysis.published import is_alike, tokenizer_of
from analysis.runs import LAMBDA, PRECISION, Run, flatten
from configs.identity import experiment

# Which data it is cannot be told from a folder, in which order it is read is no other experiment; passes over it are one.
FREE = (LAMBDA, PRECISION, "data.digest", "data.order", "data.train_tokens", "eval.", "seeds.")
GREYS = ("#555555", "#777777", "#999999", "#bbbbbb")  # dark to light with λ, as the runs' own colours


@cache
def _settings() -> tuple[tuple[Place, dict[str, Any], frozenset[str]], ...]:
    """Every case that fields express, its fields, and the names of those that make the experiment."""
    known = [(place, config) for place in places() if (config := place.config) is not None]
    return tuple(
        (place, flatten(config.model_dump(mode="json")), frozenset(flatten(experiment(config, ""))))
        for place, config in known
        # of an optimiser that none of ours is, the fields are those of another one
        if place.case.algorithm is not None
    )


def setting_of(run: Run) -> Place | None:
    """The case whose setting a run has, as far as fields express it, whatever its tokens are."""
    for place, fields, varied in _settings():
        if run.fields.get(PRECISION) in place.table.precisions and is_alike(run, fields, varied, FREE):
            return place
    return None


def row_of(run: Run) -> tuple[Place, Row] | None:
    """The published value that may lie under a run: of its own experiment, its own λ, and tokens of the same kind, or of tokens
    that nobody recorded. A λ that diverged there has no level."""
    place = setting_of(run)
    if place is None or not place.case.laid or not _same_tokens(run, place):
        return None
    # a λ between the published ones has no value: nothing is interpolated
    row = next((row for row in place.case.rows if row.weight_decay == run.fields.get(LAMBDA)), None)
    return None if row is None or row.value is None else (place, row)


def _same_tokens(run: Run, place: Place) -> bool:
    theirs = place.table.tokenizer
    if theirs is None or not tokenizer_of(run):
        return True
    # a run of an older version recorded no size: then the kind alone decides
    size = run.data.get("vocab_size", theirs.vocab_size)
    return tokenizer_of(run) in theirs.kinds and size == theirs.vocab_size


def published_levels(runs: list[Run], options: Options) -> list[Line]:
    """A horizontal line for each published value that lies under some run, with the band that its source counts as equal."""
    # one line for all seeds of a setting and λ
    rows: dict[tuple[str, float], tuple[Place, Row, Run]] = {}
    for run in runs:
        if (known := row_of(run)) is not None:
            rows.setdefault((known[0].name, known[1].weight_decay), (*known, run))
    lines = []
    for place, row, run in rows.values():
        decays = [other.weight_decay for other in place.case.rows]
        shade = GREYS[decays.index(row.weight_decay) * len(GREYS) // len(decays)]
        # three points: a line of two would not count for the range of the axis (figures.after_the_start)
        x = np.linspace(0.0, run.fields["schedule.steps"] * options.per_step(run), 3)
        lines.append(_level(place, row, x, shade))
    return lines


def settings_under(runs: list[Run]) -> list[Place]:
    """The published settings of which a value lies under some run."""
    return list({known[0].name: known[0] for run in runs if (known := row_of(run)) is not None}.values())


def published_points(settings: list[Place], place: Callable[[float], float]) -> list[Line]:
    """Loss at the end against λ of each setting, all its λ. `place`: where a λ stands on the axis."""
    lines = []
    for setting in settings:
        # a λ that diverged there has no point
        rows = [row for row in setting.case.rows if row.value is not None]
        x = np.array([place(row.weight_decay) for row in rows])
        y = np.array([_nats(setting.case, row) for row in rows])
        low, high = _band(setting, y)
        lines.append(Line(x, y, f"published, {setting.name}", GREYS[1], "dot", low, high, points=True))
    return lines


def _level(place: Place, row: Row, x: np.ndarray, shade: str) -> Line:
    """Grey and dotted, so that nobody takes it for a run."""
    y = np.full(len(x), _nats(place.case, row))
    low, high = _band(place, y)
    name = f"published, {place.name}, λ = {row.weight_decay:g}"
    return Line(x, y, name, shade, "dot", low, high, keys={"λ": f"{row.weight_decay:g}"})


def _band(place: Place, y: np.ndarray) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
    """From the least to the most that counts as equal to y; nothing where the source does not say what does."""
    tolerance = place.table.tolerance
    return (y - tolerance, y + tolerance) if tolerance else (None, None)


def _nats(case: Case, row: Row) -> float:
    assert row.value is not None, "row_of gives none that diverged"
    return case.nats(row.value)


def notes_on_levels(runs: list[Run]) -> list[str]:
    """Of every table whose setting some runs have: what its values are of, what counts as equal there, or why none is drawn."""
    # each setting once, in the order in which the runs have them
    alike: dict[str, tuple[Place, list[Run]]] = {}
    for run in runs:
        if (place := setting_of(run)) is not None:
            alike.setdefault(place.name, (place, []))[1].append(run)
    return [note for place, its in alike.values() for note in _notes(place, its)]


def _notes(place: Place, alike: list[Run]) -> list[str]:
    table, case, name = place.table, place.case, place.name
    if not case.laid:
        why = "; ".join(place.not_expressed)
        return [f"{name}: its values are not laid under these runs, which have its fields, for no field says: {why}"]
    notes = []
    others = sorted({tokenizer_of(run) for run in alike if not _same_tokens(run, place)})
    if others:
        size = f"{table.tokenizer.name}, {table.tokenizer.vocab_size:,} of them" if table.tokenizer else "others"
        notes.append(
            f"{name}: published values are not laid under runs whose tokens are those of {', '.join(others)}: there they are "
            f"{size}, and losses per token of two tokenizers do not compare"
        )
    # what is drawn, and under which caveats
    same = [run for run in alike if _same_tokens(run, place)]
    if not same:
        return notes
    notes.append(
        f"{name}: published values are from {table.short} ({table.corpus}); whether these runs read the same data cannot be told. "
        f"Equal there: {table.tolerance_means}. Not in the fields: {'; '.join(place.not_expressed)}"
    )
    # the kind and the size are all that was recorded
    vague = sorted({tokenizer_of(run) for run in same} & {"huggingface", "unknown", "sentencepiece"})
    if vague and table.tokenizer is not None:
        notes.append(
            f"{name}: tokens recorded as {', '.join(vague)}, {table.tokenizer.vocab_size:,} of them, are taken for "
            f"{table.tokenizer.name}"
        )
    if any(not tokenizer_of(run) for run in same):
        notes.append(
            f"{name}: some runs have not recorded their tokenizer; values are laid under them as if it were the same"
        )
    # a divergence there is a result too, and has no place on an axis of losses
    gone = [row for row in case.rows if row.diverged and any(run.decay == row.weight_decay for run in same)]
    notes += [f"{name}: λ = {row.weight_decay:g} diverged there, and has no level" for row in gone]
    return notes
