"""Made-up runs of the sweeps on images that claims were declared for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis import declared_images
from analysis.command import Options, Result
from analysis.image_cells import Cell
from tests.recorded import load, write_run

Ends = Callable[[Cell], dict[str, float]]


def write(
    folder: Path, name: str, seed: int, ends: dict[str, float], cell: Cell, steps: int = 100, **fields: Any
) -> Path:
    """A run on images whose columns stay where they end, but for what the seed adds."""
    luck = 0.001 * np.random.default_rng([seed, *name.encode()]).standard_normal()
    every = {"train_eval/error": 0.0} | ends
    return write_run(
        folder / f"{name}-{seed}",
        decay=cell[1],
        seed=seed,
        steps=steps,
        noise=0,
        eval_every=10**6,
        columns={column: lambda s, k=end + luck: k + 0 * s for column, end in every.items()},  # type: ignore[misc]
        optim={"algorithm": "sgd", "decay_rule": "l2_coupled", "lr": cell[0]},
        data={"train_images": cell[2] or None},
        **fields,
    )


def sweep(root: Path, name: str, cells: tuple[Cell, ...], ends: Ends, seeds: int = 5, **fields: Any) -> list[Path]:
    return [
        write(root / name, f"{cell[0]:g}-{cell[1]:g}-{cell[2]}", seed, ends(cell), cell, **fields)
        for cell in cells
        for seed in range(seeds)
    ]


def analysed(paths: list[Path]) -> Result:
    return declared_images.analyse(load(*paths), Options())


def verdicts(paths: list[Path]) -> pd.DataFrame:
    """A row a comparison, of made-up runs."""
    return analysed(paths).tables["Claims"]


def first(text: str) -> float:
    return float(text.split()[0])
