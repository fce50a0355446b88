"""Sections of a configuration that say what is learned from images: the network and the data."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from configs.errors import InputError
from configs.section import Section, setting

ImageKind = Literal["resnet18", "resnet34", "resnet32", "vgg16", "mlp"]


class ImageModel(Section):
    """A classifier of images, as P1 (ResNet18, ResNet34, VGG16) and P2 (VGG16, ResNet32) train them, and an MLP."""

    kind: ImageKind = setting(
        ...,
        "pre-activation ResNets in four stages (resnet18, resnet34), P2's post-activation one in three (resnet32), VGG16 with one "
        "linear layer, or an MLP",
    )
    image_size: int = setting(..., "height and width of an image, in pixels", ge=1, le=1024)
    channels: int = setting(3, "of an image: 3 for colours, 1 for grey", ge=1, le=64)
    classes: int = setting(..., "of the data; outputs of the network", ge=2, le=1_000_000)
    width: int = setting(
        64, "channels of the first stage (P1 and P2: 64), or units of an MLP's hidden layers", ge=1, le=65_536
    )
    hidden_layers: int | None = setting(None, "of an MLP; null: 2", ge=1, le=1000)
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
        if self.hidden_layers is not None and self.kind != "mlp":
            raise InputError(f"hidden_layers does nothing in a {self.kind}; leave it out")
        if self.scale_invariant and self.batchnorm != "plain":
            raise InputError(
                f"scale_invariant with batchnorm {self.batchnorm}: gains would not be invariant, and without normalisation "
                "nothing is; set batchnorm plain"
            )
        return self

    @property
    def depth(self) -> int:
        """Hidden layers of an MLP."""
        return 2 if self.hidden_layers is None else self.hidden_layers
