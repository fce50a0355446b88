"""What an average of the weights needs before it is evaluated or measured: statistics of mixed batches; on the sphere, its norm."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.schema import RunConfig
from data.image_loader import eval_batches
from data.image_manifest import ImageManifest
from engine.launch import start_world
from engine.network import build_network
from tests.live import make_training
from tests.pictures import arrays, prepared_pictures
from tests.ranks import run_ranks
from weights.measures import Asked, measure, measured_images
from weights.on_images import image_batches

Make = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ImageManifest]:
    """Images of 4 classes, in files that are sorted by class."""
    return prepared_pictures(tmp_path_factory.mktemp("pictures"), (3, 16, 16), [26, 21, 19, 16])


def test_mixed_batches_hold_several_classes(pictures: tuple[Path, ImageManifest]) -> None:
    """Breaks if a file that is sorted by class is read in its order, an image is left out, or ranks change the order."""
    folder, manifest = pictures
    labels = arrays(*pictures, "train")[1]
    assert (np.diff(labels) >= 0).all(), "the file is sorted"
    batches = list(eval_batches(folder, manifest, 8, 0, 1, split="train", mixed=True))
    assert min(len(set(batch.targets[: batch.counted])) for batch in batches[:-1]) > 1
    read = np.concatenate([batch.targets[: batch.counted] for batch in batches])
    assert np.array_equal(np.sort(read), labels)
    halves = [list(eval_batches(folder, manifest, 4, rank, 2, split="train", mixed=True)) for rank in (0, 1)]
    both = np.concatenate([half.targets[: half.counted] for pair in zip(*halves, strict=True) for half in pair])
    assert np.array_equal(both, read)


def estimated_on(config: RunConfig, manifest: ImageManifest) -> list[list[int]]:
    """The labels of each batch that an average's statistics are estimated from, in a run."""
    training = make_training(config, manifest, start_world("mixed", 120, None))
    return [batch.targets[: batch.counted].tolist() for batch in training.data.estimation()]


@pytest.mark.engine
def test_statistics_are_of_mixed_batches(pictures: tuple[Path, ImageManifest], make_images: Make) -> None:
    """Breaks if the statistics of an average are estimated a class at a time: in a run, or of its checkpoints."""
    folder, manifest = pictures
    config = make_images({"data": {"path": str(folder)}, "batch": {"images_per_step": 8, "micro_batch": 8}})
    found = [batch.targets[: batch.counted].tolist() for batch in image_batches(config, manifest, "train")]
    assert all(len(set(labels)) > 1 for labels in found)
    assert run_ranks(1, estimated_on, config, manifest)[0] == found


def test_an_average_of_the_sphere_is_measured_on_it(pictures: tuple[Path, ImageManifest], make_images: Make) -> None:
    """Breaks if the same function is measured steeper for the average of a larger η, which lies deeper inside the sphere."""
    folder, manifest = pictures
    config = make_images(
        {"data": {"path": str(folder)}, "model": {"batchnorm": "plain", "scale_invariant": True}},
        {"optim": {"decay_rule": "sphere", "weight_decay": 0.0, "decay_mask": "matrices"}},
    )
    torch.manual_seed(0)
    network = build_network(config, manifest, torch.device("cpu"))
    network.init_weights(0)
    trained = {name for name, tensor in network.named_parameters() if tensor.requires_grad}
    found = []
    for size in (1.0, 0.5):
        weights = {name: t * size if name in trained else t.clone() for name, t in network.state_dict().items()}
        batches = measured_images(config, manifest, 6)
        asked = Asked(("jacobian",), "exact")
        found.append(measure(config, manifest, weights, True, batches, asked, torch.device("cpu"), progress=False))
    assert found[1]["measure/norm"] == pytest.approx(found[0]["measure/norm"] / 2, rel=1e-6)
    assert found[1]["measure/jacobian_norm"] == pytest.approx(found[0]["measure/jacobian_norm"], rel=1e-3)
