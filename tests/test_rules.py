"""The seam of decay rules and algorithms: what the dicts name, and that an engine does all that a rule may say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from configs.decay_laws import LAWS, SCALES
from configs.schema import Optim, RunConfig
from data.manifest import Manifest
from engine.launch import start_world
from optim.algorithms import ALGORITHMS
from optim.rules import RULES, Pieces, Rule
from tests.live import make_training, train_steps
from tests.ranks import run_ranks


@pytest.mark.parametrize(("names", "field"), [(RULES, "decay_rule"), (ALGORITHMS, "algorithm")])
def test_dict_and_schema_agree(names: dict[str, Any], field: str) -> None:
    """Breaks if a configuration may name a rule or an algorithm that is not there, or may not name one that is."""
    words = get_args(Optim.model_fields[field].annotation)
    # Beside the words an algorithm may be a dotted name.
    assert set(names) == set(get_args(words[0]) if field == "algorithm" else words)
    assert all(module.ABOUT for module in names.values())


def test_laws_are_told_as_they_are_computed() -> None:
    """Breaks if the advice and the report know a rule by another law than its file, or by a λ that it does not have."""
    assert {name: law.law for name, law in LAWS.items()} == {name: module.ABOUT for name, module in RULES.items()}
    told = {name: (law.has_decay, law.algorithms, law.rounds_once) for name, law in LAWS.items()}
    rules = {name: Rule(module) for name, module in RULES.items()}
    assert told == {name: (rule.uses_decay, rule.algorithms, rule.rounds_once) for name, rule in rules.items()}
    assert set(SCALES) == set(ALGORITHMS)


def test_what_a_rule_leaves_out_does_nothing() -> None:
    """Breaks if a rule must define what it does not need."""
    rule = Rule(SimpleNamespace(ABOUT="nothing", INSIDE=""))  # type: ignore[arg-type]
    rule.on_gradients(None, [])  # type: ignore[arg-type]
    assert rule.before_step(None, [], 0) is None  # type: ignore[arg-type]
    rule.after_step(None, None, 0)  # type: ignore[arg-type]
    assert (rule.algorithms, rule.moves_weights) == (None, False)


def halving(calls: list[str]) -> SimpleNamespace:
    """A rule that halves what the step left of the decayed tensors, and notes when it was called."""

    def on_gradients(pieces: Pieces, gradients: list[Tensor]) -> None:
        calls.append("gradients")

    def before_step(pieces: Pieces, gradients: list[Tensor], t: int) -> list[Tensor]:
        calls.append("before")
        return [weight.clone() for weight in pieces.weights]

    @torch.no_grad()
    def after_step(pieces: Pieces, kept: list[Tensor], t: int) -> None:
        calls.append("after")
        assert any(not torch.equal(weight, old) for weight, old in zip(pieces.weights, kept, strict=True))
        for weight, group in zip(pieces.weights, pieces.groups, strict=True):
            weight.mul_(0.5 if group["decay"] else 1.0)

    return SimpleNamespace(
        ABOUT="a test's",
        INSIDE="",
        factor=lambda config, t, part: t + 1.0,
        on_gradients=on_gradients,
        before_step=before_step,
        after_step=after_step,
    )


def halved(configs: list[RunConfig], manifest: Manifest) -> list[Any]:
    """Per stage: the weights after two updates under `halving`, what was called, and λ_t of the decayed group."""
    world, ends = start_world("rules", 120, None), []
    for config in configs:
        calls: list[str] = []
        RULES["decoupled"] = halving(calls)  # type: ignore[assignment]
        training = make_training(config, manifest, world)
        train_steps(training, range(2))
        fragments = training.engine.fragments
        weights = fragments.gather("weights", 0) or {}
        fragments.check_forward(weights.__getitem__)
        with pytest.raises(RuntimeError, match="the forward pass sees other values of"):
            fragments.check_forward(lambda name, held=weights: held[name] + 1)  # type: ignore[misc]
        ends.append((weights, calls, training.engine.weight_decay))
    return ends


@pytest.mark.engine
def test_a_rule_acts_at_every_stage(tiny_data: tuple[Path, Manifest], tiny_config: Callable[..., RunConfig]) -> None:
    """Breaks if a stage skips a part of a rule, or the next forward pass does not see what the rule left."""
    torch.set_num_threads(1)
    configs = [tiny_config({"parallel": {"zero_stage": stage}}) for stage in (0, 1, 2, 3)]
    (whole, calls, decay), *others = run_ranks(1, halved, configs, tiny_data[1])[0]
    assert calls == ["gradients", "before", "after"] * 2
    assert decay == 2 * configs[0].optim.weight_decay  # the rule's own factor, in the second update
    for weights, same_calls, _ in others:
        assert same_calls == calls
        for name, tensor in weights.items():
            torch.testing.assert_close(tensor, whole[name], rtol=1e-5, atol=1e-6)
