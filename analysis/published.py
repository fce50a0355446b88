"""P1's published figures (arXiv 2310.04415v2, digitised, ±0.003), to lay under runs of the same experiment."""

from __future__ import annotations

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

# Training loss of the cosine runs at 124M: step → loss, by λ.
STEPS = (10_000, 15_000, 20_000, 25_000, 30_000, 40_000, 45_000, 50_000)
COSINE = {
    0.0: (3.640, 3.544, 3.472, 3.442, 3.394, 3.318, 3.309, 3.298),
    0.1: (3.662, 3.576, 3.505, 3.472, 3.419, 3.317, 3.296, 3.278),
    0.3: (3.716, 3.643, 3.576, 3.540, 3.478, 3.350, 3.313, 3.288),
}
# Loss at the end of 10,000 steps at learning rate 1e-5 without decay, from each of these steps (±0.006).
BRANCH_STEPS = (10_000, 20_000, 30_000, 40_000, 50_000)
BRANCHES = {
    0.0: (3.49, 3.355, 3.31, 3.285, 3.271),
    0.1: (3.49, 3.36, 3.305, 3.263, 3.243),
    0.3: (3.49, 3.38, 3.31, 3.258, 3.228),
}
RECIPE = Path(__file__).resolve().parent.parent / "configs" / "gpt124m_wd0.json"
FREE = (LAMBDA, PRECISION, "data.", "eval.", "seeds.")  # the data cannot be told from a folder: the caller says so
PRECISIONS = ("fp32", "tf32", "bf16-mixed")


@cache
def _recipe() -> tuple[dict[str, Any], frozenset[str]]:
    config = load_config(RECIPE)[0]
    return flatten(config.model_dump(mode="json")), frozenset(flatten(experiment(config, "")))


def same_experiment(run: Run) -> bool:
    """Whether a run is of the paper's recipe in every field that makes the experiment, but for λ, precision, seeds and data."""
    fields, varied = _recipe()
    names = {name for name in varied | run.varied if not name.startswith(FREE)}
    return run.fields.get(PRECISION) in PRECISIONS and all(run.fields.get(n) == fields.get(n) for n in names)


def published_lines(runs: list[Run], options: Options) -> list[Line]:
    """The paper's curve of every λ that the runs have, where they are its experiment."""
    decays = sorted({run.fields[LAMBDA] for run in runs if same_experiment(run)} & set(COSINE))
    scale = 65_536 if options.tokens else 1
    x = np.array(STEPS, dtype=float) * scale
    return [
        Line(x, np.array(COSINE[d]), f"published, λ = {d:g}", "#888888", "dot", points=True, keys={"λ": f"{d:g}"})
        for d in decays
    ]


def branch_curve(decay: float) -> pd.Series | None:
    values = BRANCHES.get(decay)
    return None if values is None else pd.Series(values, index=BRANCH_STEPS)
