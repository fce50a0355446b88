"""Configurations of runs on images: what names a run, and what is refused with the reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from configs.errors import InputError
from configs.identity import experiment
from configs.plan import make_plan
from configs.render import render_plan
from configs.schema import RunConfig
from data.image_manifest import ImageManifest

Make = Callable[..., RunConfig]


def test_what_names_a_run(make_images: Make) -> None:
    """Breaks if what changes a run on images is not in its identity, or what does not is."""
    fields = experiment(make_images(), "d")
    assert fields["batch"] == {"images_per_step": 16, "micro_batch": 4}, "statistics are those of a micro-batch"
    assert fields["model"]["kind"] == "resnet18"
    assert fields["data"] == {"kind": "images", "digest": "d"}
    assert experiment(make_images({"data": {"epochs": 9, "verify": False}}), "d") == fields
    without = {"model": {"batchnorm": "none"}}
    assert "micro_batch" not in experiment(make_images(without), "d")["batch"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"model": {"kind": "gpt"}}, "model.n_layer is required"),
        ({"data": {"kind": "tokens"}}, "model.kind resnet18 learns from images, and data.kind is tokens"),
        ({"model": {"kind": "resnet20"}}, "'vgg16' or 'mlp', or 'gpt'"),
        ({"model": {"wdth": 3}}, "unknown key 'model.wdth'; did you mean 'width'"),
        ({"batch": {"micro_batch": 1}}, "one image has no variance"),
        ({"batch": {"micro_batch": None}}, "batch.micro_batch is required with batch normalisation"),
        ({"batch": {"tokens_per_step": 16}}, "batch.tokens_per_step does nothing where data.kind is images"),
        ({"batch": {"images_per_step": None}}, "batch.images_per_step is required"),
        ({"measures": {"evry": 3}}, "unknown key 'measures.evry'; did you mean 'every'"),
        ({"eval": {"tokens": 64}}, "eval.tokens does nothing where data.kind is images"),
        ({"optim": {"z_loss": 0.1}}, "optim.z_loss does nothing"),
        ({"precision": "bf16-true", "parallel": {"zero_stage": 1}}, "use one of fp32, tf32, bf16-mixed"),
        ({"parallel": {"compile": True}}, "have no compiled blocks"),
        ({"model": {"scale_invariant": True}}, "set batchnorm plain"),
        ({"model": {"hidden_layers": 3}}, "hidden_layers does nothing in a resnet18"),
        (
            {"model": {"kind": "vgg16", "hidden_layers": 2, "batchnorm": "plain", "scale_invariant": True}},
            "scale_invariant with hidden_layers: in a vgg16 nothing normalises",
        ),
    ],
)
def test_what_means_nothing_is_refused(make_images: Make, override: dict[str, Any], message: str) -> None:
    """Breaks if a field that does nothing, or cannot work, is taken without a word."""
    with pytest.raises(InputError) as caught:
        make_images(override)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            {"model": {"image_size": 9}},
            "the images in {} are of 3 × 16 × 16 (channels, height, width), and the network is for 3 × 9 × 9",
        ),
        ({"model": {"classes": 5}}, "are of 4 classes, model.classes is 5; set it to 4"),
        ({"batch": {"images_per_step": 128}}, "batch.images_per_step 128 is more than the 101 training images"),
        ({"data": {"train_images": 102}}, "data.train_images 102 exceeds the 101 training images"),
        ({"data": {"epochs": 1}}, "schedule.steps 12 need more than data.epochs 1 of 6 steps each; at most 6 steps"),
    ],
)
def test_data_that_does_not_fit(
    make_images: Make, tiny_images: tuple[Path, ImageManifest], override: dict[str, Any], message: str
) -> None:
    """Breaks if a run begins on images of another kind, or on too few."""
    with pytest.raises(InputError) as caught:
        make_plan(make_images(override), 1, tiny_images[1].summary())
    assert message.format(tiny_images[0]) in str(caught.value)


def test_what_an_epoch_leaves_over(make_images: Make, tiny_images: tuple[Path, ImageManifest]) -> None:
    """Breaks if the images that fill no batch at an epoch's end are not counted, or are said to be some where there are none."""
    plan = make_plan(make_images(), 1, tiny_images[1].summary())
    assert (plan.steps_per_epoch, plan.left_over_per_epoch) == (6, 5)
    assert "6 whole batches (5 images left over in each)" in render_plan(make_images(), plan)
    whole = make_images({"data": {"train_images": 96}})
    assert "left over in each" not in render_plan(whole, make_plan(whole, 1, tiny_images[1].summary()))
