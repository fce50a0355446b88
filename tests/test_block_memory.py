"""What a block keeps for its backward pass, counted by the plan and by autograd itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from configs.cost import block_bytes
from configs.schema import Model
from model.gpt import GPT

SHAPE: dict[str, Any] = {"n_layer": 1, "n_head": 4, "n_embd": 192, "mlp_width": 512, "seq_len": 256, "vocab_size": 64}
LLAMA = {"norm": "rmsnorm", "position": "rotary", "activation": "swiglu"}
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "llama": LLAMA,
    "qwen3": LLAMA | {"qk_norm": True, "n_kv_head": 2},
    "grouped heads": {"n_kv_head": 2},
    "modded": LLAMA | {"activation": "relu2", "qk_norm": True, "layernorm_gain": False, "bias": False},
    "layernorm of queries": {"qk_norm": True},
}
PRECISIONS = {
    "fp32": (torch.float32, None),
    "bf16-mixed": (torch.float32, torch.bfloat16),
    "bf16-true": (torch.bfloat16, None),
}


def kept_bytes(model: Model, weights: torch.dtype, autocast: torch.dtype | None, sequences: int = 4) -> float:
    """Of a token: the storages that autograd keeps for one block's backward pass, but for weights and their lowered copies."""
    network = GPT(model, autocast).to(weights)
    network.init_weights(0)
    x = torch.randn(sequences, model.seq_len, model.n_embd, dtype=weights, requires_grad=True)
    rotation = network.rotary.at(model.seq_len, x.device) if network.rotary else None
    no_activations = {p.untyped_storage().data_ptr() for p in network.parameters()}
    shapes = {tuple(p.shape) for p in network.parameters()}
    shapes |= {shape[::-1] for shape in shapes if len(shape) == 2}
    held: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in no_activations and tuple(tensor.shape) not in shapes:
            held[storage.data_ptr()] = tensor  # kept, so that no other tensor gets its address
        return tensor

    with saved_tensors_hooks(note, lambda t: t), torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
        network.blocks[0](x, None, rotation)
    return sum(tensor.untyped_storage().nbytes() for tensor in held.values()) / (sequences * model.seq_len)


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
@pytest.mark.parametrize("attention", ["sdpa", "math", "stable"])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_block_keeps_what_the_plan_counts(family: str, precision: str, attention: str) -> None:
    """Breaks if the estimate forgets a copy that a norm, a rotation, a lowered input or an arithmetic keeps, or counts one twice.

    What is left over are statistics of norms and rows, masks and the table of positions: a few bytes of a token.
    """
    model = Model.model_validate(SHAPE | FAMILIES[family] | {"attention": attention})
    weights, autocast = PRECISIONS[precision]
    narrow = 2 if autocast or weights == torch.bfloat16 else 4
    counted, _ = block_bytes(model, weights.itemsize, narrow)
    assert 0 <= kept_bytes(model, weights, autocast) - counted < 0.015 * counted
