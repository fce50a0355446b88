"""Run folders made up with known properties, as train.py would have recorded them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from analysis.reading import load_run
from analysis.runs import Run
from configs.load import merge
from record.metrics import MetricsLog
from record.run import RunFolder

Curve = Callable[[np.ndarray], np.ndarray]


def base_curve(step: np.ndarray) -> np.ndarray:
    return np.asarray(3 + 4 * np.exp(-step / 150))


def digest(reference: str) -> str:
    return hashlib.sha256(reference.encode()).hexdigest()


def create(folder: RunFolder, experiment: dict[str, Any]) -> None:
    """The folder, as a run of this experiment begins it."""
    config = merge(
        {"name": folder.path.name, "precision": "fp32", "branch": None, "numerics": {"divergence_margin": None}},
        experiment,
    )
    # In the identity a digest stands for another run, as in configs/identity.py.
    if experiment.get("branch"):
        chosen = {name: value for name, value in experiment["branch"].items() if name in ("data", "optimizer")}
        experiment = {**experiment, "branch": {**chosen, "digest": digest(experiment["branch"]["origin"])}}
    if experiment["schedule"].get("match"):
        match = {"digest": digest(experiment["schedule"]["match"]["reference"])}
        experiment = {**experiment, "schedule": {**experiment["schedule"], "match": match}}
    folder.create(config, config, merge(experiment, {"data": {"digest": "d" * 64}}), {"n_parameters": 1000})


def write_run(
    path: Path,
    curve: Curve = base_curve,
    *,
    decay: float = 0.0,
    seed: int = 0,
    steps: int = 1000,
    eval_every: int = 50,
    noise: float = 0.02,
    state: str = "done",
    upto: int | None = None,
    columns: dict[str, Curve] | None = None,
    probes: list[dict[str, Any]] | None = None,
    **fields: Any,
) -> Path:
    """A run of `curve` plus noise of the seed's own (the same for every λ, as the data order is), recorded up to step `upto`.

    `columns`: further measurements, by step. `probes`: rows of probes.jsonl. `fields`: sections of the configuration.
    """
    folder = RunFolder(path)
    given = {
        "optim": {"weight_decay": decay, "lr": 0.1},
        "seeds": {"init": seed, "data": seed},
        "schedule": {"steps": steps},
        "batch": {"tokens_per_step": 64},
        "model": {"n_layer": 2, "n_head": 1, "n_embd": 8, "seq_len": 8, "vocab_size": 64},
    }
    create(folder, merge(given, fields))
    every = np.arange(steps + 1)
    train = curve(every) + noise * np.random.default_rng(seed).standard_normal(steps + 1)
    extra = {name: values(every) for name, values in (columns or {}).items()}
    log = MetricsLog(folder.metrics)
    rows = []
    for step in range((steps if upto is None else upto) + 1):
        row: dict[str, Any] = {
            "step": step,
            "tokens": 64 * step,
            **{name: float(values[step]) for name, values in extra.items()},
        }
        if step:
            row["train/loss"] = float(train[step])
        if step % eval_every == 0 or step == steps:
            row["val/loss"] = float(curve(every)[step])
        rows.append(row)
    log.write(rows)
    log.close()
    if probes is not None:
        log = MetricsLog(folder.probes)
        log.write(probes)
        log.close()
    folder.write_status(state, rows[-1]["step"], steps)  # type: ignore[arg-type]
    return path


def load(*paths: Path) -> list[Run]:
    return [load_run(path) for path in paths]


def crossing_runs(root: Path, seeds: int) -> list[Path]:
    """λ = 0.3 starts 0.1 above λ = 0 and falls below it at step 750, give or take what the seed adds."""
    paths = []
    for seed in range(seeds):
        shift = 0.1 + 0.002 * (seed - (seeds - 1) / 2)
        paths.append(write_run(root / f"a{seed}", seed=seed))
        paths.append(
            write_run(root / f"b{seed}", lambda s, k=shift: base_curve(s) + k * (1 - s / 750), decay=0.3, seed=seed)  # type: ignore[misc]
        )
    return paths


def cell_runs(root: Path, optim: dict[str, Any], losses: list[float], first_seed: int = 0) -> list[Run]:
    """Runs of one section `optim`, a seed each, that end at these losses over the whole validation split."""
    fields = {"decay_rule": "decoupled", "algorithm": "adam", "momentum": 0.9, "betas": [0.9, 0.95]} | optim
    name = "-".join(map(str, optim.values()))
    paths = [
        write_run(
            root / f"{name}-{first_seed + i}",
            lambda s: 3 + 0 * s,
            decay=optim["weight_decay"],
            seed=first_seed + i,
            steps=60,
            noise=0,
            columns={"val/final_loss": lambda s, k=loss: k + 0 * s},  # type: ignore[misc]
            optim=fields,
            eval={"final_tokens": "all"},
        )
        for i, loss in enumerate(losses)
    ]
    return load(*paths)
