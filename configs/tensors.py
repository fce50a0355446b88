"""The tensor table: every trainable tensor of a model, by name, with its shape, its kind and its role.

What decays, how weights begin, what a token costs, what probes and figures group by: all of it reads this table, and nothing
reads a name. A model family is one function here and one file in model/. A test compares the table with the live model.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType

from configs.image_tensors import image_tensors
from configs.images import ImageModel
from configs.schema import Model
from configs.tensor_spec import Role, TensorSpec, is_convolution, is_hidden_matrix, is_last_layer, is_normalised

__all__ = [
    "Role",
    "TensorSpec",
    "is_convolution",
    "is_hidden_matrix",
    "is_last_layer",
    "is_normalised",
    "tensor_table",
]


QK_NORM = "attn.norm"  # the kind of the norms of queries and keys


@lru_cache(maxsize=64)  # a plan asks again and again, and a thousand blocks are 6,000 tensors
def tensor_table(model: Model | ImageModel) -> Mapping[str, TensorSpec]:
    """Every trainable tensor of the model, tied weights once, in the order of its named_parameters()."""
    return MappingProxyType(image_tensors(model) if isinstance(model, ImageModel) else _gpt(model))


def _gpt(model: Model) -> dict[str, TensorSpec]:
    """The transformer (model/gpt.py). Shapes: V vocabulary, T seq_len, d n_embd, D a head's width, G heads of keys."""
    d, inside, tensors = model.n_embd, model.mlp_hidden, {}
    head = d // model.n_head

    def norm(name: str, width: int = d, kind: str = "norm") -> None:
        if model.layernorm_gain:
            tensors[f"{name}.weight"] = TensorSpec((width,), kind, "gain")
            if model.bias:
                tensors[f"{name}.bias"] = TensorSpec((width,), kind, "bias")

    def linear(block: str, kind: str, d_in: int, d_out: int) -> None:
        tensors[f"{block}.{kind}.weight"] = TensorSpec((d_out, d_in), kind, "matrix")
        if model.bias:
            tensors[f"{block}.{kind}.bias"] = TensorSpec((d_out,), kind, "bias")

    tensors["wte.weight"] = TensorSpec((model.vocab_size, d), "embedding", "embedding")  # (V, d)
    if model.position == "learned":
        tensors["wpe.weight"] = TensorSpec((model.seq_len, d), "position", "embedding")  # (T, d)
    for i in range(model.n_layer):
        block = f"blocks.{i}"
        norm(f"{block}.ln_1")
        linear(block, "attn.qkv", d, d + 2 * model.kv_heads * head)  # (d + 2·G·D, d): queries, keys, values
        if model.qk_norm:
            norm(f"{block}.attn.q_norm", head, QK_NORM)
            norm(f"{block}.attn.k_norm", head, QK_NORM)
        linear(block, "attn.proj", d, d)
        norm(f"{block}.ln_2")
        if model.activation == "swiglu":
            linear(block, "mlp.gate", d, inside)
        linear(block, "mlp.fc", d, inside)
        linear(block, "mlp.proj", inside, d)
    norm("ln_f")
    if model.head_scale:  # one element, and no number without a shape: ranks share it as they share any other tensor
        tensors["head_scale.weight"] = TensorSpec((1,), "head_scale", "gain")
    # A tied head is the embedding: one tensor, which the model lists once.
    if not model.tied_head:
        tensors["head.weight"] = TensorSpec((model.vocab_size, d), "head", "matrix")  # (V, d)
    return tensors
