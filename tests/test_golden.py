"""A golden curve: a change that should not change numbers leaves it alone; one that should, changes it and says why.

Recorded with `python -m tests.test_golden` (CPU, float32, one thread).
Bits depend on the CPU's instruction set, hence the tolerance.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest

from configs.load import validate
from data.manifest import read_manifest
from tests.ranks import run_ranks
from tests.synthetic import write_synthetic

GOLDEN = Path(__file__).parent / "golden.json"
TOLERANCE = 2e-5  # relative, on losses; norms after 20 updates
CONFIG: dict[str, Any] = {
    "name": "golden",
    "model": {"n_layer": 2, "n_head": 2, "n_embd": 32, "seq_len": 32, "vocab_size": 64, "init_std": 0.02},
    "optim": {"lr": 3e-3, "weight_decay": 0.3},
    "schedule": {"warmup_steps": 4, "steps": 20},
    "batch": {"tokens_per_step": 512, "micro_batch": 4},
    "parallel": {"zero_stage": 1, "threads_per_rank": 1},
}


def golden_run(folder: Path) -> list[dict[str, float]]:
    from engine.launch import start_world
    from tests.live import make_training, train_steps

    config = validate({**CONFIG, "data": {"path": str(folder)}}, "golden")
    manifest = read_manifest(folder)
    assert manifest is not None
    world = start_world("golden", 60, 1)
    steps = train_steps(make_training(config, manifest, world), range(20))
    return [{"loss": s.loss, "grad_norm": s.grad_norm, "norm": s.norm, "norm_decayed": s.norm_decayed} for s in steps]


def record() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        manifest = write_synthetic(Path(folder), 20_000)
        return {"data": manifest.digest, "rows": run_ranks(1, golden_run, Path(folder))[0]}


@pytest.mark.engine
def test_golden_curve() -> None:
    """Breaks if anything between the tokens and the optimiser changes its numbers."""
    expected, found = json.loads(GOLDEN.read_text()), record()
    assert found["data"] == expected["data"], "the synthetic data changed, not the training"
    for step, (ours, theirs) in enumerate(zip(found["rows"], expected["rows"], strict=True)):
        assert ours == pytest.approx(theirs, rel=TOLERANCE), f"update {step}"
    assert expected["rows"][-1]["loss"] < 0.9 * expected["rows"][0]["loss"], "a golden run must learn something"


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(record(), indent=1) + "\n")
