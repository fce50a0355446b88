"""Sections of a configuration that say what is learned from images: the network and the data."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from configs.errors import InputError
from configs.section import PATH, Section, setting

ImageKind = Literal["resnet18", "resnet34", "resnet32", "vgg16", "mlp"]


class ImageModel(Section):
    """A classifier of images, as P1 (ResNet18, ResNet34, VGG16) and P2 (VGG16, ResNet32) train them, and an MLP."""

    kind: ImageKind = setting(
        ...,
        "pre-activation ResNets in four stages (resnet18, resnet34), P2's post-activation one in three (resnet32), VGG16, "
        "or an MLP",
    )
    image_size: int = setting(..., "height and width of an image, in pixels", ge=1, le=1024)
    channels: int = setting(3, "of an image: 3 for colours, 1 for grey", ge=1, le=64)
    classes: int = setting(..., "of the data; outputs of the network", ge=2, le=1_000_000)
    width: int = setting(
        64, "channels of the first stage (P1 and P2: 64), or units of an MLP's hidden layers", ge=1, le=65_536
    )
    hidden_layers: int | None = setting(
        None,
        "of an MLP; null: 2. Of VGG16 linear layers of 8·width units between its convolutions and the head; null: 0 (P2; P1 has 2)",
        ge=1,
        le=1000,
    )
    batchnorm: Literal["affine", "plain", "none"] = setting(
        "affine", "with gains and biases (P1), without them (P2), or no batch normalisation"
    )
    scale_invariant: bool = setting(
        False,
        "every convolution is followed by a plain batch normalisation, in shortcuts too, and the last layer is frozen: the "
        "outputs do not depend on the weights' norm (P1 on the sphere)",
    )

    @model_validator(mode="after")
    def _fields_of_the_kind(self) -> ImageModel:
        if self.hidden_layers is not None and self.kind not in ("mlp", "vgg16"):
            raise InputError(f"hidden_layers does nothing in a {self.kind}; leave it out")
        if self.hidden_layers is not None and self.kind == "vgg16" and self.scale_invariant:
            raise InputError(
                "scale_invariant with hidden_layers: in a vgg16 nothing normalises what they give; leave one out"
            )
        if self.scale_invariant and self.batchnorm != "plain":
            raise InputError(
                f"scale_invariant with batchnorm {self.batchnorm}: gains would not be invariant, and without normalisation "
                "nothing is; set batchnorm plain"
            )
        return self

    @property
    def depth(self) -> int:
        """Hidden linear layers, of an MLP or VGG16."""
        return self.hidden_layers or (2 if self.kind == "mlp" else 0)


class ImageData(Section):
    """Images and their labels, read epoch after epoch in a new order each time; the last incomplete batch is left out."""

    kind: Literal["images"] = setting(..., "labelled images")
    path: str = setting(
        ...,
        "folder made by `python -m data.prepare_images`; the identity takes the data's digest instead",
        operational=True,
        max_length=PATH,
    )
    train_images: int | None = setting(
        None,
        "use only so many of the training images, the same for every seed, a smaller share inside a larger one",
        ge=1,
    )
    epochs: int | None = setting(
        None,
        "the most passes over the data that a run may take; null: as many as its steps need",
        operational=True,
        ge=1,
    )
    crop: int = setting(
        0,
        "pixels of black added on every side, from which a window of the image's own size is cut anew in each epoch (4 is usual)",
        ge=0,
    )
    flip: bool = setting(False, "half of the images are mirrored, drawn anew in each epoch")
    cutout: int = setting(
        0, "side of a square that is painted over, somewhere else in each epoch (16 is usual on CIFAR-10)", ge=0
    )
    verify: bool | Literal["before"] = setting(
        True,
        "compare every file's SHA-256 with the manifest: true beside training, and a run on damaged data ends as failed; "
        "before: ahead of the first step; false: never",
        operational=True,
    )
