"""The model is GPT-2: equal to an independent implementation, and to the parameter table of the plan."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from configs.schema import Model, RunConfig
from configs.tensors import tensor_table
from engine.sums import square_sums
from model.gpt import GPT
from model.loss import cross_entropy_sum
from optim.algorithms import build_optimizer
from optim.parameter_groups import parameter_groups, set_step

BASE: dict[str, Any] = {"n_layer": 3, "n_head": 4, "n_embd": 32, "seq_len": 24, "vocab_size": 100}


def gpt(**fields: Any) -> GPT:
    model = GPT(Model.model_validate(BASE | fields))
    model.init_weights(0)
    return model


@pytest.mark.parametrize("bias", [False, True])
def test_equals_transformers_gpt2(bias: bool) -> None:
    """Breaks if attention, masking, LayerNorm, GELU, tying or the loss differs from the released GPT-2."""
    from transformers import GPT2Config, GPT2LMHeadModel

    ours = gpt(activation="gelu_tanh", bias=bias)
    with torch.no_grad():
        for parameter in ours.parameters():  # away from the init's zeros and ones
            parameter.add_(
                torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())) * 0.1
            )
    theirs = GPT2LMHeadModel(GPT2Config(vocab_size=100, n_positions=24, n_embd=32, n_layer=3, n_head=4)).eval()
    mapped = {"wte": "wte", "wpe": "wpe", "ln_f": "ln_f"}
    for i in range(3):
        pairs = (
            ("ln_1", "ln_1"),
            ("ln_2", "ln_2"),
            ("attn.qkv", "attn.c_attn"),
            ("attn.proj", "attn.c_proj"),
            ("mlp.fc", "mlp.c_fc"),
            ("mlp.proj", "mlp.c_proj"),
        )
        mapped |= {f"blocks.{i}.{a}": f"h.{i}.{b}" for a, b in pairs}
    state = dict(theirs.transformer.state_dict())
    for name, tensor in ours.state_dict().items():
        module, _, kind = name.rpartition(".")
        transposed = (kind == "weight" and "mlp" in name) or (
            "attn" in name and kind == "weight"
        )  # HF's Conv1D is (in, out)
        state[f"{mapped[module]}.{kind}"] = tensor.T if transposed else tensor
    if not bias:
        state = {name: torch.zeros_like(t) if name.endswith("bias") else t for name, t in state.items()}
    theirs.transformer.load_state_dict(state)
    tokens = torch.randint(0, 100, (2, 25), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(tokens[:, :-1]).logits
        logits, loss = ours.logits(tokens[:, :-1]), ours(tokens[:, :-1], tokens[:, 1:])
        reference = torch.nn.functional.cross_entropy(expected.flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum")
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loss, reference, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fields", [{}, {"bias": True}, {"tied_head": False}, {"layernorm_gain": False}])
def test_parameters_are_those_of_the_plan(fields: dict[str, Any]) -> None:
    """Breaks if the plan counts other parameters than the model has, or lists a tied weight twice."""
    live = {name: tuple(p.shape) for name, p in gpt(**fields).named_parameters()}
    table = tensor_table(Model.model_validate(BASE | fields))
    assert list(live.items()) == [(name, tensor.shape) for name, tensor in table.items()]


def test_init() -> None:
    """Breaks if the scale of the initial weights is not 0.02·√(768/n_embd), or the seed does not decide them."""
    model, again, other = gpt(n_embd=192), gpt(n_embd=192), GPT(Model.model_validate(BASE | {"n_embd": 192}))
    other.init_weights(1)
    state = dict(model.named_parameters())
    assert state["wte.weight"].std().item() == pytest.approx(0.04, rel=0.03)
    assert state["blocks.1.mlp.fc.weight"].std().item() == pytest.approx(0.04, rel=0.03)
    for name in ("blocks.0.attn.proj.weight", "blocks.2.mlp.proj.weight"):
        assert state[name].std().item() == pytest.approx(0.04 / math.sqrt(6), rel=0.03)
    assert (state["ln_f.weight"] == 1).all()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert not torch.equal(state["wte.weight"], other.wte.weight)


def test_future_tokens_do_not_leak() -> None:
    """Breaks if a position sees what comes after it."""
    model, tokens = gpt(), torch.randint(0, 100, (1, 24))
    changed = tokens.clone()
    changed[0, 12:] = (changed[0, 12:] + 1) % 100
    with torch.no_grad():
        torch.testing.assert_close(model.logits(tokens)[0, :12], model.logits(changed)[0, :12])


@pytest.mark.parametrize("layout", [[5, 11, 8], [1, 22, 1], [24], [23, 1]])
def test_documents_do_not_see_each_other(layout: list[int]) -> None:
    """Breaks if, without cross-document attention, a loss depends on another document: each document alone, at its own
    positions, gives the same logits, and no gradient reaches the others' embeddings."""
    eot, model = 99, GPT(Model.model_validate(BASE), separate_at=99)
    model.init_weights(0)
    tokens = torch.randint(0, 99, (1, 24), generator=torch.Generator().manual_seed(2))
    ends = torch.tensor(layout).cumsum(0)
    tokens[0, ends[:-1] - 1] = eot  # each document but the last ends in the window
    logits = model.logits(tokens)
    plain = gpt()
    with torch.no_grad():
        for start, end in zip([0, *ends.tolist()[:-1]], ends.tolist(), strict=True):
            alone = plain.wte(tokens[:, start:end]) + plain.wpe.weight[start:end]
            for block in plain.blocks:
                alone = block(alone)
            expected = torch.nn.functional.linear(plain.ln_f(alone), plain.wte.weight)
            torch.testing.assert_close(logits[:, start:end], expected, rtol=1e-5, atol=1e-5)
    seen = []
    model.wte.register_forward_hook(lambda _m, _i, output: output.retain_grad())
    model.wte.register_forward_hook(lambda _m, _i, output: seen.append(output))
    model.logits(tokens)[0, ends[0] - 1].square().sum().backward()
    reached = seen[0].grad[0].abs().sum(-1) > 0  # the gradient of the embedded tokens, (T,)
    assert reached.tolist() == [position < layout[0] for position in range(24)]


