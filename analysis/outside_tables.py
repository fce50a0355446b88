"""Other people's tables of λ, read from analysis/outside/*.json: what was trained, what each λ gave, and what its source counts
as equal.

A case is one column of a table: one setting at several λ. Its setting is written as fields of our configuration, laid over the
table's recipe; what these fields cannot say stands beside them in words. Figures and advice both read from here.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import model_validator

from configs.errors import InputError
from configs.load import load_config, validate_as
from configs.schedule import lr_sum
from configs.schema import RunConfig
from configs.section import Section, setting
from record.files import read_object

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "analysis" / "outside"


class Row(Section):
    weight_decay: float = setting(..., "λ, as the source writes it", ge=0)
    value: float | None = setting(..., "what it gave, in the case's unit; null where the run diverged")
    diverged: bool = setting(False, "the source says so, or prints a loss that no trained model has")
    seeds: int | None = setting(None, "runs that the value is a mean of; null: the table's", ge=1)

    @model_validator(mode="after")
    def _a_value_or_diverged(self) -> Row:
        if (self.value is None) != self.diverged:
            raise InputError(f"λ = {self.weight_decay:g}: a row has a value, or null and diverged true")
        return self


class Case(Section):
    name: str = setting(..., "model and horizon, for a reader", min_length=1)
    optimiser: str = setting(..., "as the source calls it", min_length=1)
    algorithm: str | None = setting(..., "optim.algorithm; null: none of ours is it")
    decay_rule: str = setting(..., "optim.decay_rule")
    parameters: float = setting(..., "N as the source counts it", gt=0)
    tokens: float | None = setting(..., "read in the whole run; null: not known", gt=0)
    unit: Literal["nats", "perplexity", "updates", "rank"] = setting(..., "of the rows' values; less is better in all")
    laid: bool = setting(
        ..., "whether a run of these fields is this experiment, so that its values may lie under the run"
    )
    fields: dict[str, Any] = setting(..., "dotted fields of a configuration, over the table's recipe")
    not_expressed: tuple[str, ...] = setting((), "what of this setting alone the fields do not say")
    rows: tuple[Row, ...] = setting(..., "by λ, rising", min_length=1)

    @model_validator(mode="after")
    def _rising(self) -> Case:
        # whether the best is at an end is read off the first row and the last
        decays = [row.weight_decay for row in self.rows]
        if decays != sorted(set(decays)):
            raise InputError(f"{self.name}: rows must rise in weight_decay, each λ once; they are {decays[:8]}")
        return self

    def nats(self, value: float) -> float:
        """A value of a row as a loss: perplexity is its exponential."""
        return math.log(value) if self.unit == "perplexity" else value

    @property
    def is_loss(self) -> bool:
        return self.unit in ("nats", "perplexity")

    @property
    def best(self) -> Row:
        return min(self.rows, key=lambda row: math.inf if row.value is None else row.value)

    @property
    def at_zero(self) -> Row | None:
        """The row of λ = 0, if there is one."""
        return self.rows[0] if self.rows[0].weight_decay == 0 else None

    @property
    def gain(self) -> float | None:
        """Nats by which the best λ is below λ = 0; None where no loss of λ = 0 is published."""
        if not self.is_loss or self.at_zero is None or self.at_zero.value is None or self.best.value is None:
            return None
        return self.nats(self.at_zero.value) - self.nats(self.best.value)

    def is_interior(self, tolerance: float | None) -> bool:
        """Whether the lowest loss lies between λ that were tried, below both ends by more than what counts as equal."""
        first, last, lowest = self.rows[0].value, self.rows[-1].value, self.best.value
        # beside a run that diverged nothing is known of the loss on that side
        if not self.is_loss or first is None or last is None or lowest is None:
            return False
        # digits of the table, and not of the binary numbers that stand for them
        return self.nats(min(first, last)) - self.nats(lowest) > (tolerance or 0.0) + 1e-9


class Tokenizer(Section):
    name: str = setting(..., "whose it is", min_length=1)
    kinds: tuple[str, ...] = setting(
        ..., "what a run over such tokens may have recorded (data/manifest.py); none: no data prepared here has them"
    )
    vocab_size: int = setting(..., "of its tokens, before padding", ge=2)


class Table(Section):
    table: str = setting(..., "T1, T2, …: its name in docs/models.md", pattern=r"^[PT][0-9]+$")
    source: str = setting(..., "paper or repository, and the table in it", min_length=1)
    shows: str = setting(..., "what the numbers are", min_length=1)
    how: str = setting(..., "how they came here", min_length=1)
    corpus: str = setting(..., "what was read, and what the loss is of", min_length=1)
    recipe: str | None = setting(
        ..., "configuration that the cases' fields lie over; null: the setting is not known whole"
    )
    precisions: tuple[str, ...] = setting(..., "of runs that its values may lie under")
    tokenizer: Tokenizer | None = setting(..., "losses per token of another do not compare")
    counts: Literal["blocks", "all"] | None = setting(..., "what N counts; null: not said")
    tolerance: float | None = setting(..., "nats that count as equal; null: none is stated", gt=0)
    tolerance_means: str = setting(..., "the same in words", min_length=1)
    seeds: int | None = setting(..., "runs behind each value; null: not stated, or each row's own", ge=1)
    not_expressed: tuple[str, ...] = setting((), "what of the settings no field says")
    cases: tuple[Case, ...] = setting(..., "one setting at several λ each", min_length=1)

    @model_validator(mode="after")
    def _fields_have_a_recipe(self) -> Table:
        # fields over nothing would be a setting that nobody trained
        bare = [case.name for case in self.cases if (case.fields or case.laid) and self.recipe is None]
        if bare:
            raise InputError(f"{self.table}: {bare[0]} has fields, or is laid under runs, and there is no recipe")
        return self

    @property
    def short(self) -> str:
        """The repository or paper alone."""
        return self.source.partition(",")[0]


@dataclass(frozen=True)
class Place:
    """A case in its table."""

    table: Table
    case: Case

    @property
    def name(self) -> str:
        return f"{self.table.table} {self.case.name}, {self.case.optimiser}"

    @property
    def config(self) -> RunConfig | None:
        """The setting as far as our fields say it; None where the source, or what was noted of it, does not give it whole."""
        return None if self.table.recipe is None else _config(self.table.recipe, json.dumps(self.case.fields))

    @property
    def lr_sum(self) -> float | None:
        """Ση over the run, computed from the setting."""
        return None if self.config is None else lr_sum(self.config)

    @property
    def is_interior(self) -> bool:
        return self.case.is_interior(self.table.tolerance)

    @property
    def decay_sum(self) -> float | None:
        """λ·Ση of the best λ; None where the schedule is not known, or λ is no multiple of the weights but in the gradient."""
        # of L2 under Adam λ is no rate of decay: what it takes of a weight follows from the gradients
        total = self.lr_sum if self.case.decay_rule == "decoupled" else None
        return None if total is None else total * self.case.best.weight_decay

    @property
    def not_expressed(self) -> tuple[str, ...]:
        return (*self.table.not_expressed, *self.case.not_expressed)


@cache
def _config(recipe: str, fields: str) -> RunConfig:
    # read as --set is, so that a field that no longer exists, or may not have the value, is refused here too
    settings = [f"{name}={json.dumps(value)}" for name, value in json.loads(fields).items()]
    return load_config(ROOT / recipe, settings)[0]


def read_table(path: Path) -> Table:
    """One file. InputError that names it and what is wrong with it."""
    try:
        return validate_as(Table, read_object(path), str(path))
    except FileNotFoundError:
        raise InputError(f"{path} is missing; it is part of the source: restore it") from None


@cache
def tables(folder: Path) -> tuple[Table, ...]:
    """All of a folder, by name. InputError for a damaged file, or where there are none."""
    # an empty folder is a damaged copy of the source, and not a world without tables
    read = tuple(read_table(path) for path in sorted(folder.glob("*.json")))
    if not read:
        raise InputError(f"{folder} holds no tables; they are part of the source: restore them")
    return read


def places() -> tuple[Place, ...]:
    """Every case of every table."""
    return tuple(Place(table, case) for table in tables(FOLDER) for case in table.cases)
