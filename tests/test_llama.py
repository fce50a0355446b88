"""Llama's shapes are fields of the one transformer: equal to independent implementations, and to formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from configs.cost import flops_per_token, n_parameters
from configs.errors import InputError
from configs.load import validate
from configs.schema import Model
from configs.tensors import tensor_table
from model.attention import Rotary, by_products
from model.foreign_names import llama_names
from model.gpt import GPT

BASE: dict[str, Any] = {"n_layer": 3, "n_head": 4, "n_embd": 32, "seq_len": 24, "vocab_size": 100}
LLAMA = BASE | {
    "norm": "rmsnorm",
    "norm_eps": 1e-6,
    "position": "rotary",
    "rotary_base": 500.0,
    "activation": "swiglu",
    "mlp_width": 44,
    "n_kv_head": 2,
    "tied_head": False,
}
# Each switch by itself on GPT-2, and what only together is anything.
SWITCHES: dict[str, dict[str, Any]] = {
    "rmsnorm": {"norm": "rmsnorm"},
    "rotary": {"position": "rotary"},
    "swiglu": {"activation": "swiglu", "mlp_width": 40},
    "relu2": {"activation": "relu2", "bias": True},
    "grouped": {"n_kv_head": 1},
    "qk_norm": {"qk_norm": True},
    "qk_norm with biases": {"qk_norm": True, "bias": True},
    "qk_norm without gains": {"qk_norm": True, "layernorm_gain": False},
    "llama": LLAMA,
    "qwen3": LLAMA | {"qk_norm": True},
}


def gpt(**fields: Any) -> GPT:
    """A network whose weights are far from their start: gains are not 1."""
    model = GPT(Model.model_validate(BASE | fields))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator) + (parameter.dim() == 1))
    return model


@pytest.mark.parametrize("qk_norm", [False, True], ids=["Llama", "Qwen3"])
def test_equals_transformers(qk_norm: bool) -> None:
    """Breaks if rotation, grouping, RMSNorm, SwiGLU, the norms of queries and keys, or a gradient, is another than theirs."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

    kind, network = (Qwen3Config, Qwen3ForCausalLM) if qk_norm else (LlamaConfig, LlamaForCausalLM)
    shape = {"vocab_size": 100, "hidden_size": 32, "intermediate_size": 44, "num_hidden_layers": 3, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 24, "rms_norm_eps": 1e-6}
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}, "tie_word_embeddings": False}
    theirs = network(kind(**shape, **heads, **rope)).eval()
    ours = gpt(**LLAMA | {"qk_norm": qk_norm})
    names = [(f"model.{name}", mine, rows) for name, mine, rows in llama_names(ours.config)]
    names.append(("lm_head", "head", slice(None)))
    state = {f"{theirs}.weight": ours.get_parameter(f"{mine}.weight").detach()[rows] for theirs, mine, rows in names}
    assert set(state) == set(theirs.state_dict())
    theirs.load_state_dict(state)

    tokens = torch.randint(0, 100, (2, 25), generator=torch.Generator().manual_seed(1))
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    expected = theirs(inputs).logits
    torch.testing.assert_close(ours.logits(inputs), expected, rtol=1e-5, atol=1e-5)
    F.cross_entropy(expected.flatten(0, 1), targets.flatten()).backward()
    (ours(inputs, targets) / targets.numel()).backward()
    for name, mine, rows in names:
        gradient = ours.get_parameter(f"{mine}.weight").grad
        assert gradient is not None
        torch.testing.assert_close(gradient[rows], theirs.get_parameter(f"{name}.weight").grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SWITCHES)
def test_parameters_are_those_of_the_plan(name: str) -> None:
    """Breaks if the plan counts other parameters than a network of these fields has."""
    live = {key: tuple(p.shape) for key, p in gpt(**SWITCHES[name]).named_parameters()}
    table = tensor_table(Model.model_validate(BASE | SWITCHES[name]))
    assert list(live.items()) == [(key, tensor.shape) for key, tensor in table.items()]


@pytest.mark.parametrize("name", SWITCHES)
def test_each_switch_changes_the_function(name: str) -> None:
    """Breaks if a field does nothing, or a network trains no gradient into one of its tensors."""
    tokens = torch.randint(0, 100, (2, 24), generator=torch.Generator().manual_seed(1))
    model, plain = gpt(**SWITCHES[name]), gpt(bias=SWITCHES[name].get("bias", False))
    assert not torch.allclose(model.logits(tokens), plain.logits(tokens))
    model(tokens, tokens.roll(1)).backward()
    still = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # What is added to all keys alike moves no softmax; a norm of the keys lets such a bias count.
    assert still == [], still


