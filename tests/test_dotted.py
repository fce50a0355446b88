"""torch's optimisers by their dotted names: the zero-gradient law of each, their state over a stop, and why some are refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from configs.decay_laws import check_rule
from configs.identity import experiment
from configs.plan import make_plan
from configs.render import render_plan
from configs.schedule import lr_at
from configs.schema import RunConfig
from configs.tensors import TensorSpec
from data.loader import TrainData, step_batches
from data.manifest import Manifest
from model.gpt import GPT
from optim import torch_named
from optim.algorithms import build_optimizer
from optim.parameter_groups import set_step
from optim.rules import RULES
from optim.torch_named import from_saved, to_saved, try_out
from tests.processes import ConfigFile, finish, start
from tests.ranks import run_ranks
from tests.test_decay import engine_ends
from tests.test_more_rules import resumed
from tests.test_rounding import assert_law, ends_without_gradient

Config = Callable[..., RunConfig]
STAGE_0: dict[str, Any] = {"parallel": {"zero_stage": 0}}
CPU = torch.device("cpu")
# Each of torch's that can be driven, with arguments that give it all the state that it may have.
FULL: dict[str, dict[str, Any]] = {
    "Adadelta": {},
    "Adafactor": {},
    "Adagrad": {"lr_decay": 0.01, "initial_accumulator_value": 0.5},
    "Adam": {"amsgrad": True, "betas": [0.9, 0.95]},
    "AdamW": {"fused": True},
    "Adamax": {"foreach": True},
    "NAdam": {"momentum_decay": 0.01},
    "RAdam": {"betas": [0.8, 0.9]},
    "RMSprop": {"centered": True, "momentum": 0.9},
    "SGD": {"momentum": 0.9, "nesterov": True},
}
REFUSED = {"ASGD", "LBFGS", "Muon", "Rprop", "SparseAdam"}


def named(name: str, arguments: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """A configuration's fields, at η and λ that are felt in a few updates."""
    optim = {"algorithm": f"torch.optim.{name}", "arguments": arguments or {}, "lr": 2e-3, "weight_decay": 1.0}
    return {"optim": {**optim, "grad_clip": 0.1, **fields}, **STAGE_0}


def test_every_optimiser_of_torch_is_here() -> None:
    """Breaks if a new release of torch has an optimiser of which nobody has said whether it can be driven."""
    kinds = {name for name, kind in vars(torch.optim).items() if isinstance(kind, type)} - {"Optimizer"}
    assert kinds == {*FULL, *REFUSED}
    assert torch_named._working(CPU) == [f"torch.optim.{name}" for name in FULL]


def law_cases() -> Iterator[tuple[str, str]]:
    """Every optimiser with every rule that has a meaning for it."""
    for name in FULL:
        for rule, module in RULES.items():
            if not hasattr(module, "ALGORITHMS"):
                yield name, rule


@pytest.mark.engine
def test_zero_gradient_law(tiny_data: tuple[Path, Manifest], tiny_config: Config) -> None:
    """Breaks if, without a gradient, weights shrink by another factor than the rule's, or an undecayed tensor moves at all."""
    small = {
        "model": {"n_layer": 1, "n_head": 1, "n_embd": 16, "seq_len": 8},
        "schedule": {"kind": "constant", "warmup_steps": 0, "steps": 4},
        "batch": {"tokens_per_step": 8, "micro_batch": 1},
    }
    configs = []
    for name, rule in law_cases():
        if RULES[rule].INSIDE == "coupled" or rule == "l2_loss":  # λw is a gradient: no law without one
            continue
        decay = {"independent": 0.05}.get(rule, 1.0) if getattr(RULES[rule], "USES_DECAY", True) else 0.0
        fields = {"decay_rule": rule, "weight_decay": decay, "lr": 0.05, "grad_clip": 0.0}
        configs.append(tiny_config(small, named(name, FULL[name], **fields)))
    assert len(configs) == 7 * len(FULL)  # a rule more is ten more
    for config, ends in zip(configs, run_ranks(1, ends_without_gradient, configs, tiny_data[1])[0], strict=True):
        assert_law(config, *ends)


@pytest.mark.parametrize(("name", "rule"), law_cases())
def test_law_is_tried_before_a_run(name: str, rule: str, tiny_config: Config) -> None:
    """Breaks if one that works is refused, or its trial draws at random."""
    decay = 1.0 if getattr(RULES[rule], "USES_DECAY", True) else 0.0
    config = tiny_config(named(name, FULL[name], decay_rule=rule, weight_decay=decay))
    check_rule(config)
    drawn = torch.get_rng_state()
    try_out(config.optim, CPU)
    assert torch.equal(drawn, torch.get_rng_state())


