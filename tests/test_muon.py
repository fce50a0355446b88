"""Muon: against torch's own, against the singular value decomposition, through the engine, and over a stop."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from configs.plan import make_plan
from configs.schedule import lr_at
from configs.schema import RunConfig
from configs.tensors import TensorSpec
from data.loader import TrainData, step_batches
from data.manifest import Manifest
from model.gpt import GPT
from optim.algorithms import build_optimizer
from optim.parameter_groups import set_step
from tests.ranks import run_ranks
from tests.test_decay import engine_ends
from tests.test_more_rules import resumed
from tests.test_rounding import ends_without_gradient

MUON: dict[str, Any] = {"algorithm": "muon", "lr": 2e-3, "momentum": 0.95, "weight_decay": 1.0, "grad_clip": 0.1}
Config = Callable[..., RunConfig]


def alone(config: RunConfig, w: nn.Parameter) -> torch.optim.Optimizer:
    """The optimiser of a single hidden matrix."""
    return build_optimizer({"w": w}, {"w": TensorSpec(tuple(w.shape), "mlp.fc", "matrix")}, config.optim)


def test_equals_torchs_muon(tiny_config: Config) -> None:
    """Breaks if a matrix takes another step than torch.optim.Muon with the factor that matches AdamW, over 200 updates."""
    config = tiny_config({"optim": MUON, "schedule": {"kind": "constant", "warmup_steps": 0}})
    generator = torch.Generator().manual_seed(0)
    ours = nn.Parameter(torch.randn(24, 40, generator=generator))
    theirs = nn.Parameter(ours.detach().clone())
    optimizer = alone(config, ours)
    other = torch.optim.Muon([theirs], lr=2e-3, weight_decay=1.0, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for _ in range(200):
        ours.grad = torch.randn(24, 40, generator=generator)
        theirs.grad = ours.grad.clone()
        set_step(optimizer, config, 0, 2e-3)
        optimizer.step()
        other.step()
        assert torch.equal(ours, theirs)


def test_step_is_nearly_orthogonal(tiny_config: Config) -> None:
    """Breaks if a step has other directions than the gradient's singular vectors, or their sizes are far from one."""
    config = tiny_config({"optim": MUON | {"weight_decay": 0.0}})
    for shape in ((64, 128), (128, 64)):
        w = nn.Parameter(torch.zeros(shape))
        w.grad = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        optimizer = alone(config, w)
        set_step(optimizer, config, 0, 1.0)
        optimizer.step()
        u, _, v = torch.linalg.svd(w.grad, full_matrices=False)
        step = -w.detach() / (0.2 * max(shape) ** 0.5)
        sizes = torch.linalg.svdvals(step)
        assert 0.5 < sizes.min() <= sizes.max() < 1.5
        assert (step - u @ v).norm() < 0.3 * (u @ v).norm()


def plain_muon(config: RunConfig, manifest: Manifest) -> dict[str, Tensor]:
    """Final weights of a loop in plain PyTorch: torch's Muon for blocks' matrices, torch's AdamW for all else."""
    model = GPT(config.model)
    model.init_weights(config.seeds.init)
    named = dict(model.named_parameters())
    hidden = [name for name, p in named.items() if "blocks." in name and p.dim() == 2]
    rest = [name for name in named if name not in hidden]
    optim = config.optim
    groups = [
        {"params": [named[n] for n in rest if named[n].dim() == 2], "weight_decay": optim.weight_decay},
        {"params": [named[n] for n in rest if named[n].dim() < 2], "weight_decay": 0.0},
    ]
    both = [
        torch.optim.Muon(
            [named[n] for n in hidden],
            weight_decay=optim.weight_decay,
            momentum=optim.momentum,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(groups, betas=optim.betas, eps=optim.eps),
    ]
    for batch in step_batches(TrainData(config.data.path, manifest, config), 0, None, 1, 0, 1):
        for micro in zip(torch.from_numpy(batch.inputs), torch.from_numpy(batch.targets), strict=True):
            (model(*micro) / config.batch.tokens_per_step).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), optim.grad_clip)
        for one in both:
            for group in one.param_groups:
                group["lr"] = lr_at(config, batch.step)
            one.step()
            one.zero_grad()
    return {name: p.detach() for name, p in model.named_parameters()}


