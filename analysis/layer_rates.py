"""η/‖w_l‖² of each normalised layer, and its norm: P2's first mechanism, of runs with log.tensor_norms."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.runs import Run
from configs.equilibrium import LR_POWERS
from record.metrics import TENSOR_NORM


def normalised(run: Run) -> list[str]:
    """The matrices whose outputs a normalisation takes at once, first layer first, as far as the run recorded their norms."""
    return [name for name, tensor in run.tensors.items() if tensor.followed_by and TENSOR_NORM + name in run.metrics]


def norm_of(run: Run, name: str) -> pd.Series:
    """‖w_l‖ after each update."""
    return run.column(TENSOR_NORM + name)


def layer_rate(run: Run, name: str) -> pd.Series:
    """η_s/‖w_l‖² of update s, of Adam η_s/‖w_l‖, by w before the update. Empty where no law is known, as of K-FAC: there C⁻¹∇L
    itself grows with ‖w_l‖, so that the norm takes nothing from η."""
    power = LR_POWERS.get(run.algorithm)
    if power is None:
        return pd.Series(dtype=float)
    norm = norm_of(run, name) ** power
    # the norm before the update: the row of step s has the norm after it, so it counts for s + 1
    return (run.column("optim/lr") / pd.Series(norm.to_numpy(), index=norm.index + 1)).dropna()


def spread(names: list[str], most: int) -> list[str]:
    """At most so many of the layers, first and last among them, evenly between."""
    places = np.linspace(0, len(names) - 1, min(most, len(names))).round().astype(int)
    return [names[place] for place in dict.fromkeys(places.tolist())]
