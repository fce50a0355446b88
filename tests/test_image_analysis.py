"""Real runs on images through every analysis, an archive and an export."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from analysis.__main__ import main as analyse
from analysis.catalogue import CATALOGUE
from configs.errors import InputError
from configs.schema import RunConfig
from data.image_manifest import ImageManifest
from engine.network import build_network
from record.archive import main as archive
from tests.processes import finish_all, start
from weights.export import export

MLP: dict[str, Any] = {
    "model": {"kind": "mlp", "width": 8},
    "log": {"every": 1, "probe_every": 6},
    "checkpoint": {"every": 6},
}
Make = Callable[..., RunConfig]
NOT_OF_RUNS = {"advise", "theory", "gate", "report"}
# There are no branches of these runs, no Jacobians by inputs, no scores on tasks of text, and they are of one rule and two λ.
UNFIT = [
    "adaptation",
    "bias_variance",
    "declared",
    "declared_images",
    "early",
    "gains",
    "jacobian_gap",
    "lm_eval",
    "rules",
    "transfer",
]


@pytest.fixture(scope="module")
def image_runs(make_images: Make, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four runs: two λ by two seeds."""
    root, processes = tmp_path_factory.mktemp("runs"), []
    for decay in (0.0, 0.1):
        for seed in (0, 1):
            seeds = {"seeds": {"init": seed, "data": seed}}
            config = make_images(MLP, {"name": f"d{decay}s{seed}", "optim": {"weight_decay": decay}}, seeds)
            path = root / f"{config.name}.json"
            path.write_text(config.model_dump_json())
            processes.append(start(path, root / config.name))
    finish_all(processes, timeout_s=300)
    return sorted(path.parent for path in root.glob("*/config.json"))


@pytest.mark.engine
def test_every_analysis(image_runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if an analysis that fits runs on images cannot read them, calls their unit tokens, or says another thing of their
    archives."""
    names, said, unfit = [str(path) for path in image_runs], {}, []
    # called as the runs' folder is: some tables have a row a folder
    archives = tmp_path / image_runs[0].parent.name
    assert archive([*names, "--out", str(archives)]) == 0
    capsys.readouterr()
    for name in sorted(set(CATALOGUE) - NOT_OF_RUNS):
        codes = []
        for given, out in ((names, "of_folders"), ([str(archives)], "of_archives")):
            codes.append(analyse([name, *given, "--out", str(tmp_path / out / name)]))
            output = capsys.readouterr()
            said[out] = (output.out + output.err).replace(out, "").replace(".parquet", "")
        assert codes in ([0, 0], [2, 2]), said
        unfit += [name] * (codes[0] == 2)
        assert said["of_folders"] == said["of_archives"], name
        assert "Traceback" not in said["of_folders"], name
        assert "per token" not in said["of_folders"], name
        tables = [sorted((tmp_path / out / name).glob("*_table*.csv")) for out in ("of_folders", "of_archives")]
        for ours, theirs in zip(*tables, strict=True):
            assert ours.read_text() == theirs.read_text(), ours.name
    assert unfit == UNFIT
    assert (tmp_path / "of_folders" / "overtraining" / "overtraining.csv").is_file()
    assert "epoch" in (tmp_path / "of_folders" / "overtraining" / "overtraining.svg").read_text()


@pytest.mark.engine
def test_the_page(image_runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if the report of runs on images does not say what was trained."""
    assert analyse(["report", *map(str, image_runs), "--out", str(tmp_path)]) == 0
    page = (tmp_path / "index.html").read_text()
    for words in (
        "mlp of width 8",
        "12 updates of 16 images",
        "2 epochs",
        "101 training and 24 validation images of 4 classes",
    ):
        assert words in page, words
    assert analyse(["loss_curves", *map(str, image_runs), "--x", "tokens", "--out", str(tmp_path / "t")]) == 2
    assert "is a run on images, and has no tokens" in capsys.readouterr().err


@pytest.mark.engine
def test_export(
    image_runs: list[Path], tiny_images: tuple[Path, ImageManifest], make_images: Make, tmp_path: Path
) -> None:
    """Breaks if exported weights lack running statistics, or an average is exported as if it had some."""
    export(image_runs[0], None, tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    network = build_network(make_images(MLP), tiny_images[1], torch.device("cpu"))
    network.load_state_dict(tensors)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["kind"] == "mlp"
    with pytest.raises(InputError, match="has no running statistics of batch normalisation"):
        export(image_runs[0], None, tmp_path / "average", "ema_0.9")
    assert not (tmp_path / "average").exists()
