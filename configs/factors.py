"""K-FAC's factors, counted without torch: which layers have them, how large they are, what measuring them holds."""

from __future__ import annotations

from collections.abc import Mapping

from configs.image_tensors import image_layers
from configs.images import ImageModel
from configs.schema import RunConfig
from configs.tensors import QK_NORM, TensorSpec, tensor_table

CHUNK = 1 << 24  # elements of a layer's inputs, unfolded, that are held at once: 64 MiB


def is_factored(tensor: TensorSpec) -> bool:
    """Whether it belongs to a layer with factors: a matrix that multiplies activations, or what is added to its outputs."""
    return tensor.role == "matrix" or (tensor.role == "bias" and tensor.kind not in ("norm", QK_NORM))


def factored_layers(tensors: Mapping[str, TensorSpec]) -> dict[str, tuple[int, int]]:
    """Of each layer, by its name, the sizes of A and S. A bias is one more input, always 1."""
    layers: dict[str, tuple[int, int]] = {}
    for name, tensor in tensors.items():
        if tensor.role == "matrix":
            layer, d_out = name.removesuffix(".weight"), tensor.shape[0]
            layers[layer] = (tensor.size // d_out + (f"{layer}.bias" in tensors), d_out)
    return layers


def first_order_names(tensors: Mapping[str, TensorSpec]) -> list[str]:
    """The tensors without factors, which take SGD's step."""
    return [name for name, tensor in tensors.items() if not is_factored(tensor)]


def _elements(config: RunConfig) -> int:
    """Of all factors."""
    return sum(a * a + s * s for a, s in factored_layers(tensor_table(config.model)).values())


def factor_bytes(config: RunConfig) -> int:
    """Factors and inverses, float32, the same on every rank, and two counts; 0 of another algorithm."""
    return 2 * 4 * _elements(config) + 2 * 8 if config.optim.algorithm == "kfac" else 0


def inversion_bytes(config: RunConfig) -> int:
    """While inverses are made: float64 of the largest factor, its eigenvectors, the inverse, and what the solver works in."""
    if config.optim.algorithm != "kfac":
        return 0
    largest = max(max(sizes) for sizes in factored_layers(tensor_table(config.model)).values())
    return 6 * 8 * largest**2


def statistics_bytes(config: RunConfig, micro_batch: int) -> int:
    """What measuring the factors holds beside a forward pass: gradients at all outputs, logits and the gradients there, sums."""
    if config.optim.algorithm != "kfac":
        return 0
    model = config.model
    if isinstance(model, ImageModel):
        outputs, classes = sum(x.d_out * x.size**2 for x in image_layers(model) if x.kind != "norm"), model.classes
    else:
        outputs = sum(s for _, s in factored_layers(tensor_table(model)).values()) * model.seq_len
        classes = model.vocab_size * model.seq_len
    # Of logits: as the network gives them, in float32, the gradients; and float64 and random bits of some rows, as of a chunk.
    return 4 * (2 * micro_batch * outputs + 3 * micro_batch * classes + _elements(config)) + 3 * 4 * CHUNK
