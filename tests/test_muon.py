"""Muon: against torch's own, against the singular value decomposition, through the engine, and over a stop."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
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
from engine.fragments import Fragments
from engine.launch import start_world
from engine.matrices import homes, waves
from engine.update import update
from model.gpt import GPT
from optim.algorithms import build_optimizer
from optim.muon import direction, factor, orthogonal
from optim.parameter_groups import set_step
from tests.live import batch_of, make_training
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


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (16, 16)])
def test_orthogonal_as_torchs(shape: tuple[int, int]) -> None:
    """Breaks if at ZeRO stages 1–3 a matrix takes another step than torch's: polynomial, rounds, order of products, factor."""
    gradient, w = torch.randn(shape, generator=torch.Generator().manual_seed(2)), nn.Parameter(torch.zeros(shape))
    w.grad, moment = gradient.clone(), torch.zeros(shape)
    torch.optim.Muon([w], lr=1.0, weight_decay=0.0, momentum=0.95, adjust_lr_fn="match_rms_adamw").step()
    step = orthogonal(direction(moment, gradient, 0.95)).float() * factor(shape)
    torch.testing.assert_close(step, -w.detach(), rtol=1e-6, atol=0)


def test_homes_share_the_work() -> None:
    """Breaks if a matrix that lies whole is sent away, cut ones go to one rank alone, or ranks work on several at a time."""
    shapes = {name: torch.Size((4, 8)) for name in "abcdef"} | {"g": torch.Size((8, 8))}
    cut = [(0, 0, 16), (1, 16, 16)]
    lie = {"a": [(0, 0, 32)], "b": [(0, 0, 32)], "c": cut, "d": [(1, 0, 32)]}
    assert homes(lie, shapes) == {"a": 0, "b": 0, "c": 1, "d": 1}
    # At stage 3 all are cut: g is worth 8·8·8, the others 4·8·4 each.
    found = homes(dict.fromkeys("abcdefg", cut), shapes)
    assert found["g"] == 0
    assert [found[name] for name in "abcdef"].count(1) == 5
    in_turn = waves(found, shapes)
    assert sorted(name for wave in in_turn for name in wave) == list("abcdefg")
    assert all(len({found[name] for name in wave}) == len(wave) for wave in in_turn)


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
@pytest.mark.parametrize("ranks", [2, 3])
def test_through_the_engine(ranks: int, tiny_data: tuple[Path, Manifest], tiny_config: Config) -> None:
    """Breaks if at some ZeRO stage another tensor than the hidden matrices takes Muon's step, or λ or η is not what it should
    be; or a piece of a matrix takes another piece's step."""
    torch.set_num_threads(1)
    batch = {"batch": {"tokens_per_step": 96, "micro_batch": 1}}  # of two and of three ranks
    precisions = *(("fp32", stage) for stage in range(4)), ("bf16-mixed", 2), ("bf16-master", 1), ("bf16-master", 3)
    configs = [
        tiny_config({"optim": MUON, "precision": precision, "parallel": {"zero_stage": stage}}, batch)
        for precision, stage in precisions
    ]
    first = GPT(configs[0].model)
    first.init_weights(configs[0].seeds.init)
    expected = plain_muon(configs[0], tiny_data[1])
    for (precision, stage), (_, _, ends) in zip(
        precisions, run_ranks(ranks, engine_ends, configs, tiny_data[1])[0], strict=True
    ):
        for name, start in first.named_parameters():
            # Newton–Schulz is in bfloat16: where gradients differ in their last bits, steps differ by its rounding.
            moved, near = (expected[name] - start).norm(), 0.02 if "blocks." in name else 1e-3
            near = near if precision == "fp32" else 0.3
            assert (ends[name] - expected[name]).norm() <= near * moved, f"{precision}, stage {stage}, {name}"


def _give(fragments: Fragments, t: int, gradients: list[Tensor]) -> None:
    """Overwrite the gradients of update t by numbers that are the same at every stage."""
    generator = torch.Generator().manual_seed(t)
    drawn = {name: torch.randn(shape, generator=generator).view(-1) for name, shape in fragments.shapes.items()}
    for fragment, gradient in zip(fragments.local, gradients, strict=True):
        gradient.copy_(drawn[fragment.name][fragment.start : fragment.start + gradient.numel()])


def ends_of_given_gradients(configs: list[RunConfig], manifest: Manifest) -> list[dict[str, Tensor] | None]:
    """Weights after updates by gradients that are drawn, the same for all configurations."""
    world, ends = start_world("given", 120, None), []
    for config in configs:
        training = make_training(config, manifest, world)
        fragments = training.engine.fragments
        for t in range(config.schedule.steps):
            outcome = update(training, iter([batch_of(training, t)]), look=partial(_give, fragments, t))
            assert outcome.ended == "applied"
        ends.append(fragments.gather("weights", 0))
    return ends


