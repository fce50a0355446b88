"""The measures of P1 of real runs on images: by command, and during the run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from analysis import overtraining
from analysis.command import Options
from configs.cadence import is_measured
from configs.errors import InputError
from configs.plan import make_plan
from configs.schema import Measures, RunConfig
from data.image_loader import ImageStream, balanced
from data.image_manifest import ImageManifest
from data.manifest import Manifest
from engine.network import build_network
from tests.processes import finish_all, rows_of, start_ranks
from tests.recorded import load
from weights import gauss_newton, input_jacobian, jacobian, noise
from weights.frozen import freeze
from weights.hessian import product, trace
from weights.measures import TRACE_VECTORS, main, measured_images
from weights.on_images import to_evaluate
from weights.read import choose, config_with_data

Make = Callable[..., RunConfig]
IMAGES = 24
P2 = {"gauss_newton": True, "fisher": True, "input_jacobian": True}
MEASURES: dict[str, Any] = {
    "measures": {"every": 6, "images": IMAGES, "draws": 3, "averages": True, **P2},
}
COMMON: dict[str, Any] = {
    "checkpoint": {"every": 6},
    "log": {"every": 1, "probe_every": None},
    "data": {"train_images": 64},
    "optim": {"decay_overrides": [{"pattern": "head.*", "weight_decay": 0.5}]},
}
MLP: dict[str, Any] = {
    "model": {"kind": "mlp", "width": 8},
    "parallel": {"zero_stage": 3},
    "measures": {"hessian": True, "by_layer": True},
}


@pytest.fixture(scope="module")
def runs(make_images: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet18 that is measured, the same one that is not, and an MLP in pieces on two ranks."""
    root, processes = tmp_path_factory.mktemp("measured"), []
    cases: dict[str, tuple[int, tuple[dict[str, Any], ...]]] = {
        "measured": (1, (COMMON, MEASURES)),
        "blind": (1, (COMMON,)),
        "pieces": (2, (COMMON, MEASURES, MLP)),
    }
    for name, (ranks, fields) in cases.items():
        path = root / f"{name}.json"
        path.write_text(make_images(*fields, {"name": name}).model_dump_json())
        processes += start_ranks(ranks, path, root / name)
    finish_all(processes, timeout_s=300)
    return root


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert main(list(words)) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.engine
@pytest.mark.parametrize(
    ("name", "only", "columns"), [("measured", "jacobian,noise", 25), ("pieces", "jacobian,noise,hessian", 29 + 18 + 5)]
)
def test_a_run_records_what_the_command_says(
    runs: Path, name: str, only: str, columns: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks if a run measures other weights, statistics, images or vectors than its checkpoints have, in pieces too."""
    rows = rows_of(runs / name)
    for kind, suffix in (("weights", ""), ("ema_0.9", "_ema_0.9")):
        words = ["--images", str(IMAGES), "--draws", "3", "--only", ",".join([only, *P2]), "--weights", kind]
        # of the MLP five layers with trainable tensors, three of them linear maps with a K-FAC form
        words += ["--by-layer"] if name == "pieces" else []
        found = printed(capsys, f"{runs / name}@all", *words)
        assert [(one["step"], one["weights"], one["images"]) for one in found] == [
            (6, kind, IMAGES),
            (12, kind, IMAGES),
        ]
        for one in found:
            layers = [value for key, value in one.items() if key.startswith("measure/norm@")]
            assert math.hypot(*layers) == pytest.approx(one["measure/norm"] if layers else 0.0)
            measured = {key: value for key, value in one.items() if key.startswith("measure/")}
            assert len(measured) == columns
            for key, value in measured.items():
                assert rows[one["step"]][key + suffix] == pytest.approx(value, rel=1e-4, abs=1e-7), (key, kind)
    assert [step for step, row in rows.items() if "time/measures_s" in row] == [6, 12]
    assert rows[12]["measure/jacobian_norm"] != rows[12]["measure/jacobian_norm_ema_0.9"]


@pytest.mark.engine
def test_measures_change_nothing(runs: Path) -> None:
    """Breaks if to measure changes a bit of the training, or its time is counted as an update's."""
    for file in ("weights", "ema_0.9", "buffers"):
        ours, theirs = (runs / n / f"checkpoints/step_00000012/{file}.safetensors" for n in ("measured", "blind"))
        assert ours.read_bytes() == theirs.read_bytes(), file
    measured, blind = rows_of(runs / "measured"), rows_of(runs / "blind")
    for step, row in blind.items():
        assert {k: v for k, v in row.items() if not k.startswith(("time/", "perf/"))} == {
            k: v for k, v in measured[step].items() if not k.startswith(("time/", "perf/", "measure/"))
        }
    assert measured[12]["time/step_s"] < measured[12]["time/measures_s"]


@pytest.mark.engine
def test_the_command_calls_the_functions(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if a column is another quantity than its name says, or λ is not each group's own."""
    (found,) = printed(
        capsys,
        f"{runs / 'measured'}@12",
        "--images",
        "10",
        "--exact",
        "--only",
        "jacobian,noise,hessian,gauss_newton,fisher,input_jacobian",
        "--seed",
        "3",
    )
    one = choose(f"{runs / 'measured'}@12")
    config, manifest = config_with_data(one.run)
    assert isinstance(manifest, ImageManifest)
    model = build_network(config, manifest, torch.device("cpu"))
    model.load_state_dict(one.tensors() | one.buffers())
    network = freeze(model)
    pixels, labels = balanced(config.data.path, manifest, 10, 64)
    batches = [(torch.from_numpy(pixels), torch.from_numpy(labels))]
    norms, each = (
        jacobian.exact(network, batches, progress=False),
        noise.gradient_noise(network, batches, progress=False),
    )
    ends = {name: tensor.double().square().sum().item() for name, tensor in one.tensors().items()}
    decay = sum((0.5 if name.startswith("head") else 0.02) / 2 * square for name, square in ends.items())
    along = gauss_newton.along(network, batches, progress=False)
    expected = {
        "loss": each.loss,
        "objective": each.loss + decay,
        "norm": sum(ends.values()) ** 0.5,
        "jacobian_norm": norms.norm,
        "jacobian_norm_error": norms.norm_error,
        "jacobian_square": norms.mean_square,
        "noise_scale": noise.noise_scale(network, batches, progress=False).scale,
        "gradient_noise": each.of_one,
        "noise_ratio": each.of_one / each.loss,
        "gauss_newton_norm": along.gauss_newton.mean().item(),
        "fisher_norm": along.fisher.mean().item(),
        "fisher_norm_empirical": along.fisher_empirical.mean().item(),
        "gauss_newton_norm_kfac": sum(gauss_newton.kronecker(network, batches, progress=False).values()),
        "input_jacobian_norm": input_jacobian.exact(network, batches, progress=False).norm,
        "hessian_trace": trace(network, batches, TRACE_VECTORS, 3, progress=False).value,
    }
    for name, value in expected.items():
        assert found[f"measure/{name}"] == pytest.approx(value, rel=1e-4), name
    assert "measure/jacobian_bias" not in found
    # An eigenvalue is at least every quadratic form of a vector of length 1, and one lies within the residual.
    g = torch.randn(network.size)
    assert found["measure/hessian_top"] >= (g @ product(network, batches, g) / (g @ g)).item()
    assert found["measure/hessian_residual"] <= 0.0101 * abs(found["measure/hessian_top"])


@pytest.mark.engine
def test_an_averages_statistics_are_its_own(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if an average is measured with the running statistics of the weights, or one kind of measure brings another's work."""
    words = ("--weights", "ema_0.9", "--images", "10", "--exact", "--only", "jacobian")
    (found,) = printed(capsys, f"{runs / 'measured'}@12", *words)
    assert {key for key in found if key.startswith("measure/")} == {
        f"measure/{name}"
        for name in (
            "loss",
            "objective",
            "norm",
            "jacobian_norm",
            "jacobian_norm_error",
            "jacobian_square",
            "jacobian_square_error",
        )
    }
    one = choose(f"{runs / 'measured'}@12")
    config, manifest = config_with_data(one.run)
    batches = measured_images(config, manifest, 10)
    for averaged in (True, False):
        weights = one.tensors("ema_0.9") | one.buffers()
        network = freeze(to_evaluate(config, manifest, weights, averaged, torch.device("cpu")))
        same = jacobian.exact(network, batches, progress=False).norm == pytest.approx(
            found["measure/jacobian_norm"], rel=1e-4
        )
        assert same == averaged


@pytest.mark.engine
def test_the_analysis_reads_them(runs: Path) -> None:
    """Breaks if the analysis of over-training does not draw what a run has measured, of the iterate and of the average."""
    (figure, *_) = overtraining.analyse(load(runs / "measured"), Options()).figures
    drawn = {(panel.ylabel, panel.title): panel for panel in figure.panels}
    for label, places in (
        ("Jacobian norm", [1.5, 3]),
        ("noise scale σ²", [1.5, 3]),
        ("objective CE + ½λ‖w‖² (nats)", [0, 1.5, 3]),
    ):
        for kind in ("iterate", "average 0.9"):
            assert drawn[label, kind].lines[0].x.tolist() == places, "epochs of 4 updates"
    rows = rows_of(runs / "measured")
    values = [rows[step]["measure/jacobian_norm"] for step in (6, 12)]
    assert drawn["Jacobian norm", "iterate"].lines[0].y == pytest.approx(values)


@pytest.mark.engine
def test_a_command_that_cannot_be(runs: Path, tiny_config: Make, tiny_data: tuple[Path, Manifest], capsys: Any) -> None:
    """Breaks if what cannot be measured ends in a traceback, or is measured of something else."""
    run = str(runs / "blind")
    for words, text in (
        ([run, "--images", "65"], "65 images of the 64 that are trained on; choose 1 to 64"),
        ([run, "--only", "jacobian,hesian"], "there is no 'hesian'; there are jacobian, noise, hessian"),
        ([run, "--weights", "ema_0.5"], "has no ema_0.5; there are"),
        ([f"{runs}@all"], "has no complete checkpoint"),
        ([f"{run}@7"], "no complete checkpoint of step 7; steps there: 6, 12"),
    ):
        assert main(words) == 2
        assert text in capsys.readouterr().err
    with pytest.raises(InputError, match="is a run on tokens, and these are measures of a classifier"):
        measured_images(tiny_config(), tiny_data[1], None)


def test_refused_fields(make_images: Make, tiny_config: Make, tiny_images: tuple[Path, ImageManifest]) -> None:
    """Breaks if a run begins that would measure nothing of what its configuration asks."""
    with pytest.raises(InputError, match="measures are of classifiers of images, and data"):
        tiny_config({"measures": {"every": 5}})
    with pytest.raises(InputError, match=r"measures\.images does nothing without measures\.every"):
        make_images({"measures": {"images": 5}})
    with pytest.raises(InputError, match=r"measures\.averages without averages\.ema"):
        make_images({"averages": {"ema": []}, "measures": {"every": 1, "averages": True}})
    with pytest.raises(InputError, match=r"measures\.images 500 exceeds the 101 training images"):
        make_plan(make_images({"measures": {"every": 1}}), 1, tiny_images[1].summary())
    blind, seen = (make_plan(make_images(more), 1, tiny_images[1].summary()) for more in ({}, MEASURES))
    assert blind.run_id == seen.run_id, "to look at a run makes no other run of it"
    assert [step for step in range(1, 11) if is_measured(Measures(every=4), step, 10)] == [4, 8, 10]
    assert not is_measured(Measures(), 10, 10)


def test_the_images_are_balanced(tiny_images: tuple[Path, ImageManifest]) -> None:
    """Breaks if a class is left out, an image taken twice, or another count or a subset gives other images."""
    folder, manifest = tiny_images
    pixels, labels = balanced(folder, manifest, 23)
    assert sorted(np.bincount(labels)) == [5, 6, 6, 6]
    assert len(np.unique(pixels.reshape(23, -1), axis=0)) == 23
    stream = ImageStream(folder, manifest, "train")
    everything = np.arange(len(stream))
    pool, theirs = np.empty((len(stream), *manifest.shape), np.uint8), stream.labels(everything)
    stream.read(everything, pool)
    for image, label in zip(pixels, labels, strict=True):
        (place,) = np.flatnonzero((pool == image).all((1, 2, 3)))
        assert theirs[place] == label
    for count, subset in ((10, None), (10, 60), (10, 101)):
        fewer, of_them = balanced(folder, manifest, count, subset)
        assert np.array_equal(fewer, pixels[:count])
        assert np.array_equal(of_them, labels[:count])
    # All of them: classes that have run out are passed over.
    assert np.array_equal(np.bincount(balanced(folder, manifest, 101)[1]), np.bincount(theirs))
