"""Runs that start from a model of elsewhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from configs.transformer import Model
from record.metrics import read_metrics
from tests.processes import ConfigFile, finish, finish_ranks, losses, start
from weights.hf import convert

pytestmark = pytest.mark.engine

AS_WEIGHTS = ("--set", "branch.optimizer=drop", "--set", "branch.data=restart")


def folder_of(run: Path, step: int, out: Path) -> None:
    """A run's checkpoint as a folder of transformers, without a tokenizer."""
    model = Model.model_validate(json.loads((run / "config.json").read_text())["model"])
    config, tensors = convert(model, load_file(run / f"checkpoints/step_{step:08d}/weights.safetensors"), 0)
    out.mkdir()
    (out / "config.json").write_text(json.dumps(config))
    save_file(tensors, out / "model.safetensors")


def test_a_run_starts_from_a_folder(config_file: ConfigFile, tmp_path: Path) -> None:
    """Breaks if the start is not these weights at every ZeRO stage, the folder's numbers are not in the run's identity, a resume
    needs the folder again, or more than weights is taken for granted."""
    trunk, folder = tmp_path / "trunk", tmp_path / "folder"
    config = config_file({"schedule": {"steps": 4}, "checkpoint": {"every": 2}})
    finish(start(config, trunk))
    folder_of(trunk, 4, folder)

    def begin(name: str, origin: Path | str, *options: str, code: int = 0) -> str:
        return finish(start(config, tmp_path / name, "--branch", str(origin), *options), code)

    # the same weights out of the run itself: every loss to the bit
    begin("inside", f"{trunk}@4", *AS_WEIGHTS)
    output = begin("outside", folder, *AS_WEIGHTS)
    assert "by a new optimiser" in output
    assert losses(tmp_path / "outside") == losses(tmp_path / "inside")
    sharded = tmp_path / "sharded"
    finish_ranks(2, config, sharded, "--branch", str(folder), *AS_WEIGHTS, "--set", "parallel.zero_stage=3")
    assert [x for _, x in losses(sharded)] == pytest.approx([x for _, x in losses(tmp_path / "inside")], abs=1e-5)
    row = next(row for row in read_metrics(trunk / "metrics.jsonl")[0] if row["step"] == 4)
    assert losses(sharded)[0][1] < losses(trunk)[0][1], f"trained to {row['train/loss']}"

    # a tokenizer beside the model must be the data's
    assert "has no tokenizer beside it" in output
    (folder / "merges.txt").write_text("#version: 0.2\na b\n")
    assert "has another tokenizer than the data" in begin("others", folder, *AS_WEIGHTS, code=2)
    (folder / "merges.txt").unlink()

    # other weights are another experiment, and a run that has begun needs them no more
    experiments = [
        json.loads((tmp_path / name / "experiment.json").read_text()) for name in ("inside", "outside", "sharded")
    ]
    digests = [each["branch"]["digest"] for each in experiments]
    assert digests[0] != digests[1] == digests[2]
    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.ln_f.weight"] += 1
    save_file(tensors, folder / "model.safetensors")
    assert "branch.digest" in begin("outside", folder, *AS_WEIGHTS, code=2)
    shutil.rmtree(folder)
    begin("outside", folder, *AS_WEIGHTS, "--resume", "must")


def test_a_start_that_cannot_be(config_file: ConfigFile, tmp_path: Path) -> None:
    """Breaks if an optimiser's state or a place in the order is expected of a model without a run, or another shape begins."""
    trunk, folder = tmp_path / "trunk", tmp_path / "folder"
    config = config_file({"schedule": {"steps": 2}, "checkpoint": {"every": 2}})
    finish(start(config, trunk))
    folder_of(trunk, 2, folder)

    def refused(*options: str, origin: Path = folder) -> str:
        return finish(start(config, tmp_path / "no", "--branch", str(origin), *options), 2)

    assert "set branch.optimizer to drop" in refused()
    assert "set branch.data to restart" in refused("--set", "branch.optimizer=drop")
    assert "model.n_layer: asked 3, found 2" in refused(*AS_WEIGHTS, "--set", "model.n_layer=3")
    assert "model.qk_norm: asked true, found false" in refused(*AS_WEIGHTS, "--set", "model.qk_norm=true")
    assert "leave it out" in refused(*AS_WEIGHTS, "--set", f"branch.lr_by_norm_of={trunk}")
    assert "expected RUN@STEP, or a folder with" in refused(*AS_WEIGHTS, origin=tmp_path / "nothing")
    assert not (tmp_path / "no").exists()
