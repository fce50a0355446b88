"""The tensors of our transformer by the names that GPT-2 (of transformers and of nanoGPT), Llama and Qwen3 have for them.

Modules are named, without `.weight` and `.bias`, and without the family's prefix `transformer.` or `model.`.
"""

from __future__ import annotations

from collections.abc import Iterator

from configs.transformer import Model


def gpt2_names(model: Model) -> Iterator[tuple[str, str]]:
    """Of each module but the head: its name there, and here."""
    yield from (("wte", "wte"), ("wpe", "wpe"), ("ln_f", "ln_f"))
    pairs = {"ln_1": "ln_1", "attn.c_attn": "attn.qkv", "attn.c_proj": "attn.proj"}
    pairs |= {"ln_2": "ln_2", "mlp.c_fc": "mlp.fc", "mlp.c_proj": "mlp.proj"}
    for i in range(model.n_layer):
        for there, here in pairs.items():
            yield f"h.{i}.{there}", f"blocks.{i}.{here}"


def llama_names(model: Model) -> Iterator[tuple[str, str, slice]]:
    """Of each module but the head: its name there, here, and the rows of ours that it has."""
    width = model.n_embd // model.n_head
    keys = model.kv_heads * width
    yield "embed_tokens", "wte", slice(None)
    yield "norm", "ln_f", slice(None)
    for i in range(model.n_layer):
        theirs, ours, start = f"layers.{i}", f"blocks.{i}", 0
        for name, rows in (("q", model.n_embd), ("k", keys), ("v", keys)):
            yield f"{theirs}.self_attn.{name}_proj", f"{ours}.attn.qkv", slice(start, start + rows)
            start += rows
        pairs = {"self_attn.o_proj": "attn.proj", "mlp.gate_proj": "mlp.gate", "mlp.up_proj": "mlp.fc"}
        pairs |= {"mlp.down_proj": "mlp.proj", "input_layernorm": "ln_1", "post_attention_layernorm": "ln_2"}
        if model.qk_norm:
            pairs |= {"self_attn.q_norm": "attn.q_norm", "self_attn.k_norm": "attn.k_norm"}
        for there, here in pairs.items():
            yield f"{theirs}.{there}", f"{ours}.{here}", slice(None)
