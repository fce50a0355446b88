"""Probes: the unsharded values at every ZeRO stage, and no trace left behind."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from configs.plan import make_plan
from configs.precision import TABLE
from configs.schedule import lr_at
from configs.schema import RunConfig
from configs.tensors import tensor_table
from data.loader import TrainData, probe_batch, step_batches
from data.manifest import Manifest
from engine.adam_rates import count_rates, damping, median
from engine.launch import start_world
from model.gpt import GPT
from model.loss import logit_statistics
from record.metrics import read_log, read_metrics
from tests.live import make_training, probed_step, train_steps
from tests.processes import ConfigFile, finish_ranks, losses, rows_of
from tests.ranks import run_ranks
from tests.test_parity import CASES

NOISE = {"log": {"noise_scale": True, "probe_every": 1}}


def probed(configs: list[RunConfig], manifest: Manifest) -> list[dict[str, Any]]:
    """Two updates, the second probed; the whole tensors around it."""
    world = start_world("probes", 120, None)
    found = []
    for config in configs:
        training = make_training(config, manifest, world)
        train_steps(training, range(1))
        before = training.engine.fragments.gather("weights", 0)
        row = probed_step(training, 1)
        grad_norm = training.recorder.updates[-1]["optim/grad_norm"]  # type: ignore[attr-defined]
        second = training.engine.fragments.gather("exp_avg_sq", 0) if config.optim.algorithm == "adam" else None
        after = training.engine.fragments.gather("weights", 0)
        found.append({"row": row, "before": before, "after": after, "second": second, "grad_norm": grad_norm})
    return found


def quantities(run: dict[str, Any], names: list[str], lr: float, algorithm: str) -> dict[str, float]:
    """What a probe says of these tensors as one vector, from the whole tensors; the rotation is the mean of their angles."""
    w, v = (torch.cat([run[when][name].double().flatten() for name in names]) for when in ("after", "before"))
    pairs = [(run["after"][name].double(), run["before"][name].double()) for name in names]
    angles = [2 * math.asin(min(1.0, (a / a.norm() - b / b.norm()).norm().item() / 2)) for a, b in pairs]
    found = {
        "norm": w.norm().item(),
        "rms": w.norm().item() / math.sqrt(w.numel()),
        "update": ((w - v).norm() / v.norm()).item(),
        "rotation": sum(angles) / len(angles),
        "max": w.abs().max().item(),
        "effective_lr": lr / v.norm().item() ** (2 if algorithm == "sgd" else 1),
    }
    if run["second"] is not None:
        second = torch.cat([run["second"][name].double().flatten() for name in names])
        rates = lr / (second.sqrt() + 1e-8)
        # by each tensor's own mean
        active = torch.cat([(v > 1e-5 * v.mean()).flatten() for v in (run["second"][n].double() for n in names)])
        found |= {"adam_lr": rates.mean().item(), "adam_idle": 1 - active.double().mean().item()}
        found["adam_lr_median"] = rates[active].median().item()
        found |= {"adam_epsilon": 1e-8 * v.norm().item(), "adam_damping": (1e-8 / (second.sqrt() + 1e-8)).mean().item()}
    return found


@pytest.mark.engine
def test_values_at_every_stage(tiny_data: tuple[Path, Manifest], tiny_config: Callable[..., RunConfig]) -> None:
    """Breaks if a sharded quantity is not the whole tensor's: a piece missed, counted twice, or a maximum of one rank."""
    manifest = tiny_data[1]
    cases = [(p, stage, {}) for p, stage in CASES] + [("fp32", 2, {"optim": {"algorithm": "sgd", "lr": 0.1}})]
    cases += [
        ("fp32", 0, {"optim": {"algorithm": "muon", "momentum": 0.95}}),
        ("fp32", 2, {"optim": {"algorithm": "muon", "momentum": 0.95}}),
        ("fp32", 1, {"optim": {"algorithm": "lion"}}),
    ]
    cases.append(("fp32", 2, {"model": {"tied_head": False}}))  # rows of tokens that did not occur have no gradient
    configs = [
        tiny_config(NOISE, {"precision": p, "parallel": {"zero_stage": stage}}, more) for p, stage, more in cases
    ]
    for case, config, run in zip(cases, configs, run_ranks(2, probed, configs, manifest)[0], strict=True):
        row, lr, bound = run["row"], lr_at(config, 1), 2e-2 if TABLE[case[0]].masters == "bfloat16" else 1e-5
        members, tensors = {name: [name] for name in run["before"]}, tensor_table(config.model)
        for name in run["before"]:
            members.setdefault(f"kind:{tensors[name].kind}", []).append(name)
        members[""] = list(run["before"])  # the whole model
        for label, names in members.items():
            for key, value in quantities(run, names, lr, config.optim.algorithm).items():
                if label or key in ("max", "effective_lr", "adam_lr", "adam_lr_median", "adam_idle"):
                    place = f"probe/{key}/{label}".rstrip("/")
                    within = max(bound, 0.008) if key == "adam_lr_median" else bound  # the width of a bin
                    near = 0.0 if key.startswith("adam_") else 1e-9
                    assert row[place] == pytest.approx(value, rel=within, abs=near), (case, key, label)
        # a tensor's median is another's: else one rank's piece, or one tensor's, could stand for all
        if run["second"] is not None:
            assert len({row[f"probe/adam_lr_median/{name}"] for name in run["before"]}) > len(run["before"]) / 2
        assert ("head.weight" in members) == (row.get("probe/adam_idle/wte.weight", 0) > 0.3), case
        squares = sum(row[f"probe/grad_norm/{name}"] ** 2 for name in run["before"])
        assert math.sqrt(squares) == pytest.approx(run["grad_norm"], rel=1e-6), case
        predicted = {name.split("/")[-1] for name in row if "/predicted_rms/" in name}
        decayed = {name for name, tensor in run["after"].items() if tensor.dim() >= 2}
        assert predicted == (set() if config.optim.algorithm == "sgd" else decayed)
        turned = {name.split("/")[-1] for name in row if "/predicted_rotation/" in name}
        assert turned == decayed, "SGD's needs no size"
        own = (row["probe/predicted_rotation/blocks.0.mlp.fc.weight"], row["probe/predicted_rotation/wte.weight"])
        assert (own[0] == own[1]) == (config.optim.algorithm != "muon"), "hidden matrices have their own law there"
        if config.optim.algorithm in ("adam", "muon"):
            assert row["probe/predicted_rms/wte.weight"] == pytest.approx(math.sqrt(lr / (2 * 0.5)))
            rotation = math.sqrt(2 * lr * 0.5 * (1 - 0.9) / (1 + 0.9))
            assert row["probe/predicted_rotation/wte.weight"] == pytest.approx(rotation)


