"""What papers have printed, read from analysis/papers/*.json (each with its source and how it was read), and P1's curves as
lines to lay under runs of the same experiment."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.command import Options
from analysis.figures import Line
from analysis.runs import LAMBDA, PRECISION, Run, flatten
from configs.identity import experiment
from configs.load import load_config
from record.files import read_object

ROOT = Path(__file__).resolve().parent.parent
P1 = "2310.04415"
FREE = (LAMBDA, PRECISION, "data.", "eval.", "seeds.")  # the data cannot be told from a folder: the caller says so
PRECISIONS = ("fp32", "tf32", "bf16-mixed")


@cache
def paper(number: str) -> dict[str, Any]:
    """What is kept of a paper, by its arXiv number."""
    return read_object(ROOT / "analysis" / "papers" / f"{number}.json")


def curves(what: str) -> dict[float, pd.Series]:
    """λ → loss by step, of P1's "cosine" runs or of its "branches"."""
    # JSON has no numbers as keys
    kept = paper(P1)[what]
    return {float(decay): pd.Series(losses, index=kept["steps"]) for decay, losses in kept["loss"].items()}


@cache
def _recipe() -> tuple[dict[str, Any], frozenset[str]]:
    config = load_config(ROOT / paper(P1)["recipe"])[0]
    return flatten(config.model_dump(mode="json")), frozenset(flatten(experiment(config, "")))


def same_experiment(run: Run) -> bool:
    """Whether a run is of the paper's recipe in every field that makes the experiment, but for λ, precision, seeds and data."""
    fields, varied = _recipe()
    return run.fields.get(PRECISION) in PRECISIONS and is_alike(run, fields, varied, FREE)


def is_alike(run: Run, fields: dict[str, Any], varied: Collection[str], free: tuple[str, ...]) -> bool:
    """Whether a run has these `fields` wherever either it or the experiment, by its `varied` names, differs from the defaults.
    Names that begin with one of `free` are not asked."""
    # also fields that only this run varies: they may be none of the recipe's
    names = {name for name in {*varied, *run.varied} if not name.startswith(free)}
    return all(run.fields.get(name) == fields.get(name) for name in names)


def tokenizer_of(run: Run) -> str:
    """The kind of tokenizer that a run's latest start recorded; empty for a run of an older version, which recorded none."""
    return str(run.data.get("tokenizer", ""))


def comparable(run: Run) -> bool:
    """Whether the paper's losses may lie under a run's: its experiment, in its tokens, or in tokens that nobody recorded."""
    return same_experiment(run) and tokenizer_of(run) in (paper(P1)["tokenizer"], "")


def notes_on(runs: list[Run]) -> list[str]:
    """Why the paper's curves are not under runs of its recipe, or what is not known of those that they are under."""
    alike = [run for run in runs if same_experiment(run)]
    others = sorted({tokenizer_of(run) for run in alike if not comparable(run)})
    notes = []
    # nats per token are of one's own tokens: a tokenizer with longer ones has larger losses
    if others:
        notes.append(
            f"published curves are not laid under runs whose tokens are those of {', '.join(others)}: the paper's are GPT-2's, and "
            "losses per token of two tokenizers do not compare"
        )
    if any(comparable(run) for run in alike):
        notes.append("published curves are of OpenWebText; whether these runs read the same data cannot be told")
    if any(not tokenizer_of(run) for run in alike):
        notes.append(
            "some runs have not recorded their tokenizer; published curves are laid under them as if it were GPT-2's"
        )
    return notes


def published_lines(runs: list[Run], options: Options) -> list[Line]:
    """The paper's curve of every λ that the runs have, where they are its experiment."""
    # a λ that the paper did not draw has no line
    cosine = curves("cosine")
    decays = sorted({run.fields[LAMBDA] for run in runs if comparable(run)} & set(cosine))
    return [published_line(cosine[decay], decay, options, {"λ": f"{decay:g}"}) for decay in decays]


def published_line(curve: pd.Series, decay: float, options: Options, keys: dict[str, str], more: str = "") -> Line:
    """Grey points over what the x axis shows."""
    # grey and dotted, so that nobody takes it for a run
    x = curve.index.to_numpy(dtype=float) * (paper(P1)["tokens_per_step"] if options.tokens else 1)
    name = f"published, λ = {decay:g}{more}"
    return Line(x, np.asarray(curve, dtype=float), name, "#888888", "dot", points=True, keys=keys)
