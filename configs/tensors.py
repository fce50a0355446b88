"""The tensor table: every trainable tensor of a model, by name, with its shape, its kind and its role.

What decays, how weights begin, what a token costs, what probes and figures group by: all of it reads this table, and nothing
reads a name. A model family is one function here and one file in model/. A test compares the table with the live model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Literal

from configs.schema import Model

# matrix: multiplies activations (the head and convolutions too). embedding: looked up by an index.
# gain: multiplies element by element, and begins at 1. bias: is added, and begins at 0.
Role = Literal["matrix", "embedding", "gain", "bias"]


@dataclass(frozen=True)
class TensorSpec:
    """One tensor. `kind` is what it is for, the same in every block: attn.qkv, mlp.proj, norm, embedding, position, head,
    head_scale.

    A bias has the kind of what it is added to.
    """

    shape: tuple[int, ...]
    kind: str
    role: Role

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def is_hidden_matrix(tensor: TensorSpec) -> bool:
    """Whether a tensor is a matrix inside the network: not an embedding, and not the head."""
    return tensor.role == "matrix" and tensor.kind != "head"


def is_normalised(tensor: TensorSpec) -> bool:
    """Whether a normalisation follows in the network, so that the tensor's size changes no output: all matrices but the head.

    A block's outputs go into the residual stream, which every later LayerNorm normalises (Defazio, 2506.02285, counts them so). A
    token embedding may be the head as well, and is not counted; the position embedding is.
    """
    return is_hidden_matrix(tensor) or tensor.kind == "position"


@lru_cache(maxsize=64)  # a plan asks again and again, and a thousand blocks are 6,000 tensors
def tensor_table(model: Model) -> Mapping[str, TensorSpec]:
    """Every trainable tensor of the model, tied weights once, in the order of its named_parameters()."""
    return MappingProxyType(_gpt(model))


def _gpt(model: Model) -> dict[str, TensorSpec]:
    """GPT-2 (model/gpt.py). Shapes: V vocabulary, T seq_len, d n_embd."""
    d, tensors = model.n_embd, {}

    def norm(name: str) -> None:
        if model.layernorm_gain:
            tensors[f"{name}.weight"] = TensorSpec((d,), "norm", "gain")
            if model.bias:
                tensors[f"{name}.bias"] = TensorSpec((d,), "norm", "bias")

    def linear(block: str, kind: str, d_in: int, d_out: int) -> None:
        tensors[f"{block}.{kind}.weight"] = TensorSpec((d_out, d_in), kind, "matrix")
        if model.bias:
            tensors[f"{block}.{kind}.bias"] = TensorSpec((d_out,), kind, "bias")

    tensors["wte.weight"] = TensorSpec((model.vocab_size, d), "embedding", "embedding")  # (V, d)
    tensors["wpe.weight"] = TensorSpec((model.seq_len, d), "position", "embedding")  # (T, d)
    for i in range(model.n_layer):
        block = f"blocks.{i}"
        norm(f"{block}.ln_1")
        linear(block, "attn.qkv", d, 3 * d)
        linear(block, "attn.proj", d, d)
        norm(f"{block}.ln_2")
        linear(block, "mlp.fc", d, 4 * d)
        linear(block, "mlp.proj", 4 * d, d)
    norm("ln_f")
    if model.head_scale:  # one element, and no number without a shape: ranks share it as they share any other tensor
        tensors["head_scale.weight"] = TensorSpec((1,), "head_scale", "gain")
    # A tied head is the embedding: one tensor, which the model lists once.
    if not model.tied_head:
        tensors["head.weight"] = TensorSpec((model.vocab_size, d), "head", "matrix")  # (V, d)
    return tensors