def test_tried_once(tiny_config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if a start tries an optimiser out twice, or other arguments, or another class of the name, pass untried."""

    class Counted(torch.optim.SGD):
        made = 0

        def __init__(self, params: Any, lr: float = 1e-3, momentum: float = 0.0) -> None:
            type(self).made += 1
            super().__init__(params, lr=lr, momentum=momentum)

    class Other(Counted):
        made = 0

    monkeypatch.setattr(torch.optim, "Counted", Counted, raising=False)
    config = tiny_config(named("Counted"))
    found = try_out(config.optim, CPU)
    made = Counted.made
    assert made
    assert try_out(config.optim, CPU) == found
    assert Counted.made == made
    assert try_out(tiny_config(named("Counted", {"momentum": 0.9})).optim, CPU) != found
    assert Counted.made == 2 * made
    monkeypatch.setattr(torch.optim, "Counted", Other)
    try_out(config.optim, CPU)
    assert Other.made == made


@pytest.mark.parametrize("rule", [rule for rule, module in RULES.items() if hasattr(module, "ALGORITHMS")])
def test_rules_of_some_algorithms(rule: str, tiny_config: Config) -> None:
    """Breaks if a rule that reads Adam's or SGD's moments is run beside an optimiser that it does not know."""
    with pytest.raises(ValueError, match=r"is a law for optim.algorithm adam.*, this run has torch.optim.NAdam"):
        check_rule(tiny_config(named("NAdam", decay_rule=rule)))


def assert_same_bits(config: RunConfig, theirs: Callable[..., torch.optim.Optimizer], steps: int = 50) -> None:
    """Assert that both take a matrix and a vector to the same bits, torch with its own weight_decay."""
    generator = torch.Generator().manual_seed(0)
    start = {"w": torch.randn(12, 20, generator=generator), "b": torch.randn(7, generator=generator)}
    ours, others = ({name: nn.Parameter(tensor.clone()) for name, tensor in start.items()} for _ in range(2))
    table = {"w": TensorSpec((12, 20), "mlp.fc", "matrix"), "b": TensorSpec((7,), "norm", "bias")}
    optimizer = build_optimizer(ours, table, config.optim)
    groups = [{"params": [others["w"]]}, {"params": [others["b"]], "weight_decay": 0.0}]
    other = theirs(groups, lr=1.0, weight_decay=config.optim.weight_decay)
    for t in range(steps):
        for name, tensor in ours.items():
            tensor.grad = torch.randn(tensor.shape, generator=generator)
            others[name].grad = tensor.grad.clone()
        set_step(optimizer, config, 0, 1e-2 / (t + 1))
        for group in other.param_groups:
            group["lr"] = 1e-2 / (t + 1)
        optimizer.step()
        other.step()
    for name, tensor in ours.items():
        assert torch.equal(tensor, others[name]), name
        assert not torch.equal(tensor, start[name])


@pytest.mark.parametrize("name", ["AdamW", "NAdam", "RAdam", "Adam"])
def test_decoupled_is_torchs(name: str, tiny_config: Config) -> None:
    """Breaks if our decay beside the step is another than torch's own, where torch has a decoupled one."""
    flag = {} if name == "AdamW" else {"decoupled_weight_decay": True}
    kind = getattr(torch.optim, name)
    assert_same_bits(tiny_config(named(name)), lambda groups, **more: kind(groups, **flag, **more))


@pytest.mark.parametrize("name", ["Adam", "Adamax", "Adagrad", "Adadelta", "NAdam", "RAdam", "RMSprop", "SGD"])
def test_coupled_is_torchs(name: str, tiny_config: Config) -> None:
    """Breaks if what is added to the gradient is another than torch's own L2, where torch has one."""
    assert_same_bits(tiny_config(named(name, decay_rule="l2_coupled", weight_decay=0.1)), getattr(torch.optim, name))


def plain(config: RunConfig, manifest: Manifest) -> dict[str, Tensor]:
    """Final weights of a loop in plain PyTorch, decay as a line of its own."""
    model = GPT(config.model)
    model.init_weights(config.seeds.init)
    name, arguments = config.optim.algorithm.rpartition(".")[2], config.optim.arguments
    optimizer = getattr(torch.optim, name)(model.parameters(), **{"weight_decay": 0.0, **arguments})
    for batch in step_batches(TrainData(config.data.path, manifest, config), 0, None, 1, 0, 1):
        for micro in zip(torch.from_numpy(batch.inputs), torch.from_numpy(batch.targets), strict=True):
            (model(*micro) / config.batch.tokens_per_step).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.grad_clip)
        optimizer.param_groups[0]["lr"] = lr_at(config, batch.step)
        for p in model.parameters():
            p.data.mul_(1 - lr_at(config, batch.step) * config.optim.weight_decay if p.dim() == 2 else 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return {name: p.detach() for name, p in model.named_parameters()}


@pytest.mark.engine
def test_through_the_engine(tiny_data: tuple[Path, Manifest], tiny_config: Config) -> None:
    """Breaks if two ranks do not take the steps of one process in plain PyTorch, in float32 and under autocast."""
    torch.set_num_threads(1)
    names = ("NAdam", "Adafactor", "RMSprop", "Adagrad")
    # ε is large: else they divide rounding errors by nearly nothing.
    eps = {"Adafactor": [1e-6, 1e-3]}
    configs = [tiny_config(named(name, {"eps": eps.get(name, 1e-4)})) for name in names]
    answers = run_ranks(2, engine_ends, configs, tiny_data[1])[0]
    for config, (_, _, ends) in zip(configs, answers, strict=True):
        for name, expected in plain(config, tiny_data[1]).items():
            error = (ends[name] - expected).norm() / expected.norm()
            assert error <= 1e-5, f"{config.optim.algorithm}: {name} is {error:.1e} off"


@pytest.mark.engine
def test_resumed_bit_for_bit(tiny_data: tuple[Path, Manifest], tiny_config: Config, tmp_path: Path) -> None:
    """Breaks if a checkpoint lacks a value of some optimiser's state, or gives it back as another."""
    torch.set_num_threads(1)
    # bf16-mixed is the other precision of stage 0; an average lies beside the state.
    more = {"RMSprop": {"precision": "bf16-mixed"}, "Adagrad": {"averages": {"ema": [0.9]}}}
    configs = [tiny_config(named(name, FULL[name]), more.get(name, {})) for name in FULL]
    files = {}
    for number, (name, (whole, again)) in enumerate(
        zip(FULL, run_ranks(2, resumed, configs, tiny_data[1], str(tmp_path))[0], strict=True)
    ):
        assert all(torch.equal(tensor, again[key]) for key, tensor in whole.items()), name
        manifest = json.loads((tmp_path / str(number) / "step_00000003" / "manifest.json").read_text())
        assert manifest["counters"]["optimizer_step"] == (0 if name == "SGD" else 3), name
        files[name] = {file.removesuffix(".safetensors") for file in manifest["files"]} - {"weights"}
        planned = make_plan(configs[number], 2, None).checkpoint_bytes
        assert sum(file["bytes"] for file in manifest["files"].values()) <= planned + 32 * 1024, name
    assert files["NAdam"] == {"step", "mu_product", "exp_avg", "exp_avg_sq"}
    assert files["Adafactor"] == {"step", "row_var", "col_var", "variance"}
    assert files["RMSprop"] == {"step", "square_avg", "grad_avg", "momentum_buffer"}
    assert files["Adagrad"] == {"step", "sum", "ema_0.9"}
    assert files["SGD"] == {"momentum_buffer"}


@pytest.mark.engine
def test_a_run_that_is_stopped(config_file: ConfigFile, tmp_path: Path) -> None:
    """Breaks if train.py does not go on from the state, or a branch cannot keep it."""
    fields = named("NAdam", {"betas": [0.9, 0.95]}) | {"checkpoint": {"every": 2}}
    config, whole, parts = config_file(fields), tmp_path / "whole", tmp_path / "parts"
    finish(start(config, whole))
    finish(start(config, parts))
    for later in ("step_00000004", "step_00000006"):
        for file in (parts / "checkpoints" / later).iterdir():
            file.unlink()
    finish(start(config, parts, "--resume", "must"))
    ends = [folder / "checkpoints" / "step_00000006" / "mu_product.safetensors" for folder in (whole, parts)]
    assert ends[0].read_bytes() == ends[1].read_bytes()
    kept = ("--branch", f"{whole}@4", "--set", "optim.weight_decay=0.2", "--set", "schedule.steps=3")
    finish(start(config, tmp_path / "branch", *kept))
    lacks = finish(start(config, tmp_path / "lacks", *kept, "--set", "optim.algorithm=torch.optim.RAdam"), 2)
    assert "this branch is of torch.optim.RAdam, the state in" in lacks


def test_identity_and_plan(tiny_config: Config) -> None:
    """Breaks if an argument is no part of the experiment, 1 and 1.0 are two, or the plan says more of a state than it knows."""
    config = tiny_config(named("Adafactor", {"d": 1.0, "eps": [None, 1]}))
    optim = experiment(config, "digest")["optim"]
    assert (optim["algorithm"], optim["arguments"]) == ("torch.optim.Adafactor", {"d": 1, "eps": [None, 1.0]})
    assert experiment(tiny_config(named("Adafactor", {"d": 1, "eps": [None, 1.0]})), "digest")["optim"] == optim
    assert "arguments" not in experiment(tiny_config(named("Adafactor")), "digest")["optim"]
    text = render_plan(config, make_plan(config, 1, None))
    assert "3 values per parameter as the state of torch.optim.Adafactor, on disk too" in text
    assert "Σηλ" in text
    coupled = tiny_config(named("Adafactor", decay_rule="l2_coupled"))
    assert "what a step of torch.optim.Adafactor makes of it is not known" in render_plan(
        coupled, make_plan(coupled, 1, None)
    )


@pytest.mark.parametrize(
    "value", [True, 3, 0.1, torch.arange(6.0).view(2, 3).t(), torch.tensor(1e-30), torch.tensor(7)]
)
def test_values_as_they_were(value: Any) -> None:
    """Breaks if a number becomes a tensor, or a tensor another, on the way through a checkpoint."""
    again = from_saved(to_saved(value), value)
    assert type(again) is type(value)
    assert torch.equal(again, value) if isinstance(value, Tensor) else again == value
