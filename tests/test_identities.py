"""Ids and plan figures of everything that is shipped. What rearranges code leaves this table alone.

An id that changes would make a run that was begun yesterday another experiment today. A new configuration or sweep adds
lines: `python -m tests.test_identities` writes the table anew, and the diff of it says what changed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from configs.load import load_config
from configs.plan import make_plan
from configs.precision import TABLE as DTYPES
from configs.prepared import DataSummary, ImageSummary, Prepared
from configs.schema import RunConfig
from configs.sweep import all_cells, expand
from tests.processes import ROOT

TABLE = Path(__file__).parent / "identities.json"
# No real data: its digest is part of every id.
DATA = DataSummary("0" * 64, 256, 10**11, 10**7, 10**6)
RANKS = {"tokens": (1, 8), "images": (1,)}  # batch normalisation has one micro-batch
IMAGES = {  # by the folder's name: shape, classes, training and validation images as data.prepare_images makes them
    name: ImageSummary("0" * 64, *counts)
    for name, counts in {
        "mnist5k-noise": ((1, 28, 28), 10, 4_000, 1_000),
        "cifar10": ((3, 32, 32), 10, 50_000, 10_000),
        "cifar100": ((3, 32, 32), 100, 50_000, 10_000),
        "tiny-imagenet": ((3, 64, 64), 200, 100_000, 10_000),
        "cifar5m": ((3, 32, 32), 10, 5_942_661, 60_027),  # of 6,002,688, a hundredth for validation
    }.items()
}
FIGURES = (
    "micro_batch", "micro_steps", "first_window", "n_parameters", "flops_per_unit", "state_bytes", "activation_bytes",
    "communication_bytes", "checkpoint_bytes", "checkpoints", "lr_sum", "decay_sum",
)  # fmt: skip
CONFIGS = sorted(path for path in (ROOT / "configs").glob("*.json") if path.name != "config.schema.json")
SWEEPS = sorted((ROOT / "configs" / "sweeps").glob("*.json"))


def summary(path: str) -> Prepared:
    return IMAGES.get(Path(path).name, DATA)


def figures(config: RunConfig, ranks: int = 1) -> list[Any]:
    """The plan's figures, then each group: tensors, parameters, λ."""
    plan = make_plan(config, ranks, summary(config.data.path))
    groups = [[name, g.tensors, g.parameters, g.weight_decay] for name, g in plan.groups.items()]
    return [plan.run_id, *(getattr(plan, name) for name in FIGURES), groups]


def table(path: Path) -> dict[str, list[Any]]:
    """Of a configuration: its plan on one rank and on eight at every ZeRO stage. Of a sweep: each cell's folder and plan."""
    if path.parent.name != "sweeps":
        plans: dict[str, list[Any]] = {}
        has_masters = DTYPES[load_config(path)[0].precision].weights == "float32"
        for stage in range(4) if has_masters else range(1, 4):  # bfloat16 weights are refused at stage 0
            config = load_config(path, [f"parallel.zero_stage={stage}"])[0]
            plans |= {f"stage {stage}, {ranks} ranks": figures(config, ranks) for ranks in RANKS[config.unit]}
        return plans
    _, stages = expand(path, Path("runs"), summary)
    return {cell.folder.name: figures(cell.config) for cell in all_cells(stages)}


@pytest.mark.parametrize(
    "path", [*CONFIGS, *(pytest.param(path, marks=pytest.mark.slow) for path in SWEEPS)], ids=lambda path: path.stem
)
def test_ids_and_figures(path: Path) -> None:
    """Breaks if a shipped run gets another id, another group, or another number in its plan."""
    expected = json.loads(TABLE.read_text())[str(path.relative_to(ROOT))]
    found = json.loads(json.dumps(table(path)))
    assert sorted(found) == sorted(expected)
    for name, row in found.items():
        for label, ours, theirs in zip(("run_id", *FIGURES, "groups"), row, expected[name], strict=True):
            assert ours == (pytest.approx(theirs, rel=1e-12) if isinstance(theirs, float) else theirs), (
                f"{name}: {label}"
            )


if __name__ == "__main__":
    rows = {
        str(path.relative_to(ROOT)): {name: json.dumps(row) for name, row in table(path).items()}
        for path in CONFIGS + SWEEPS
    }
    text = json.dumps(rows, indent=1)
    for found in rows.values():
        for row in found.values():
            text = text.replace(json.dumps(row), row)
    TABLE.write_text(text + "\n")
