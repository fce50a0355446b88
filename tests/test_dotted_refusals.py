"""torch's optimisers by dotted names that are refused: with the reason, before a run has written anything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.schema import RunConfig
from optim.torch_named import try_out
from tests.processes import ConfigFile, finish, start
from tests.test_dotted import CPU, named

Config = Callable[..., RunConfig]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (
            "ASGD",
            {},
            "moves weights whose gradient is zero at λ = 0: it has a decay of its own.*lambd.*; these work: .*NAdam",
        ),
        ("ASGD", {"lambd": 0.0}, "moves weights at η = 0"),
        ("Rprop", {}, "moves weights at η = 0: its step sizes are not the η of the update.*; these work: .*Adafactor"),
        ("Nadam", {}, "torch .* has no such optimiser; these work: .*torch.optim.NAdam"),
        ("Optimizer", {}, "has no such optimiser"),
        ("NAdam", {"rho": 1}, "takes no rho; it takes betas, eps, momentum_decay, foreach, capturable$"),
        ("NAdam", {"betas": [0.9]}, "with betas cannot be driven here: .*$"),
        ("Adadelta", {"rho": 2}, "with rho cannot be driven here: ValueError: Invalid rho value: 2$"),
        ("RMSprop", {"capturable": True}, "with capturable cannot be driven here: AssertionError"),
    ],
)
def test_refused_with_the_reason(name: str, arguments: dict[str, Any], message: str, tiny_config: Config) -> None:
    """Breaks if one that does not follow λ or η is driven, or one that does not exist ends in a traceback."""
    config = tiny_config(named(name, arguments))
    with pytest.raises(ValueError, match=message):
        try_out(config.optim, CPU)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (named("LBFGS"), "torch.optim.LBFGS evaluates the loss several times in a step, by a closure"),
        (named("SparseAdam"), "takes sparse gradients"),
        (named("Muon"), "takes matrices alone; optim.algorithm muon"),
        (named("NAdam", {"lr": 1}), "arguments: lr is not to be set here: it is optim.lr and schedule"),
        (named("NAdam", {"weight_decay": 0.1}), "weight_decay is not to be set here: it is optim.weight_decay"),
        (named("NAdam", {"decoupled_weight_decay": True}), "optim.decay_rule says how λ acts"),
        (named("NAdam", {"maximize": True}), "it would raise the loss"),
        (
            named("NAdam", {"betas": {"a": 1}}),
            "'betas' = .*: expected a number, true, false, null, a text or a list of numbers",
        ),
        (named("NAdam", {"a b": True}), "'a b' is no name of an argument"),
        (
            named("NAdam", eps=1e-6),
            "eps does nothing under algorithm torch.optim.NAdam; leave it out, or give it in optim.arg",
        ),
        (named("NAdam") | {"parallel": {"zero_stage": 2}}, "torch.optim.NAdam needs whole tensors.*use stage 0"),
        (
            {"optim": {"algorithm": "adamw"}},
            '"adamw" is no algorithm; there are adam, sgd, lion, muon, kfac, and torch.optim.NAME',
        ),
        ({"optim": {"algorithm": "torch.optim.lr_scheduler.StepLR"}}, "is no algorithm"),
        ({"optim": {"algorithm": 3}}, "3 is no algorithm"),
        ({"optim": {"arguments": {"eps": 1}}}, "arguments does nothing under algorithm adam; leave it out"),
        (named("NAdam") | {"schedule": {"match": {"reference": "a"}}}, "that of torch.optim.NAdam is not known"),
    ],
)
def test_refused_without_torch(fields: dict[str, Any], message: str, tiny_config: Config) -> None:
    """Breaks if what cannot work, or would do nothing, is accepted until torch is there."""
    with pytest.raises(ValueError, match=message):
        tiny_config(fields)


@pytest.mark.engine
def test_a_refused_start_writes_nothing(config_file: ConfigFile, tmp_path: Path) -> None:
    """Breaks if what only torch can tell is told when the run folder is there already, or in a traceback."""
    for fields, message in [
        (named("ASGD"), "error: optim.algorithm torch.optim.ASGD moves weights whose gradient is zero at λ = 0"),
        (named("NAdam", {"momentun": 1}), "torch.optim.NAdam takes no momentun; it takes betas, eps, momentum_decay"),
    ]:
        said = finish(start(config_file(fields), tmp_path / "run"), 2)
        assert message in said
        assert "Traceback" not in said
        assert not (tmp_path / "run").exists()


class Strange(torch.optim.Optimizer):
    """Plain SGD, with what the class `how` does beside it, under a name that torch does not have."""

    how: Callable[[Strange], Any]

    def __init__(self, params: Any, lr: float = 0.0) -> None:
        super().__init__(params, {"lr": lr})

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                p.data.add_(p.grad, alpha=-group["lr"])
        type(self).how(self)


def _counts_in_a_group(self: Strange) -> None:
    self.param_groups[0]["k"] = self.param_groups[0].get("k", 0) + 1


def _keeps_text(self: Strange) -> None:
    self.state[self.param_groups[0]["params"][0]]["note"] = "text"


def _names_a_path(self: Strange) -> None:
    self.state[self.param_groups[0]["params"][0]]["a/b"] = torch.zeros(())


def _keeps_of_no_tensor(self: Strange) -> None:
    self.state["all"]["k"] = torch.zeros(())  # type: ignore[index]


def _counts_in_itself(self: Strange) -> None:
    self.k = getattr(self, "k", 0) + 1
    for p in self.param_groups[0]["params"]:
        p.data.add_(p.grad, alpha=-self.param_groups[0]["lr"] * self.k)  # type: ignore[arg-type]


def _shrinks_what_it_was_not_told(self: Strange) -> None:
    for group in self.param_groups:
        for p in group["params"]:
            p.data.mul_(1 - group["lr"] * group["decay"])


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (_counts_in_a_group, "keeps state that is of no tensor"),
        (_keeps_of_no_tensor, "keeps state that is of no tensor"),
        (_keeps_text, "keeps note as its state, a str: no tensor and no number"),
        (_names_a_path, "keeps 'a/b' as its state, and no file can have that name"),
        (_counts_in_itself, "does not go on from its state"),
        (_shrinks_what_it_was_not_told, "breaks the zero-gradient law under optim.decay_rule decoupled"),
    ],
)
def test_what_a_release_to_come_may_bring(
    how: Callable[[Strange], Any], message: str, tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks if a run can be driven by one whose state a checkpoint would lose, or that decays by another factor."""
    monkeypatch.setattr(torch.optim, "Strange", type("Strange", (Strange,), {"how": how}), raising=False)
    with pytest.raises(ValueError, match=message):
        try_out(tiny_config(named("Strange")).optim, CPU)
