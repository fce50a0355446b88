"""Averages of the weights: what they are, that they survive, and that they change nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from configs.schema import RunConfig
from data.manifest import Manifest
from engine import checkpoint
from engine.launch import start_world
from record.checkpoints import find
from record.metrics import read_metrics
from tests.live import make_training, train_steps
from tests.processes import ConfigFile, finish, finish_ranks, losses, rows_of, start
from tests.ranks import run_ranks
from tests.test_parity import CASES
from weights import evaluate, export
from weights.read import mean_tensors, read_tensors

pytestmark = pytest.mark.engine
EMA = {"averages": {"ema": [0.9, 0.5]}}


def averaged_runs(configs: list[RunConfig], manifest: Manifest, folder: Path) -> list[dict[str, Any]]:
    """Six updates, with the weights after each; and the same with a checkpoint and a new engine in between."""
    world = start_world("averages", 120, None)
    found = []
    for index, config in enumerate(configs):
        whole = make_training(config, manifest, world)
        history = [whole.engine.fragments.gather("weights", 0)]
        for step in range(6):
            train_steps(whole, range(step, step + 1))
            history.append(whole.engine.fragments.gather("weights", 0))
        ends = {kind: whole.engine.fragments.gather(kind, 0) for kind in whole.engine.fragments.averages.kinds}
        with whole.engine.fragments.swapped("ema_0.9"):
            swapped = whole.engine.fragments.gather("weights", 0)
        back = whole.engine.fragments.gather("weights", 0)
        first = make_training(config, manifest, world)
        train_steps(first, range(3))
        middle = checkpoint.save(folder / str(index), 3, first.engine.fragments, {}, {})
        second = make_training(config, manifest, world)
        checkpoint.load(middle, second.engine.fragments)
        train_steps(second, range(3, 6))
        again = {kind: second.engine.fragments.gather(kind, 0) for kind in second.engine.fragments.averages.kinds}
        found.append({"history": history, "ends": ends, "swapped": swapped, "back": back, "again": again})
    return found


def test_every_precision_and_stage(
    tiny_data: tuple[Path, Manifest], tiny_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    """Breaks if an average is not a ← c·a + (1 − c)·w from the first weights on, is lost by a checkpoint, or if looking
    through it leaves a trace."""
    configs = [tiny_config(EMA, {"precision": p, "parallel": {"zero_stage": stage}}) for p, stage in CASES]
    for case, run in zip(CASES, run_ranks(2, averaged_runs, configs, tiny_data[1], tmp_path)[0], strict=True):
        for c in (0.9, 0.5):
            for name, tensor in run["ends"][f"ema_{c}"].items():
                expected = run["history"][0][name].double()
                for weights in run["history"][1:]:
                    expected = c * expected + (1 - c) * weights[name].double()
                torch.testing.assert_close(tensor.double(), expected, rtol=1e-5, atol=1e-7, msg=f"{case} {name}")
                assert torch.equal(tensor, run["again"][f"ema_{c}"][name]), (case, name)
        for name, tensor in run["back"].items():
            assert torch.equal(tensor, run["history"][-1][name]), (case, name)
            assert torch.equal(run["swapped"][name], run["ends"]["ema_0.9"][name].to(tensor.dtype)), (case, name)


def test_averages_of_a_run(config_file: ConfigFile, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if an average changes training, its loss is not that of its weights, or one cannot be evaluated or exported
    after the fact."""
    plain = {"eval": {"every": 2}, "checkpoint": {"every": 2}}
    finish(start(config_file(plain), tmp_path / "plain"))
    finish_ranks(2, config_file(plain, EMA, {"parallel": {"zero_stage": 3}}), tmp_path / "run")
    for (_, ours), (_, theirs) in zip(losses(tmp_path / "run"), losses(tmp_path / "plain"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6)
    finish(start(config_file(plain, EMA), tmp_path / "one"))
    assert losses(tmp_path / "one") == losses(tmp_path / "plain")
    branch = ["--branch", f"{tmp_path / 'plain'}@6"]
    output = finish(start(config_file(plain, EMA), tmp_path / "branch", *branch))
    assert "ema_0.9 begins at the weights of" in output
    first = read_metrics(tmp_path / "branch" / "metrics.jsonl")[0][0]
    assert first["val/loss_ema_0.9"] == first["val/loss"]
    rows = rows_of(tmp_path / "run")
    assert rows[0]["val/loss_ema_0.9"] == rows[0]["val/loss"]
    for kind in ("weights", "ema_0.9"):
        capsys.readouterr()
        assert evaluate.main([f"{tmp_path / 'run'}@4", "--weights", kind]) == 0
        found = json.loads(capsys.readouterr().out)
        key = "val/loss" if kind == "weights" else f"val/loss_{kind}"
        assert found["val/loss"] == pytest.approx(rows[4][key], rel=1e-6)
    assert rows[4]["val/loss_ema_0.9"] != rows[4]["val/loss"]
    assert evaluate.main([str(tmp_path / "run"), "--average", "2,4,6"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == [2, 4, 6]
    paths = [find(tmp_path / "run" / "checkpoints", step) for step in (2, 4, 6)]
    stored = [read_tensors(path, "weights") for path in paths]
    for name, tensor in mean_tensors(paths, "weights").items():
        expected = sum(weights[name].double() for weights in stored) / 3
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-6, atol=1e-9)
    for wrong in ("2,5", "2,,4", "2,2"):
        assert evaluate.main([str(tmp_path / "run"), "--average", wrong]) == 2
    assert "steps there: 2, 4, 6" in capsys.readouterr().err
    assert export.main([str(tmp_path / "run"), "--out", str(tmp_path / "out"), "--weights", "ema_0.5"]) == 0
    kept = load_file(tmp_path / "run" / "checkpoints" / "step_00000006" / "ema_0.5.safetensors")
    out = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(out[name], tensor) for name, tensor in kept.items())
    assert export.main([str(tmp_path / "run"), "--out", str(tmp_path / "no"), "--weights", "ema_0.7"]) == 2
    later = {"averages": {"ema": [0.9, 0.7]}}
    (tmp_path / "one" / "checkpoints" / "step_00000006" / "manifest.json").unlink()
    assert "has no ema_0.7, only" in finish(start(config_file(plain, later), tmp_path / "one"), 2)
    output = finish(start(config_file(plain, {"averages": {"ema": [0.9]}}), tmp_path / "one"))
    assert "ema_0.5 of the checkpoint are not used" in output
    assert losses(tmp_path / "one") == losses(tmp_path / "plain")