def test_loss_is_float32_for_any_logits() -> None:
    """Breaks if softmax or loss is computed in bf16: large vocabularies would lose the third digit."""
    logits = torch.randn(16, 5000, generator=torch.Generator().manual_seed(0)).bfloat16()
    targets = torch.arange(16)
    loss = cross_entropy_sum(torch.eye(16, dtype=torch.bfloat16), logits.T.contiguous(), targets)
    exact = torch.nn.functional.cross_entropy(logits.double(), targets, reduction="sum")
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6)


def test_autocast_is_inside_forward() -> None:
    """Breaks if bf16-mixed computes its matmuls in float32, or changes the weights' dtype."""
    seen = []
    model = GPT(Model.model_validate(BASE), autocast=torch.bfloat16)
    model.blocks[0].mlp.fc.register_forward_hook(lambda _m, _i, out: seen.append(out.dtype))
    tokens = torch.randint(0, 100, (2, 25))
    assert model(tokens[:, :-1], tokens[:, 1:]).dtype == torch.float32
    assert seen == [torch.bfloat16]
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_dropout_off_in_eval() -> None:
    """Breaks if validation draws dropout masks."""
    model, tokens = gpt(dropout=0.5), torch.randint(0, 100, (2, 24))
    model.eval()
    assert torch.equal(model.logits(tokens), model.logits(tokens))
    model.train()
    assert not torch.equal(model.logits(tokens), model.logits(tokens))


def test_norms_of_large_tensors() -> None:
    """Breaks if norms lose digits with size: torch's own float32 norm of an embedding of 4·10⁷ elements is 0.3 % off on a CPU."""
    large = torch.randn(40_000_000, generator=torch.Generator().manual_seed(0))
    small = torch.full((3,), 2.0)
    sums = square_sums([large, small])
    assert sums[0].item() == pytest.approx(large.double().square().sum().item(), rel=1e-6)
    assert sums[1].item() == pytest.approx(12.0, rel=1e-6)


@pytest.mark.parametrize("mask", ["matrices", "matmul", "all"])
def test_groups_partition_the_parameters(mask: str, tiny_config: Callable[..., RunConfig]) -> None:
    """Breaks if a tensor is in no group or two, or the groups change with λ."""
    named = dict(gpt().named_parameters())
    layouts = []
    for weight_decay in (0.0, 0.3):
        optim = tiny_config({"optim": {"decay_mask": mask, "weight_decay": weight_decay}}).optim
        groups = parameter_groups(named, tensor_table(Model.model_validate(BASE)), optim)
        assert sorted(id(p) for g in groups for p in g["params"]) == sorted(id(p) for p in named.values())
        assert {g["name"]: g["weight_decay"] for g in groups}["decayed"] == weight_decay
        layouts.append([g["parameter_names"] for g in groups])
    assert layouts[0] == layouts[1]


def test_zero_gradient_decays_by_one_minus_eta_lambda(tiny_config: Callable[..., RunConfig]) -> None:
    """Breaks if decay is coupled, scaled twice, or reaches the gains: p ← p(1 − ηλ) exactly, to float32 rounding."""
    named = dict(gpt().named_parameters())
    before = {name: p.detach().clone() for name, p in named.items()}
    config = tiny_config({"optim": {"weight_decay": 0.25}})
    optimizer = build_optimizer(named, tensor_table(Model.model_validate(BASE)), config.optim)
    for p in named.values():
        p.grad = torch.zeros_like(p)
    set_step(optimizer, config, 0, 0.1)
    optimizer.step()
    for name, p in named.items():
        factor = 1 - 0.1 * 0.25 if p.dim() >= 2 else 1.0
        torch.testing.assert_close(p.detach(), before[name] * factor, rtol=3e-7, atol=0)
