"""An average's predictions against those of an ensemble of snapshots, of a real run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from configs.schema import RunConfig
from data.image_loader import eval_batches
from data.image_manifest import ImageManifest
from tests.processes import finish, start
from weights.on_images import to_evaluate
from weights.read import choose, config_with_data
from weights.snapshots import main

Make = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def run(make_images: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet18 with an average of its weights, and checkpoints at 4, 8 and 12."""
    folder = tmp_path_factory.mktemp("snapshots")
    (folder / "run.json").write_text(make_images({"checkpoint": {"every": 4, "keep_last": 3}}).model_dump_json())
    finish(start(folder / "run.json", folder / "run"))
    return folder / "run"


def probabilities(run: Path, step: int, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the 24 validation images, by the run's network in eval mode, and their labels; no code of weights/ but the readers."""
    chosen = choose(f"{run}@{step}")
    config, manifest = config_with_data(chosen.run)
    assert isinstance(manifest, ImageManifest)
    weights = {**chosen.tensors(kind), **chosen.buffers()}
    network: Any = to_evaluate(config, manifest, weights, kind != "weights", torch.device("cpu"))
    (batch,) = eval_batches(config.data.path, manifest, 24, 0, 1, None, "val")
    with torch.no_grad():
        return network.logits(torch.from_numpy(batch.inputs)).double().softmax(1), torch.from_numpy(batch.targets)


@pytest.mark.engine
def test_is_what_it_says(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if the average's statistics are not its own, the ensemble is of other weights or not the mean of probabilities, or
    the iterate is taken where an average is asked for."""
    found = []
    for more in ((), ("--weights", "weights")):
        capsys.readouterr()
        assert main([str(run), "--of", "4,8", *more]) == 0
        found.append(json.loads(capsys.readouterr().out))
    snapshots = [probabilities(run, step, "weights") for step in (4, 8)]
    together, labels = (snapshots[0][0] + snapshots[1][0]) / 2, snapshots[0][1]
    for row, kind in zip(found, ("ema_0.9", "weights"), strict=True):
        own = probabilities(run, 12, kind)[0]
        assert (row["step"], row["weights"], row["images"]) == (12, kind, 24)
        assert row["total_variation"] == pytest.approx((own - together).abs().sum(1).mean().item() / 2, rel=1e-4)
        assert row["loss"] == pytest.approx(F.nll_loss(own.log(), labels).item(), rel=1e-4)
        assert row["ensemble_loss"] == pytest.approx(F.nll_loss(together.log(), labels).item(), rel=1e-4)
        assert [one["step"] for one in row["snapshots"]] == [4, 8]
        away = (own - snapshots[1][0]).abs().sum(1).mean().item() / 2
        assert row["snapshots"][1]["total_variation"] == pytest.approx(away, rel=1e-4)
    assert found[0]["total_variation"] != pytest.approx(found[1]["total_variation"], rel=1e-2)


@pytest.mark.engine
@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--of", "4,4"), "--of 4,4: expected different steps"),
        (("--of", "4,5"), "no complete checkpoint of step 5; steps there: 4, 8, 12"),
        (("--of", "4", "--weights", "ema_0.5"), "has no ema_0.5"),
    ],
)
def test_refusals(words: tuple[str, ...], named: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if a step twice, a step that is not there, or an average that the run has not, is no refusal by name."""
    assert main([str(run), *words]) == 2
    assert named in capsys.readouterr().err


@pytest.mark.engine
def test_a_last_batch_that_is_not_full(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if the black images that fill up the last batch of 24 validation images, of 5 each, are looked at, or end it."""
    given = json.loads((run / "config.json").read_text())
    given["batch"]["micro_batch"] = 5
    copy = tmp_path / "run"
    copytree(run, copy)
    (copy / "config.json").write_text(json.dumps(given))
    found = []
    for place in (run, copy):
        assert main([str(place), "--of", "4,8", "--weights", "weights"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[1]["images"] == 24
    assert found[1]["total_variation"] == pytest.approx(found[0]["total_variation"], rel=1e-5)
