"""Shared fixtures: tiny real data, prepared by the real pipeline."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import signal
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from configs.load import merge, validate
from configs.schema import RunConfig
from data.image_manifest import ImageManifest, read_image_manifest
from data.manifest import Manifest
from data.prepare import Options, prepare
from data.prepare_images import main as prepare_images
from data.sources import Source
from data.tokenizer import SentencePiece
from tests.cluster import Cluster, cluster, why_not

TINY: dict[str, Any] = {
    "name": "tiny",
    "model": {"n_layer": 2, "n_head": 2, "n_embd": 32, "seq_len": 16, "vocab_size": 512},
    "data": {"path": "set by the fixture"},
    "optim": {"lr": 1e-2, "weight_decay": 0.5},
    "schedule": {"warmup_steps": 2, "steps": 6},
    "batch": {"tokens_per_step": 128, "micro_batch": 2},
    "eval": {"tokens": 512},
    "parallel": {"compile": False},
}

TINY_IMAGES: dict[str, Any] = {
    "name": "tiny",
    "model": {"kind": "resnet18", "image_size": 16, "classes": 4, "width": 2},
    "data": {"kind": "images", "path": "set by the fixture"},
    "optim": {
        "algorithm": "sgd",
        "momentum": 0.0,
        "lr": 0.05,
        "weight_decay": 0.02,
        "decay_rule": "l2_coupled",
        "grad_clip": 0.0,
        "decay_mask": "all",
    },
    "schedule": {"kind": "constant", "steps": 12},  # two epochs of 6: 101 images leave 5 over
    "batch": {"images_per_step": 16, "micro_batch": 4},
    "averages": {"ema": [0.9]},
    "eval": {"every": 6, "train_images": 20},
}


@pytest.hookimpl(optionalhook=True)  # pytest works without xdist too
def pytest_xdist_auto_num_workers() -> int:
    """One worker more than there are cores: the tests of SLURM mostly wait."""
    return len(os.sched_getaffinity(0)) + 1


if worker := os.environ.get("PYTEST_XDIST_WORKER"):  # each worker, and all it starts, on a core of its own
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # under nohup, which every run that a test starts would inherit
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


LONGEST = ("test_slurm.py", "test_soak.py", "test_start.py", "test_report.py", "test_mutated_runs.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, then other engines, so that the suite does not end with one worker at work."""
    last = len(LONGEST)
    items.sort(
        key=lambda item: (
            LONGEST.index(item.path.name)
            if item.path.name in LONGEST
            else last + (not item.get_closest_marker("engine"))
        )
    )


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    """Forty files of the standard library, tokenised with a vocabulary of 512: a few hundred thousand tokens."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(root.glob("a*.py")) + sorted(root.glob("c*.py")) + sorted(root.glob("t*.py"))
    out = tmp_path_factory.mktemp("data") / "tiny"
    return out, prepare(Source.local("text", files), out, Options(vocab_size=512, val_fraction=0.2, seed=0))


@pytest.fixture(scope="session")
def two_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A SLURM for all tests that want one: starting it takes as long as some of them."""
    assert not why_not()
    with cluster(tmp_path_factory.mktemp("slurm") / "cluster") as found:
        yield found


@pytest.fixture
def slurm(two_nodes: Cluster, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Cluster:
    """It, as what this test's commands speak to."""
    grouped = not request.config.getoption("loadgroup", False) or request.node.nodeid.endswith("@slurm")
    assert grouped, "--dist loadgroup does not keep xdist_group together: every worker would start a cluster of its own"
    monkeypatch.setenv("SLURM_CONF", two_nodes.env["SLURM_CONF"])
    return two_nodes


@pytest.fixture(scope="session")
def short_documents(
    tiny_data: tuple[Path, Manifest], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Manifest]:
    """The lines of one file as documents, in the tiny data's vocabulary: a thousand tokens hold many of them."""
    folder = tmp_path_factory.mktemp("lines")
    text = (Path(sysconfig.get_paths()["stdlib"]) / "argparse.py").read_text()
    lines = sorted({line.strip() for line in text.splitlines() if line.strip()})
    (folder / "lines.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    given = SentencePiece((tiny_data[0] / "tokenizer.model").read_bytes())
    options = Options(512, 0.2, 0, tokenizer=hashlib.sha256(given.content).hexdigest())
    return folder / "out", prepare(Source.local("jsonl", [folder / "lines.jsonl"]), folder / "out", options, 1, given)


@pytest.fixture(scope="session")
def tiny_config(tiny_data: tuple[Path, Manifest]) -> Callable[..., RunConfig]:
    """Makes a small configuration over the tiny data: tiny_config({"optim": {"lr": 1e-3}}, …)."""

    def make(*overrides: dict[str, Any]) -> RunConfig:
        given = merge(copy.deepcopy(TINY), {"data": {"path": str(tiny_data[0])}})
        for override in overrides:
            given = merge(given, override)
        return validate(given, "test")

    return make


@pytest.fixture
def config_file(tmp_path: Path, tiny_config: Callable[..., RunConfig]) -> Callable[..., Path]:
    """Writes a tiny configuration to a file, for the command line."""

    def write(*overrides: dict[str, Any]) -> Path:
        path = tmp_path / "config.json"
        path.write_text(json.dumps(tiny_config(*overrides).model_dump(mode="json")))
        return path

    return write


@pytest.fixture(scope="session")
def tiny_images(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ImageManifest]:
    """125 images of 16 × 16 in four classes, each with a colour of its own under noise; 101 are for training."""
    root, draw = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for label in range(4):
        (root / "files" / str(label)).mkdir(parents=True)
        for number in range(32 if label else 29):
            pixels = draw.integers(0, 60, (16, 16, 3)) + 60 * np.array([label & 1, label >> 1, label])
            Image.fromarray(pixels.astype(np.uint8)).save(root / "files" / str(label) / f"{number}.png")
    assert prepare_images(["--source", "folder", "--input", str(root / "files"), "--out", str(root / "out")]) == 0
    manifest = read_image_manifest(root / "out")
    assert manifest is not None
    return root / "out", manifest


@pytest.fixture(scope="session")
def make_images(tiny_images: tuple[Path, ImageManifest]) -> Callable[..., RunConfig]:
    """Makes a small configuration over these images."""

    def make_config(*overrides: dict[str, Any]) -> RunConfig:
        given = merge(TINY_IMAGES, {"data": {"path": str(tiny_images[0])}})
        for override in overrides:
            given = merge(given, override)
        return validate(given, "test")

    return make_config
