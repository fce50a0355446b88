"""The shape of a transformer that was made elsewhere, as fields of ours: config.json of Hugging Face, model_args of nanoGPT.

What a network computes decides; how it was trained (dropout, initial weights) is not taken over. A network that has what ours
lacks is refused, with the field.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from configs.echo import shown
from configs.errors import InputError
from configs.load import validate_as
from configs.transformer import Model

# our word for an activation → transformers'
ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu2": "relu2"}
TANH_FORMS = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")
Shape = dict[str, Any]


def shape_of_hf(config: Mapping[str, Any], name: str) -> Shape:
    """Of config.json in `name`: the fields of configs/transformer.Model that it decides. InputError for another architecture."""
    readers = {"gpt2": _gpt2, "llama": _llama, "qwen3": _llama}
    reader = readers.get(str(config.get("model_type")))
    if reader is None:
        raise InputError(
            f"{name} is of model_type {shown(config.get('model_type'))}; these are read: {', '.join(readers)}"
        )
    try:
        return reader(config, name)
    except KeyError as error:
        raise InputError(f"{name} is no whole configuration of {config['model_type']}: {error} is missing") from None
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise InputError(f"{name} is no configuration of {config['model_type']}: {error}") from None


def shape_of_nanogpt(arguments: Mapping[str, Any], name: str) -> Shape:
    """Of a checkpoint's model_args. InputError where one is missing."""
    wanted = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size", "bias")
    if missing := [field for field in wanted if field not in arguments]:
        raise InputError(f"{name}: model_args lacks {', '.join(missing)}; expected a checkpoint that nanoGPT wrote")
    same = {field: arguments[field] for field in wanted if field != "block_size"}
    return {**same, "seq_len": arguments["block_size"], "activation": "gelu", "tied_head": True, **_GPT2}


_GPT2: Shape = {"norm": "layernorm", "norm_eps": 1e-5, "position": "learned", "n_kv_head": None, "qk_norm": False}


def _gpt2(config: Mapping[str, Any], name: str) -> Shape:
    _expect(config, name, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    given = config.get("activation_function", "gelu_new")
    ours = {theirs: word for word, theirs in ACTIVATIONS.items()} | dict.fromkeys(TANH_FORMS, "gelu_tanh")
    if given not in ours:
        raise InputError(f"{name}: activation_function {shown(given)}; these are read: {', '.join(ours)}")
    return {
        **_GPT2,
        **{field: config[field] for field in ("n_layer", "n_head", "n_embd", "vocab_size")},
        "seq_len": config["n_positions"],
        "mlp_width": config.get("n_inner"),
        "norm_eps": config.get("layer_norm_epsilon", 1e-5),
        "activation": ours[given],
        "bias": True,
        "tied_head": config.get("tie_word_embeddings", True),
    }


def _llama(config: Mapping[str, Any], name: str) -> Shape:
    heads, width = config["num_attention_heads"], config["hidden_size"]
    _expect(config, name, hidden_act="silu", attention_bias=False, mlp_bias=False, use_sliding_window=False)
    # Qwen3's own default is 128, whatever the width.
    head_width = config.get("head_dim") or (128 if config["model_type"] == "qwen3" else width // heads)
    if head_width * heads != width:
        raise InputError(
            f"{name}: head_dim {head_width} × {heads} heads is not hidden_size {width}, and ours has no other width of heads"
        )
    rotary = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rotary.get("rope_type", rotary.get("type", "default"))
    if kind != "default":
        raise InputError(f"{name}: rotary positions of type {shown(kind)}; ours are the default ones")
    return {
        "norm": "rmsnorm",
        "position": "rotary",
        "activation": "swiglu",
        "bias": False,
        "n_layer": config["num_hidden_layers"],
        "n_head": heads,
        "n_embd": width,
        "n_kv_head": config.get("num_key_value_heads"),
        "mlp_width": config["intermediate_size"],
        "seq_len": config["max_position_embeddings"],
        "vocab_size": config["vocab_size"],
        "norm_eps": config.get("rms_norm_eps", 1e-6),
        "rotary_base": float(rotary.get("rope_theta") or config.get("rope_theta") or 10000.0),
        "qk_norm": config["model_type"] == "qwen3",
        "tied_head": config.get("tie_word_embeddings", False),
    }


def _expect(config: Mapping[str, Any], name: str, **values: Any) -> None:
    """InputError where a field that has but one value here is there with another."""
    for field, value in values.items():
        if config.get(field, value) != value:
            raise InputError(f"{name}: {field} {shown(config[field])}; ours has only {shown(value)}")


def misfits(ours: Model, shape: Shape, name: str) -> list[tuple[str, Any, Any]]:
    """Fields in which our network cannot begin with these weights: (field, ours, theirs).

    Ours may have a shorter context, and lack biases or gains that turn out to be 0 or 1 (engine/foreign_tensors.py).
    """
    theirs = validate_as(Model, shape, name)
    rows = [(f"model.{field}", getattr(ours, field), getattr(theirs, field)) for field in (*shape, "head_scale")]
    free = {"model.seq_len"} if ours.seq_len <= theirs.seq_len else set()
    free |= {"model.bias"} if theirs.bias else set()
    return [row for row in rows if row[1] != row[2] and row[0] not in free]
