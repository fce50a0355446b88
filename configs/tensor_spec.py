"""What is said of one trainable tensor: its shape, its kind and its role."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

# matrix: multiplies activations (the head and convolutions too). embedding: looked up by an index.
# gain: multiplies element by element, and begins at 1. bias: is added, and begins at 0.
Role = Literal["matrix", "embedding", "gain", "bias"]


@dataclass(frozen=True)
class TensorSpec:
    """One tensor. `kind` is what it is for, the same in every block: attn.qkv, attn.norm (of queries and keys), mlp.proj, norm,
    embedding, position, head, head_scale; of images stem, conv, shortcut, hidden, norm, head.

    A bias has the kind of what it is added to. `bare`: no normalisation follows, in a network that has none. `followed_by`: the
    normalisation through which alone the tensor's outputs pass, so that its size changes no output, by itself; empty: none.
    """

    shape: tuple[int, ...]
    kind: str
    role: Role
    bare: bool = False
    followed_by: str = ""

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def is_hidden_matrix(tensor: TensorSpec) -> bool:
    """Whether a tensor is a matrix inside the network: not an embedding, and not the head. Convolutions are, of four dimensions."""
    return tensor.role == "matrix" and tensor.kind != "head"


def is_convolution(tensor: TensorSpec) -> bool:
    """Whether a tensor is the kernel of a convolution: the first one and those of shortcuts too."""
    return tensor.role == "matrix" and tensor.kind in ("stem", "conv", "shortcut")


def is_last_layer(tensor: TensorSpec) -> bool:
    """Whether a tensor is the matrix of the last layer. A transformer's tied head is the embedding, and none."""
    return tensor.role == "matrix" and tensor.kind == "head"


def is_normalised(tensor: TensorSpec) -> bool:
    """Whether a normalisation follows in the network, so that the tensor's size changes no output: all matrices but the head.

    A block's outputs go into the residual stream, which every later LayerNorm normalises (Defazio, 2506.02285, counts them so); a
    pre-activation ResNet's do the same with batch normalisation. A token embedding may be the head as well, and is not counted;
    the position embedding is. That one of them alone may be scaled is `followed_by`.
    """
    return not tensor.bare and (is_hidden_matrix(tensor) or tensor.kind == "position")
