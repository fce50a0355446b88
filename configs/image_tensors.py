"""The layers of a network for images in their order: names, shapes, and how many positions of an image each works at.

The tensor table and the cost are made of it. model/resnet.py, model/vgg.py and model/mlp.py build the networks by themselves;
tests compare both. What a normalisation follows has no bias, which it would take away again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from configs.images import ImageModel
from configs.tensor_spec import Role, TensorSpec

STAGES = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet32": (5, 5, 5)}  # blocks, of two convolutions each
VGG16_STAGES = (2, 2, 3, 3, 3)  # convolutions; a maximum over 2 × 2 follows each stage
VGG16_WIDTHS = (1, 2, 4, 8, 8)  # of a stage, in widths of the network

Kind = Literal["stem", "conv", "shortcut", "hidden", "norm", "head"]


@dataclass(frozen=True)
class Layer:
    """One layer: (d_in, size_in, size_in) → (d_out, size, size). A linear map has size 1; a norm changes no shape.

    `followed_by`: the norm that alone reads its outputs.
    """

    name: str
    kind: Kind
    d_in: int
    d_out: int
    kernel: int = 1
    stride: int = 1
    size_in: int = 1
    followed_by: str = ""

    @property
    def size(self) -> int:
        """Height and width of the outputs: every convolution is padded, so that only its stride makes them smaller."""
        return math.ceil(self.size_in / self.stride)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        if self.kind == "norm":
            return (self.d_out,)
        positions = () if self.kind in ("hidden", "head") else (self.kernel, self.kernel)
        return (self.d_out, self.d_in, *positions)


def image_tensors(model: ImageModel) -> dict[str, TensorSpec]:
    """Every trainable tensor, in the order of named_parameters(). A frozen head is none: no optimiser steps it."""
    tensors: dict[str, TensorSpec] = {}
    for layer in image_layers(model):
        norm, head = layer.kind == "norm", layer.kind == "head"
        if (norm and model.batchnorm != "affine") or (head and model.scale_invariant):
            continue
        # of VGG16 the linear layers have no normalisation behind them, whatever the convolutions have
        bare = model.batchnorm == "none" or (layer.kind == "hidden" and not layer.followed_by)
        role: Role = "gain" if norm else "matrix"
        followed_by = "" if bare else layer.followed_by
        tensors[f"{layer.name}.weight"] = TensorSpec(layer.weight_shape, layer.kind, role, bare, followed_by)
        if norm or head or bare:
            tensors[f"{layer.name}.bias"] = TensorSpec((layer.d_out,), layer.kind, "bias", bare)
    return tensors


def image_layers(model: ImageModel) -> list[Layer]:
    """Every layer with weights, and every normalisation, affine or plain; of batchnorm none there are none."""
    match model.kind:
        case "mlp":
            layers = _mlp(model)
        case "vgg16":
            layers = _vgg16(model)
        case "resnet32":
            layers = _post_activation(model)
        case _:
            layers = _pre_activation(model)
    return [layer for layer in layers if layer.kind != "norm" or model.batchnorm != "none"]


def _pre_activation(model: ImageModel) -> list[Layer]:
    """resnet18 and resnet34. Scale-invariant ones have a normalisation after every convolution too, which pre-activation lacks."""
    blocks, width, size, invariant = STAGES[model.kind], model.width, model.image_size, model.scale_invariant
    stem = _conv("body.stem", "stem", model.channels, width, size)
    layers = [_norm("body.input_norm", model.channels, size), *_normed(stem, "body.stem_norm", invariant)]
    for i, (d_in, d_out, stride) in enumerate(block_shapes(width, blocks)):
        name = f"body.blocks.{i}"
        first = _conv(f"{name}.conv1", "conv", d_in, d_out, size, stride)
        second = _conv(f"{name}.conv2", "conv", d_out, d_out, first.size)
        layers += [_norm(f"{name}.norm1", d_in, size), *_normed(first, f"{name}.norm2")]
        layers += _normed(second, f"{name}.conv2_norm", invariant)
        if d_in != d_out:
            shortcut = _conv(f"{name}.shortcut", "shortcut", d_in, d_out, size, stride, kernel=1)
            layers += _normed(shortcut, f"{name}.shortcut_norm", invariant)
        size = first.size
    return [*layers, _norm("body.norm", d_out, size), Layer("head", "head", d_out, model.classes)]


def _post_activation(model: ImageModel) -> list[Layer]:
    """resnet32: a normalisation after every convolution, so the scale-invariant one differs in the head only."""
    width, size = model.width, model.image_size
    layers = _normed(_conv("body.stem", "stem", model.channels, width, size), "body.stem_norm")
    for i, (d_in, d_out, stride) in enumerate(block_shapes(width, STAGES[model.kind])):
        name = f"body.blocks.{i}"
        first = _conv(f"{name}.conv1", "conv", d_in, d_out, size, stride)
        layers += _normed(first, f"{name}.norm1")
        layers += _normed(_conv(f"{name}.conv2", "conv", d_out, d_out, first.size), f"{name}.norm2")
        if d_in != d_out:
            shortcut = _conv(f"{name}.shortcut", "shortcut", d_in, d_out, size, stride, kernel=1)
            layers += _normed(shortcut, f"{name}.shortcut_norm")
        size = first.size
    return [*layers, Layer("head", "head", d_out, model.classes)]


def _vgg16(model: ImageModel) -> list[Layer]:
    layers: list[Layer] = []
    d_in, size = model.channels, model.image_size
    for count, widths in zip(VGG16_STAGES, VGG16_WIDTHS, strict=True):
        for _ in range(count):
            name, d_out = f"body.layers.{len(layers) // 2}", widths * model.width
            layers += _normed(_conv(f"{name}.conv", "conv" if layers else "stem", d_in, d_out, size), f"{name}.norm")
            d_in = d_out
        size = math.ceil(size / 2)
    d_in *= size * size
    for i in range(model.depth):
        layers.append(Layer(f"body.hidden.{i}", "hidden", d_in, VGG16_WIDTHS[-1] * model.width))
        d_in = layers[-1].d_out
    return [*layers, Layer("head", "head", d_in, model.classes)]


def _mlp(model: ImageModel) -> list[Layer]:
    layers, d_in = [], model.channels * model.image_size**2
    for i in range(model.depth):
        layers += _normed(Layer(f"body.layers.{i}.linear", "hidden", d_in, model.width), f"body.layers.{i}.norm")
        d_in = model.width
    return [*layers, Layer("head", "head", d_in, model.classes)]


def block_shapes(width: int, stages: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """(d_in, d_out, stride) of every residual block: each stage but the first begins with stride 2 and twice the channels."""
    shapes, d_in = [], width
    for stage, blocks in enumerate(stages):
        for block in range(blocks):
            d_out = width * 2**stage
            shapes.append((d_in, d_out, 2 if stage and not block else 1))
            d_in = d_out
    return shapes


def _conv(name: str, kind: Kind, d_in: int, d_out: int, size: int, stride: int = 1, kernel: int = 3) -> Layer:
    return Layer(name, kind, d_in, d_out, kernel, stride, size)


def _normed(layer: Layer, norm: str, there: bool = True) -> list[Layer]:
    """A layer and the normalisation of its outputs, which nothing else reads; `there` false: the layer alone."""
    return [replace(layer, followed_by=norm), _norm(norm, layer.d_out, layer.size)] if there else [layer]


def _norm(name: str, channels: int, size: int) -> Layer:
    return Layer(name, "norm", channels, channels, size_in=size)
