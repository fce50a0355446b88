"""The transformer in the format of Hugging Face's transformers: its config.json and its tensors by their names there.

GPT-2's shapes are a GPT2LMHeadModel, Llama's a LlamaForCausalLM, with norms of queries and keys a Qwen3ForCausalLM. Nothing of
transformers is needed to write them. What the format holds in other words keeps its function: a network without biases has biases
of 0 there, a plain norm has gains of 1, and the head's scale is in the last norm. What it cannot hold is refused.

Shapes: V vocabulary, C = n_embd, D a head's width, G heads of keys, F inside the MLP.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from configs.errors import InputError
from configs.foreign_shape import ACTIVATIONS
from configs.transformer import Model
from model.foreign_names import gpt2_names, llama_names

# What the two families have, and all others lack: field, value.
LLAMA = {"norm": "rmsnorm", "position": "rotary", "activation": "swiglu", "bias": False}
GPT2 = {"norm": "layernorm", "position": "learned", "n_kv_head": None, "qk_norm": False}


def convert(model: Model, weights: Mapping[str, Tensor], eot: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and tensors, of weights by our names. `eot`: the token that ends a document.

    InputError for a network that neither family holds.
    """
    # What a family would have otherwise; of its own network nothing.
    unlike_llama = {field: value for field, value in LLAMA.items() if getattr(model, field) != value}
    unlike_gpt2 = {field: value for field, value in GPT2.items() if getattr(model, field) != value}
    if model.activation not in ACTIVATIONS:
        unlike_gpt2["activation"] = " or ".join(ACTIVATIONS)
    if unlike_llama and unlike_gpt2:
        gpt2, llama = (", ".join(f"model.{f} {v}" for f, v in fields.items()) for fields in (unlike_gpt2, unlike_llama))
        raise InputError(
            f"transformers has no network of these shapes that is written here: GPT-2 would need {gpt2}; Llama would need "
            f"{llama}. `--to safetensors` writes any network"
        )
    named = _scaled(model, weights)
    config, tensors = _gpt2(model, named) if not unlike_gpt2 else _llama(model, named)
    if not model.tied_head:
        tensors["lm_head.weight"] = named["head.weight"]
    config |= {
        "vocab_size": model.vocab_size,
        "tie_word_embeddings": model.tied_head,
        "bos_token_id": eot,
        "eos_token_id": eot,
        "initializer_range": model.init_std,
        "torch_dtype": "float32",
        "use_cache": True,
    }
    return config, {name: tensor.contiguous() for name, tensor in tensors.items()}


def _scaled(model: Model, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors with gains of 1 where there are none, and the head's scale s in the last norm: s·(x̂γ + β)Wᵀ."""
    named = dict(weights)
    if not model.layernorm_gain:
        width = model.n_embd // model.n_head
        for i in range(model.n_layer):
            named |= {f"blocks.{i}.{norm}.weight": torch.ones(model.n_embd) for norm in ("ln_1", "ln_2")}
            if model.qk_norm:
                named |= {f"blocks.{i}.attn.{norm}.weight": torch.ones(width) for norm in ("q_norm", "k_norm")}
        named["ln_f.weight"] = torch.ones(model.n_embd)
    if model.head_scale:
        scale = named.pop("head_scale.weight")
        named |= {name: named[name] * scale for name in ("ln_f.weight", "ln_f.bias") if name in named}
    return named


def _gpt2(model: Model, named: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    tensors = {}
    for theirs, ours in gpt2_names(model):
        weight, is_embedding = named[f"{ours}.weight"], ours in ("wte", "wpe")
        # Their linear maps are (in, out).
        tensors[f"transformer.{theirs}.weight"] = weight.T if weight.dim() == 2 and not is_embedding else weight
        if not is_embedding:
            tensors[f"transformer.{theirs}.bias"] = named.get(f"{ours}.bias", torch.zeros(weight.shape[0]))
    config = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_layer": model.n_layer,
        "n_head": model.n_head,
        "n_embd": model.n_embd,
        "n_inner": model.mlp_hidden,
        "n_positions": model.seq_len,
        "activation_function": ACTIVATIONS[model.activation],
        "layer_norm_epsilon": model.norm_eps,
    }
    return config | dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), model.dropout), tensors


def _llama(model: Model, named: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    tensors = {f"model.{theirs}.weight": named[f"{ours}.weight"][rows] for theirs, ours, rows in llama_names(model)}
    config = {
        "architectures": ["Qwen3ForCausalLM" if model.qk_norm else "LlamaForCausalLM"],
        "model_type": "qwen3" if model.qk_norm else "llama",
        "num_hidden_layers": model.n_layer,
        "num_attention_heads": model.n_head,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.n_embd // model.n_head,
        "hidden_size": model.n_embd,
        "intermediate_size": model.mlp_hidden,
        "max_position_embeddings": model.seq_len,
        "hidden_act": "silu",
        "rms_norm_eps": model.norm_eps,
        # the first is what version 5 reads, the second what versions before it do
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rotary_base},
        "rope_theta": model.rotary_base,
        "attention_bias": False,
        "attention_dropout": model.dropout,
    }
    return config, tensors