@pytest.mark.engine
@pytest.mark.parametrize("ranks", [2, 3])
def test_every_stage_as_stage_0(ranks: int, tiny_data: tuple[Path, Manifest], tiny_config: Config) -> None:
    """Breaks if by the same gradients a matrix that was put together from pieces takes another step than the whole one that
    torch's Muon has at stage 0, or its momentum goes another way."""
    torch.set_num_threads(1)
    batch = {"batch": {"tokens_per_step": 96, "micro_batch": 1}, "optim": {"grad_clip": 0.0}}
    configs = [tiny_config({"optim": MUON, "parallel": {"zero_stage": stage}}, batch) for stage in range(4)]
    whole, *others = run_ranks(ranks, ends_of_given_gradients, configs, tiny_data[1])[0]
    for stage, ends in enumerate(others, 1):
        for name, tensor in whole.items():
            torch.testing.assert_close(ends[name], tensor, rtol=1e-6, atol=1e-8, msg=f"stage {stage}, {name}")


@pytest.mark.engine
def test_resumed_bit_for_bit(tiny_data: tuple[Path, Manifest], tiny_config: Config, tmp_path: Path) -> None:
    """Breaks if a checkpoint lacks a moment of one family, or holds one of the other's tensors."""
    torch.set_num_threads(1)
    configs = [tiny_config({"optim": MUON, "parallel": {"zero_stage": stage}}) for stage in range(4)]
    found = run_ranks(2, resumed, configs, tiny_data[1], str(tmp_path))[0]
    for stage, (whole, again) in enumerate(found):
        assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items()), f"stage {stage}"
        files = json.loads((tmp_path / str(stage) / "step_00000003" / "manifest.json").read_text())["files"]
        kinds = ("exp_avg", "exp_avg_sq", "momentum_buffer", "weights")
        assert sorted(files) == [f"{kind}.safetensors" for kind in kinds], f"stage {stage}"
        (planned,) = {make_plan(configs[stage], ranks, None).checkpoint_bytes for ranks in (1, 2)}
        header = 8 * 1024  # names and shapes, beside the numbers
        assert planned <= sum(file["bytes"] for file in files.values()) <= planned + header


@pytest.mark.engine
def test_resumed_at_another_stage(tiny_data: tuple[Path, Manifest], tiny_config: Config, tmp_path: Path) -> None:
    """Breaks if a momentum lands in another piece where the ranks' pieces are others: from each stage to the next, and back."""
    torch.set_num_threads(1)
    configs = [tiny_config({"optim": MUON, "parallel": {"zero_stage": stage}}) for stage in range(4)]
    first = GPT(configs[0].model)
    first.init_weights(configs[0].seeds.init)
    start = dict(first.named_parameters())
    found = run_ranks(2, resumed, configs, tiny_data[1], str(tmp_path), [*configs[1:], configs[0]])[0]
    for stage, (whole, again) in enumerate(found):
        for name, tensor in whole.items():
            near = 0.02 if "blocks." in name else 1e-3
            assert (again[name] - tensor).norm() <= near * (tensor - start[name]).norm(), f"from {stage}, {name}"


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
    fields = {"optim": MUON | optim, "model": {"bias": True}, "schedule": constant}
    configs = [tiny_config(fields, {"parallel": {"zero_stage": stage}}) for stage in range(4)]
    # λ read off the patterns by hand.
    by_word = {"attn": 0.5, "mlp": 0.2, "ln_1": 0.7, "wte": 1.5, "wpe": 0.0, "ln_2": 0.0, "ln_f": 0.0}
    for stage, (start, end) in enumerate(run_ranks(2, ends_without_gradient, configs, tiny_data[1])[0]):
        for name, tensor in end.items():
            (decay,) = {decay for word, decay in by_word.items() if word in name.split(".")}
            expected = start[name].double() * (1 - 0.05 * decay) ** 4
            torch.testing.assert_close(tensor.double(), expected, rtol=1e-6, atol=0, msg=f"stage {stage}, {name}")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"precision": "bf16-true", "parallel": {"zero_stage": 1}},
            "muon under precision bf16-true.*rounded one after the other.*use fp32, tf32, bf16-mixed, bf16-master",
        ),
        ({"optim": {"decay_rule": "l2_coupled"}}, "Muon has no coupled decay; use decoupled, or l2_loss"),
    ],
)
def test_refusals(fields: dict[str, Any], message: str, tiny_config: Config) -> None:
    """Breaks if Muon is accepted where its decay would round to nothing, or with a decay that torch's has not."""
    with pytest.raises(ValueError, match=message):
        tiny_config({"optim": MUON, "parallel": {"zero_stage": 0}}, fields)