def test_activations_are_their_formulas() -> None:
    """Breaks if SwiGLU's gate and value change places, or relu2 squares what is below 0."""
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    mlp = gpt(activation="swiglu", mlp_width=40).blocks[0].mlp
    gate, up = x @ mlp.gate.weight.T, x @ mlp.fc.weight.T
    torch.testing.assert_close(mlp(x), (gate / (1 + (-gate).exp()) * up) @ mlp.proj.weight.T)
    mlp = gpt(activation="relu2").blocks[0].mlp
    torch.testing.assert_close(mlp(x), (x @ mlp.fc.weight.T).clamp(min=0) ** 2 @ mlp.proj.weight.T)


def test_positions_are_relative() -> None:
    """Breaks if a score depends on more than how far key and query are apart, or the table is not base^(−2i/D)."""
    config = Model.model_validate(LLAMA)
    table = Rotary(config).at(24, torch.device("cpu"))
    assert table.dtype == torch.float32
    angle = 7 * 500.0 ** (-2 * 3 / 8)  # position 7, pair 3 of D = 8
    torch.testing.assert_close(table[:, 7, 3], torch.tensor([math.cos(angle), math.sin(angle)]))
    x = torch.randn(1, 32, generator=torch.Generator().manual_seed(0)).expand(1, 24, 32)  # the same at every position
    q, k, _ = gpt(**LLAMA).blocks[0].attn.queries_keys_values(x, table)
    scores = q[:, ::2] @ k.transpose(-2, -1)  # (1, 2, T, T)
    for apart in (0, 1, 5):
        along = scores.diagonal(-apart, -2, -1)
        torch.testing.assert_close(along, along[..., :1].expand_as(along))
    assert not torch.allclose(scores[..., 9, 9], scores[..., 9, 3])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("attention", ["math", "stable"])
def test_arithmetics_agree_in_float32(attention: str, masked: bool) -> None:
    """Breaks if an arithmetic written out is another function than torch's kernel, or has another gradient."""
    tokens = torch.randint(0, 100, (2, 24), generator=torch.Generator().manual_seed(1))
    tokens[:, 1] = tokens[:, 2]
    found = []
    for name in ("sdpa", attention):
        model = gpt(**LLAMA | {"attention": name})
        model.separate_at = int(tokens[0, 5]) if masked else None
        loss = model(tokens, tokens.roll(1))
        loss.backward()
        found.append((model.logits(tokens), {key: p.grad for key, p in model.named_parameters()}))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=1e-5)
    for key, gradient in found[0][1].items():
        torch.testing.assert_close(found[1][1][key], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))


