"""Runs that an older version of the code trained: today's resumes one, and reads all of them, as that version did.

tests/kept/runs holds what `python -m slurm.submit` of revision d8cac02 left of two λ, two seeds and a branch of each (tokens by
tests/synthetic.py), one with its checkpoint of step 20 of 40. tables.json is what that revision's analyses said of them
(`python -m tests.test_kept` writes it anew: only where an analysis is changed on purpose).
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from analysis.command import Options, load_runs
from analysis.report import results_of
from configs.load import merge
from tests.processes import finish, rows_of, start
from tests.ranks import run_ranks
from tests.synthetic import write_synthetic

KEPT = Path(__file__).parent / "kept"
RUN = KEPT / "runs" / "weight_decay0.3-seeds0-6c8b58af85"
TABLES = KEPT / "tables.json"
TOLERANCE = 2e-5  # relative: bits depend on the processor's instruction set


def numbers() -> dict[str, list[list[Any]]]:
    """Every table of every analysis of the kept runs, row by row; what a column is called may change."""
    runs, _ = load_runs([str(KEPT / "runs")], Path("runs"))
    results, _ = results_of(runs, Options())
    rows = {}
    for result in results:
        for index, table in enumerate(result.tables.values()):
            rows[f"{result.name} {index}"] = json.loads(table.to_json(orient="values", double_precision=12))
    return rows


def same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12)
    return bool(one == other)


def test_analyses_read_alike() -> None:
    """Breaks if a run of an older version gives another table today."""
    expected, found = json.loads(TABLES.read_text()), numbers()
    assert sorted(found) == sorted(expected)
    for name, rows in found.items():
        for row, (ours, theirs) in enumerate(zip(rows, expected[name], strict=True)):
            assert all(map(same, ours, theirs)), f"{name}, row {row}: {ours} was {theirs}"


def test_a_rule_of_then(tmp_path: Path) -> None:
    """Breaks if a run of the rule "none", which no configuration may ask for today, is not analysed as what it was."""
    runs = shutil.copytree(KEPT / "runs", tmp_path / "runs")
    for path in runs.glob("weight_decay0-*/config.json"):
        path.write_text(path.read_text().replace('"decoupled"', '"none"'))
        fields = json.loads((path.parent / "experiment.json").read_text())
        (path.parent / "experiment.json").write_text(json.dumps(merge(fields, {"optim": {"decay_rule": "none"}})))
    loaded, notes = load_runs([str(runs)], tmp_path)
    assert sorted(run.fields["optim.decay_rule"] for run in loaded) == ["decoupled"] * 4 + ["none"] * 4
    results, more = results_of(loaded, Options())
    assert not notes
    assert not more
    assert "none" in results[0].tables["Losses"].to_string()


@pytest.mark.engine
def test_resumes(tmp_path: Path) -> None:
    """Breaks if a run that an older version began does not go on today, on the same windows, to the same losses."""
    write_synthetic(tmp_path / "data", 60_000)
    shutil.copytree(RUN, tmp_path / "run")
    expected = rows_of(RUN)
    order = json.loads((RUN / "status.json").read_text())["order_digest"]
    finish(
        start(
            RUN / "config.json", tmp_path / "run", "--data", str(tmp_path / "data"), "--resume", "must", "--step", "20"
        )
    )
    assert json.loads((tmp_path / "run" / "status.json").read_text())["order_digest"] == order
    found = rows_of(tmp_path / "run")
    assert sorted(found) == sorted(expected)
    for step in range(21, 41):
        for key, value in expected[step].items():
            if key.split("/")[0] in ("train", "optim", "weights", "norm", "val"):
                assert found[step][key] == pytest.approx(value, rel=TOLERANCE), f"step {step}: {key}"


def load_and_save(data: Path, out: Path) -> None:
    """Load the kept checkpoint into an engine, and save what is there again."""
    from configs.load import read_json, validate
    from data.manifest import read_manifest
    from engine import checkpoint
    from engine.launch import start_world
    from tests.live import make_training

    config = validate({**read_json(RUN / "config.json"), "data": {"path": str(data)}}, "kept")
    manifest = read_manifest(data)
    assert manifest is not None
    fragments = make_training(config, manifest, start_world("kept", 60, 1)).engine.fragments
    counters = checkpoint.load(RUN / "checkpoints" / "step_00000020", fragments)
    checkpoint.save(out, 20, fragments, counters, {})


@pytest.mark.engine
@pytest.mark.parametrize("ranks", [1, 2])
def test_checkpoint_bit_for_bit(tmp_path: Path, ranks: int) -> None:
    """Breaks if what an older version saved is not, to the bit, what is trained on today."""
    write_synthetic(tmp_path / "data", 60_000)
    run_ranks(ranks, load_and_save, tmp_path / "data", tmp_path / "out")
    kept, again = RUN / "checkpoints" / "step_00000020", tmp_path / "out" / "step_00000020"
    names = sorted(path.name for path in kept.glob("*.safetensors"))
    assert names == sorted(path.name for path in again.glob("*.safetensors")) != []
    for name in names:
        assert (kept / name).read_bytes() == (again / name).read_bytes(), name
    counters = [json.loads((folder / "manifest.json").read_text())["counters"] for folder in (kept, again)]
    assert counters[0] == counters[1]


if __name__ == "__main__":
    TABLES.write_text("{\n" + ",\n".join(f" {json.dumps(n)}: {json.dumps(r)}" for n, r in numbers().items()) + "\n}\n")