@pytest.mark.engine
def test_through_the_engine(tiny_data: tuple[Path, Manifest], tiny_config: Config) -> None:
    """Breaks if on two ranks another tensor than the hidden matrices takes Muon's step, or λ or η is not what it should be."""
    torch.set_num_threads(1)
    config = tiny_config({"optim": MUON, "parallel": {"zero_stage": 0}})
    (_, _, ends) = run_ranks(2, engine_ends, [config], tiny_data[1])[0][0]
    expected, first = plain_muon(config, tiny_data[1]), GPT(config.model)
    first.init_weights(config.seeds.init)
    for name, start in first.named_parameters():
        # Newton–Schulz is in bfloat16: where gradients differ in their last bits, steps differ by its rounding.
        moved = (expected[name] - start).norm()
        assert (ends[name] - expected[name]).norm() <= (0.02 if "blocks." in name else 1e-3) * moved, name


@pytest.mark.engine
def test_resumed_bit_for_bit(tiny_data: tuple[Path, Manifest], tiny_config: Config, tmp_path: Path) -> None:
    """Breaks if a checkpoint lacks a moment of one family, or holds one of the other's tensors."""
    torch.set_num_threads(1)
    config = tiny_config({"optim": MUON, "parallel": {"zero_stage": 0}})
    ((whole, again),) = run_ranks(2, resumed, [config], tiny_data[1], str(tmp_path))[0]
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())
    files = json.loads((tmp_path / "0" / "step_00000003" / "manifest.json").read_text())["files"]
    assert sorted(files) == [f"{kind}.safetensors" for kind in ("exp_avg", "exp_avg_sq", "momentum_buffer", "weights")]
    (planned,) = {make_plan(config, ranks, None).checkpoint_bytes for ranks in (1, 2)}
    header = 8 * 1024  # names and shapes, beside the numbers
    assert planned <= sum(file["bytes"] for file in files.values()) <= planned + header


@pytest.mark.engine
def test_a_decay_for_each_family(tiny_data: tuple[Path, Manifest], tiny_config: Config) -> None:
    """Breaks if, without a gradient, attention's or the MLP's matrices shrink by another λ than their override's, an override
    reaches a tensor of the other family, or those of AdamW's family are lost beside them."""
    torch.set_num_threads(1)
    decays = {"blocks.*.attn.*": 0.5, "blocks.*.mlp.*": 0.2, "blocks.*.ln_1.*": 0.7, "wpe.weight": 0.0}
    overrides = [{"pattern": pattern, "weight_decay": decay} for pattern, decay in decays.items()]
    optim = {"lr": 0.05, "weight_decay": 1.5, "grad_clip": 0.0, "decay_overrides": overrides}
    constant = {"kind": "constant", "warmup_steps": 0, "steps": 4}
    # With biases a pattern takes tensors of both families.
    config = tiny_config(
        {"optim": MUON | optim, "model": {"bias": True}, "schedule": constant, "parallel": {"zero_stage": 0}}
    )
    start, end = run_ranks(2, ends_without_gradient, [config], tiny_data[1])[0][0]
    # λ read off the patterns by hand.
    by_word = {"attn": 0.5, "mlp": 0.2, "ln_1": 0.7, "wte": 1.5, "wpe": 0.0, "ln_2": 0.0, "ln_f": 0.0}
    for name, tensor in end.items():
        (decay,) = {decay for word, decay in by_word.items() if word in name.split(".")}
        expected = start[name].double() * (1 - 0.05 * decay) ** 4
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-6, atol=0, msg=name)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"parallel": {"zero_stage": 1}}, "muon needs whole matrices.*use stage 0"),
        ({"optim": {"decay_rule": "l2_coupled"}}, "Muon has no coupled decay; use decoupled, or l2_loss"),
    ],
)
def test_refusals(fields: dict[str, Any], message: str, tiny_config: Config) -> None:
    """Breaks if Muon is accepted where a rank has only pieces of a matrix, or with a decay that torch's has not."""
    with pytest.raises(ValueError, match=message):
        tiny_config({"optim": MUON, "parallel": {"zero_stage": 0}}, fields)