def _tied_rows(low: float, high: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k, v (B, 1, T, D) bfloat16, whose last row has two equal maxima between low and high, far above all others.

    Values are negative. And the row's output in float64, (B, D).
    """
    B, T, D = 64, 16, 64
    draw = torch.Generator().manual_seed(0)
    top = torch.rand(B, 1, generator=draw) * (high - low) + low
    q, k = torch.zeros(B, 1, T, D), torch.zeros(B, 1, T, D)
    q[..., 0] = math.sqrt(D)
    k[..., 0] = top[:, None] - 11 - 2 * torch.rand(B, 1, T, generator=draw)
    k[:, :, 3, 0] = k[:, :, 7, 0] = top
    v = -(1 + torch.rand(B, 1, T, D, generator=draw))
    q, k, v = (x.bfloat16() for x in (q, k, v))
    scores = (q.double() @ k.double().transpose(-2, -1) / math.sqrt(D))[:, 0, -1:]  # (B, 1, T), all visible
    return q, k, v, (scores.softmax(-1) @ v[:, 0].double())[:, 0]


@pytest.mark.parametrize(("low", "high"), [(0.2, 6.0), (-6.0, -0.2), (-300.0, -200.0)])
def test_stable_rounds_without_bias(low: float, high: float) -> None:
    """Breaks if `stable` does not move the maximum, or moves it so far that a row vanishes.

    The case is 2510.04212's. torch's kernel and `math` are biased in it alike, by more than thirty standard errors.
    """
    q, k, v, expected = _tied_rows(low, high)
    sdpa = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    outputs = {"sdpa": sdpa} | {f"{s}": by_products(q, k, v, None, 0.0, s) for s in (False, True)}
    errors = {}
    for name, y in outputs.items():
        by_row = (y[:, 0, -1].double() - expected).mean(-1)  # (B,)
        errors[name] = float(by_row.mean() / (by_row.std() / math.sqrt(len(by_row))))
    assert errors["False"] < -30, errors
    assert errors["sdpa"] == pytest.approx(errors["False"]), errors
    assert abs(errors["True"]) < 4, errors


def test_flops_by_hand() -> None:
    """Breaks if the gate is not counted, or grouped keys and values are counted as whole."""
    d, heads, keys, inside, layers, vocabulary, length = 32, 4, 2, 44, 3, 100, 24
    width = d // heads
    matrices = d * (heads + 2 * keys) * width + d * d + 3 * d * inside
    by_hand = 6 * (layers * matrices + vocabulary * d) + layers * 12 * heads * width * length
    assert flops_per_token(Model.model_validate(LLAMA)) == by_hand


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"position": "rotary", "n_head": 32}, "a head of n_embd 32 / n_head 32 has 1"),
        ({"rotary_base": 500.0}, "rotary_base does nothing with position learned"),
        ({"n_kv_head": 3}, "n_kv_head 3 does not divide n_head 4; these do: 1, 2, 4"),
        ({"activation": "swiglu"}, "needs mlp_width: with three matrices 85 gives about as many parameters as 128"),
        ({"norm": "rmsnorm", "bias": True}, "an RMSNorm has no bias"),
        ({"attention": "flash"}, "sdpa"),
    ],
)
def test_refused(fields: dict[str, Any], said: str) -> None:
    """Breaks if fields that mean nothing together make a network all the same."""
    given = {
        "name": "x",
        "model": BASE | fields,
        "data": {"path": "x"},
        "optim": {"lr": 0.01, "weight_decay": 0.1},
        "schedule": {"steps": 4, "warmup_steps": 0},
        "batch": {"tokens_per_step": 48},
    }
    with pytest.raises(InputError, match=said.replace("(", r"\(")):
        validate(given, "test")


def test_a_number_that_says_what_null_says() -> None:
    """Breaks if the same network gets two ids."""
    plain = Model.model_validate(BASE)
    assert Model.model_validate(BASE | {"n_kv_head": 4, "mlp_width": 128}) == plain
    wide = {"activation": "swiglu", "mlp_width": 128}
    assert Model.model_validate(BASE | wide).mlp_width == 128


@pytest.mark.parametrize(("width", "heads", "published"), [(512, 8, 130e6), (768, 12, 300e6), (1024, 16, 520e6)])
def test_marins_sizes_count_blocks_alone(width: int, heads: int, published: float) -> None:
    """Breaks if Marin's Llamas, whose published sizes leave embedding and head out, have other blocks."""
    fields = {"n_layer": 32, "n_head": heads, "n_embd": width, "mlp_width": 4 * width}
    shape = {key: LLAMA[key] for key in ("norm", "position", "activation", "tied_head")}
    tensors = tensor_table(Model.model_validate(shape | fields | {"seq_len": 4096, "vocab_size": 128256}))
    blocks = sum(tensor.size for name, tensor in tensors.items() if name.startswith("blocks."))
    assert blocks == pytest.approx(published, rel=0.04)


@pytest.mark.parametrize(
    ("fields", "published"),
    [
        # AlphaDecay's Llama 60M and 135M (T5's vocabulary, 32,000): embedding and head are two tensors.
        ({"n_layer": 8, "n_embd": 512, "n_head": 8, "mlp_width": 1376, "vocab_size": 32000}, 58e6),
        ({"n_layer": 12, "n_embd": 768, "n_head": 12, "mlp_width": 2048, "vocab_size": 32000}, 134e6),
    ],
)
def test_published_sizes(fields: dict[str, Any], published: float) -> None:
    """Breaks if a Llama of published shape has another size than is published."""
    shape = {key: LLAMA[key] for key in ("norm", "position", "activation", "tied_head")}
    model = Model.model_validate(shape | fields | {"seq_len": 256})
    assert n_parameters(model) == pytest.approx(published, rel=0.01)