def test_epsilon_damps_as_epsilon_times_the_norm() -> None:
    """Breaks if ε·‖w‖ is not what damps a scale-invariant loss: Adam at 10w turns otherwise than at w with 10ε and η/10."""

    def turned(scale: float, eps: float, lr: float) -> torch.Tensor:
        torch.manual_seed(0)
        data, target = torch.randn(50, 6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
        w = (scale * torch.randn(6, dtype=torch.float64)).requires_grad_()
        loss = (data @ (w / w.norm() - target)).square().mean()
        (gradient,) = torch.autograd.grad(loss, w)
        second = 0.05 * gradient.square()
        found = damping(eps, w.norm().item(), (1 / (second.sqrt() + eps)).mean().item())
        step = lr * gradient / (second.sqrt() + eps)
        return torch.tensor([*(step / w.norm()).tolist(), found["adam_epsilon"], found["adam_damping"]])

    torch.testing.assert_close(turned(10.0, 0.02, 1.0), turned(1.0, 0.2, 0.1))


def test_the_median_passes_over_what_has_no_gradient() -> None:
    """Breaks if rows that are never used, whose second moment is nearly zero, set the effective learning rate that is shown."""
    used = torch.full((1000,), 1e-6)
    counts = [count_rates(0.01, torch.cat([used, torch.full((rows,), 1e-13)]), 1e-8, 1e-11) for rows in (0, 3000)]
    for one in counts:
        assert one.sum() == 1000
        assert median(one) == pytest.approx(10.0, rel=0.008), "0.01/(√1e-6 + ε)"
    spread = torch.logspace(-12, -2, 1001, dtype=torch.float64)
    assert median(count_rates(0.01, spread, 1e-8, 0.0)) == pytest.approx(0.01 / (10**-3.5 + 1e-8), rel=0.008)


@pytest.mark.engine
def test_gradients_logits_and_noise(tiny_data: tuple[Path, Manifest], tiny_config: Callable[..., RunConfig]) -> None:
    """Breaks if the cosine, the logits' quantities or the noise scale are not those of a plain computation."""
    manifest = tiny_data[1]
    configs = [tiny_config(NOISE, {"parallel": {"zero_stage": stage}}) for stage in (0, 1, 2, 3)]
    penalty = {"optim": {"decay_rule": "l2_loss", "weight_decay": 0.01}}
    *runs, penalised = run_ranks(2, probed, [*configs, tiny_config(NOISE, penalty)], manifest)[0]
    assert penalised["row"]["probe/gradient_trace"] > 0.5 * runs[0]["row"]["probe/gradient_trace"], (
        "the penalty is no noise"
    )
    config, model = configs[0], GPT(configs[0].model)
    model.load_state_dict(runs[0]["before"])
    batch = next(step_batches(TrainData(config.data.path, manifest, config), 1, None, 2, 0, 1))
    squares, total = [], {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    # Four micro-batches of two sequences, as two ranks of two have them.
    for micro in zip(torch.from_numpy(batch.inputs), torch.from_numpy(batch.targets), strict=True):
        model.zero_grad()
        (model(*micro) / (2 * 16)).backward()
        squares.append(sum(p.grad.double().square().sum().item() for p in model.parameters()))  # type: ignore[union-attr]
        for name, p in model.named_parameters():
            total[name] += p.grad / 4
    big = sum(g.double().square().sum().item() for g in total.values())
    small, b, whole = sum(squares) / 4, 32, 128
    square, trace = (whole * big - b * small) / (whole - b), (small - big) / (1 / b - 1 / whole)
    model.load_state_dict(runs[0]["after"])
    validation = probe_batch(config.data.path, manifest, config, 4, 0, 1)  # the windows of two ranks with two each
    assert validation.counted == validation.targets.size
    logits, targets = model.logits(torch.from_numpy(validation.inputs)).double(), torch.from_numpy(validation.targets)
    for run in runs:
        row = run["row"]
        assert row["probe/gradient_square"] == pytest.approx(square, rel=1e-4)
        assert row["probe/gradient_trace"] == pytest.approx(trace, rel=1e-4)
        for name, gradient in total.items():
            weight = run["before"][name].double()
            cosine = ((gradient.double() * weight).sum() / (gradient.double().norm() * weight.norm())).item()
            assert row[f"probe/cosine/{name}"] == pytest.approx(cosine, rel=1e-3, abs=1e-6), name
        assert row["probe/loss"] == pytest.approx(
            F.cross_entropy(logits.flatten(0, 1), targets.flatten()).item(), rel=1e-5
        )
        assert row["probe/windows"] == 4
        assert row["probe/logsumexp"] == pytest.approx(logits.logsumexp(-1).mean().item(), rel=1e-5)
        assert row["probe/max_logit"] == pytest.approx(logits.max().item(), rel=1e-4)
        assert row["probe/top1_error"] == (logits.argmax(-1) != targets).double().mean().item()


def test_statistics_ignore_padding() -> None:
    """Breaks if padding rows enter the loss, or a rank that has only padding breaks the others."""
    x, head, targets = torch.randn(6, 4), torch.randn(5, 4), torch.tensor([1, 2, 3, -100, -100, -100])
    assert torch.equal(logit_statistics(x, head, targets), logit_statistics(x[:3], head, targets[:3]))
    assert logit_statistics(x[3:], head, targets[3:]).tolist() == [0.0, 0.0, 0.0, -math.inf]


@pytest.mark.engine
@pytest.mark.parametrize("ranks", [1, 2])
def test_probing_changes_nothing(ranks: int, config_file: ConfigFile, tmp_path: Path) -> None:
    """Breaks if a probe changes a bit of training, or a resume repeats a probe's row."""
    common = {
        "parallel": {"zero_stage": ranks + 1},
        "model": {"dropout": 0.1},
        "averages": {"ema": [0.9]},
        "eval": {"every": 1, "tokens": 32 * ranks},  # the probe's own tokens
        "checkpoint": {"every": 3},
    }
    finish_ranks(ranks, config_file(common, {"log": {"probe_every": None}}), tmp_path / "blind")
    finish_ranks(ranks, config_file(common, NOISE), tmp_path / "run")
    assert losses(tmp_path / "run") == losses(tmp_path / "blind")
    for file in ("weights", "exp_avg_sq", "ema_0.9"):
        ours, theirs = (tmp_path / n / f"checkpoints/step_00000006/{file}.safetensors" for n in ("run", "blind"))
        assert ours.read_bytes() == theirs.read_bytes(), file
    assert not (tmp_path / "blind" / "probes.jsonl").exists()
    (tmp_path / "run" / "checkpoints" / "step_00000006" / "manifest.json").unlink()
    before = read_metrics(tmp_path / "run" / "probes.jsonl")[0]
    finish_ranks(ranks, config_file(common, NOISE), tmp_path / "run")
    # rows of one step are read as one: that the resume voids those it repeats is seen by their number
    again = read_log(tmp_path / "run" / "probes.jsonl")
    assert again.rows == before
    assert again.superseded == 3
    assert [row["step"] for row in before] == [1, 2, 3, 4, 5, 6]
    validated = rows_of(tmp_path / "run")
    for row in before:
        for key in ("loss", "loss_ema_0.9"):
            assert row[f"probe/{key}"] == pytest.approx(validated[row["step"]][f"val/{key}"], rel=1e-6), key


def test_noise_scale_is_refused_where_it_is_not_defined(tiny_config: Callable[..., RunConfig]) -> None:
    """Breaks if a noise scale is made up from one micro-batch."""
    config = tiny_config(NOISE, {"batch": {"micro_batch": 8}})
    with pytest.raises(ValueError, match=r"set batch\.micro_batch to a smaller divisor"):
        make_plan(config, 1, None)
    with pytest.raises(ValueError, match="set probe_every, or leave noise_scale out"):
        tiny_config({"log": {"noise_scale": True, "probe_every": None}})
