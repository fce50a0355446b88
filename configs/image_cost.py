"""What a network for images costs, without torch: arithmetic and memory. Its parameters are counted by configs/cost.py."""

from __future__ import annotations

import math
from itertools import pairwise

from configs.image_tensors import Layer, image_layers
from configs.images import ImageModel
from configs.precision import BYTES, TABLE


def flops_per_image(model: ImageModel) -> int:
    """Training FLOPs per image: 6 for each use of a weight of a convolution or linear map, at every position of its outputs.

    That is three times the forward pass. Normalisations, biases, maxima and means are not counted, as is usual; of the first layer
    and of a frozen head a gradient is counted that nobody computes, and so are products with a convolution's padding.
    """
    return sum(6 * _uses(layer) for layer in image_layers(model) if layer.kind != "norm")


def image_activation_bytes(model: ImageModel, precision: str, micro_batch: int) -> int:
    """An upper estimate of what one micro-batch adds: activations kept for its backward pass, cast weights, working memory."""
    dtypes, layers = TABLE[precision], image_layers(model)
    wide, narrow = BYTES[dtypes.weights], 2 if dtypes.matmul == "bfloat16" else BYTES[dtypes.weights]
    cast = narrow if narrow < wide else 0
    kept = model.channels * model.image_size**2 * (1 + 2 * wide)  # the pixels, and twice as numbers
    for layer in layers:
        inputs = layer.d_in * layer.size_in**2
        if layer.kind == "norm":
            kept += inputs * wide  # what it normalises; autocast's copy in float32
        else:
            # Its input, which a shortcut has in common with the convolution beside it, and the copy that is cast.
            kept += inputs * ((0 if layer.kind == "shortcut" else wide) + cast)
    # Each maximum keeps its input, four times its output, and where the largest was, in 8 bytes.
    if model.kind == "vgg16":
        pooled = [b.d_in * b.size_in**2 for a, b in _neighbours(layers) if a.size > b.size_in or b.kind == "head"]
        kept += sum(pooled) * (4 * wide + 8)
    # Gradients on their way, and what kernels make for themselves: of the largest feature map.
    largest = max(layer.d_out * layer.size**2 for layer in layers)
    weights = sum(_weights(layer) for layer in layers)
    return round(micro_batch * (kept + 4 * largest * wide) + weights * cast)


def _neighbours(layers: list[Layer]) -> list[tuple[Layer, Layer]]:
    """Each layer that multiplies, with the next one that does."""
    return list(pairwise(layer for layer in layers if layer.kind != "norm"))


def _weights(layer: Layer) -> int:
    return math.prod(layer.weight_shape)


def _uses(layer: Layer) -> int:
    return _weights(layer) * layer.size**2
