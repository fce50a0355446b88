"""The decay rules beyond AdamW's and L2: each against its formula at every stage, over a resume, and by the laws it obeys."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.decay_laws import LAWS, check_rule
from configs.schema import RunConfig
from data.manifest import Manifest
from engine.launch import start_world
from optim.draws import uniform
from tests.live import whole_and_resumed
from tests.plain import drawn_by_hand, plain_run
from tests.ranks import run_ranks
from tests.test_decay import engine_ends

# η, λ and how near the engine must come to the formula. A mask jumps where a step is next to nothing, and rounding decides there.
CASES: list[tuple[dict[str, Any], float]] = [
    ({"decay_rule": "independent", "weight_decay": 2e-3}, 2e-6),
    ({"decay_rule": "independent", "weight_decay": 2e-3, "algorithm": "sgd", "lr": 0.3}, 2e-6),
    ({"decay_rule": "corrected", "weight_decay": 2.0}, 2e-6),
    # Where a moment is next to nothing its sign is rounding's: Lion then moves a weight by 2η the other way.
    ({"decay_rule": "decoupled", "weight_decay": 5.0, "algorithm": "lion", "lr": 3e-4}, 2e-3),
    ({"decay_rule": "l2_coupled", "weight_decay": 0.05, "algorithm": "lion", "lr": 3e-4}, 2e-3),
    ({"decay_rule": "norm_projection", "weight_decay": 0.0, "algorithm": "lion", "lr": 3e-4}, 2e-3),
    ({"decay_rule": "cautious", "weight_decay": 5.0}, 2e-4),
    ({"decay_rule": "cautious", "weight_decay": 5e-3, "algorithm": "sgd", "lr": 0.3}, 2e-4),
    ({"decay_rule": "cautious_random", "weight_decay": 5.0}, 2e-4),
    ({"decay_rule": "swd", "weight_decay": 1e-3}, 5e-6),
    ({"decay_rule": "selective_projection", "weight_decay": 0.7}, 1e-5),
    ({"decay_rule": "norm_projection", "weight_decay": 0.0, "projection_every": 2}, 2e-6),
    ({"decay_rule": "hyperball", "weight_decay": 0.0, "lr": 0.01}, 2e-5),
    ({"decay_rule": "rotational", "weight_decay": 1.0}, 2e-5),
    # A tenth of the η: weights of norm 1 are a thirtieth as large.
    ({"decay_rule": "sphere", "weight_decay": 0.0, "lr": 2e-4}, 1e-5),
    ({"decay_rule": "sphere", "weight_decay": 0.0, "algorithm": "sgd", "lr": 0.1}, 1e-5),
]
# Those whose updates need more than weights, moments and the step, or whole tensors.
KEEPING = ("cautious_random", "swd", "selective_projection", "norm_projection", "hyperball", "rotational", "sphere")
Config = Callable[..., RunConfig]


def optim(fields: dict[str, Any]) -> dict[str, Any]:
    return {"optim": {"lr": 2e-3, "grad_clip": 0.1} | fields}


@pytest.mark.engine
def test_formulas_at_every_stage(tiny_data: tuple[Path, Manifest], tiny_config: Config) -> None:
    """Breaks if a rule is not its formula, on two ranks, at some ZeRO stage, or the next batch does not see what it did."""
    torch.set_num_threads(1)
    cases = [(fields, bound, stage) for fields, bound in CASES for stage in (0, 1, 2, 3)]
    configs = [tiny_config(optim(fields), {"parallel": {"zero_stage": stage}}) for fields, _, stage in cases]
    ends_of_all = run_ranks(2, engine_ends, configs, tiny_data[1])[0]
    expected = None
    for (fields, bound, stage), config, (losses, norms, ends) in zip(cases, configs, ends_of_all, strict=True):
        expected = plain_run(config, tiny_data[1]) if stage == 0 else expected
        assert expected is not None
        case = f"{fields}, stage {stage}"
        assert losses == pytest.approx(expected[0], rel=max(1e-6, bound)), case
        assert norms == pytest.approx(expected[1], rel=max(1e-5, 10 * bound)), case
        for name, tensor in ends.items():
            error = (tensor - expected[2][name]).norm() / expected[2][name].norm()
            assert error <= bound, f"{case}: {name} is {error:.1e} off"


def resumed(
    configs: list[RunConfig], manifest: Manifest, folder: str, then: list[RunConfig] | None = None
) -> list[Any]:
    """Per configuration: the weights after six updates, and after six with a checkpoint and a new engine in their midst.

    `then`: the configurations after the checkpoint, where they are others.
    """
    world, found = start_world("resumed", 120, None), []
    for number, (config, later) in enumerate(zip(configs, then or configs, strict=True)):
        both = whole_and_resumed(config, later, manifest, world, Path(folder) / str(number))
        found.append([kinds["weights"] for kinds in both])
    return found


@pytest.mark.engine
def test_resumed_bit_for_bit(tiny_data: tuple[Path, Manifest], tiny_config: Config, tmp_path: Path) -> None:
    """Breaks if what a rule keeps (first norms, mean squares, random masks) is not the same after a stop."""
    torch.set_num_threads(1)
    configs = [
        tiny_config(optim(fields), {"parallel": {"zero_stage": number % 4}}) for number, (fields, _) in enumerate(CASES)
    ]
    for (fields, _), (whole, again) in zip(
        CASES, run_ranks(2, resumed, configs, tiny_data[1], str(tmp_path))[0], strict=True
    ):
        for name, tensor in whole.items():
            assert torch.equal(tensor, again[name]), (fields, name)


@pytest.mark.engine
def test_resumed_at_another_stage(tiny_data: tuple[Path, Manifest], tiny_config: Config, tmp_path: Path) -> None:
    """Breaks if what a rule keeps, or draws, follows how tensors are cut over ranks."""
    torch.set_num_threads(1)
    stages = [(0, 3), (3, 1), (1, 2), (2, 0)]
    kept = [fields for fields, _ in CASES if fields["decay_rule"] in KEEPING]
    before, after = (
        [tiny_config(optim(f), {"parallel": {"zero_stage": stages[n % 4][half]}}) for n, f in enumerate(kept)]
        for half in (0, 1)
    )
    ends = run_ranks(2, resumed, before, tiny_data[1], str(tmp_path), after)[0]
    for fields, (whole, again) in zip(kept, ends, strict=True):
        for name, tensor in whole.items():
            # sums over other pieces are rounded otherwise
            assert (tensor - again[name]).norm() <= 1e-5 * tensor.norm(), (fields, name)


@pytest.mark.engine
def test_without_decay_the_bits_are_the_optimisers(tiny_data: tuple[Path, Manifest], tiny_config: Config) -> None:
    """Breaks if λ = 0 changes any bit under a rule that has a λ."""
    torch.set_num_threads(1)
    # the algorithms that every rule could have, each at an η of its own; Muon has no coupled decay
    algorithms: dict[str, dict[str, Any]] = {
        "adam": {},
        "sgd": {"lr": 0.3},
        "lion": {"lr": 3e-4},
        "muon": {"momentum": 0.95},
    }
    cases = [
        (algorithm, rule)
        for algorithm in algorithms
        for rule, law in LAWS.items()
        if law.has_decay and algorithm in (law.algorithms or algorithms) and (algorithm, rule) != ("muon", "l2_coupled")
    ]
    assert len(cases) == 10 + 8 + 6 + 5
    configs = [
        tiny_config(optim({"decay_rule": rule, "weight_decay": 0.0, "algorithm": algorithm} | algorithms[algorithm]))
        for algorithm, rule in cases
    ]
    ends_of = {
        case: ends
        for case, (_, _, ends) in zip(cases, run_ranks(1, engine_ends, configs, tiny_data[1])[0], strict=True)
    }
    for (algorithm, rule), ends in ends_of.items():
        for name, tensor in ends_of[algorithm, "decoupled"].items():
            assert torch.equal(tensor, ends[name]), (algorithm, rule, name)


@pytest.mark.engine
def test_independent_is_adamw_at_one_rate(tiny_data: tuple[Path, Manifest], tiny_config: Config) -> None:
    """Breaks if independent decay of η·λ is not decoupled decay of λ, or does not stay when η changes."""
    torch.set_num_threads(1)
    pairs = [({"weight_decay": 1.0}, {"weight_decay": 2e-3, "decay_rule": "independent"})]
    configs = [tiny_config(optim(fields)) for pair in pairs for fields in pair]
    one, other = [ends for _, _, ends in run_ranks(1, engine_ends, configs, tiny_data[1])[0]]
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-6, atol=1e-9)


def test_draws_are_their_formula() -> None:
    """Breaks if a random mask depends on how a tensor is cut, repeats over steps, or is not uniform."""
    like = torch.empty(1000)
    whole = uniform("cautious_random", 3, 7, "wte.weight", 0, like)
    assert torch.equal(whole.double(), drawn_by_hand(3, 7, "wte.weight", 1000))
    pieces = [
        uniform("cautious_random", 3, 7, "wte.weight", start, like[: stop - start])
        for start, stop in [(0, 333), (333, 1000)]
    ]
    assert torch.equal(torch.cat(pieces), whole)
    for other in [(4, 7, "wte.weight"), (3, 8, "wte.weight"), (3, 7, "wpe.weight")]:
        assert not torch.equal(uniform("cautious_random", *other, 0, like), whole)
    many = uniform("x", 0, 0, "y", 0, torch.empty(200_000)).double()
    assert many.mean().item() == pytest.approx(0.5, abs=5 / math.sqrt(12 * 200_000))
    assert many.min().item() >= 0
    assert many.max().item() < 1


@pytest.mark.parametrize(
    ("fields", "base", "message"),
    [
        ({"decay_rule": "swd", "algorithm": "sgd", "lr": 0.1}, {}, "decay_rule swd is a law for optim.algorithm adam"),
        (
            {"decay_rule": "hyperball", "weight_decay": 0.1},
            {},
            "holds norms fixed and has no λ: set optim.weight_decay 0",
        ),
        ({"decay_rule": "cautious"}, {"precision": "bf16-true", "parallel": {"zero_stage": 1}}, "moves weights beside"),
    ],
)
def test_refusals(fields: dict[str, Any], base: dict[str, Any], message: str, tiny_config: Config) -> None:
    """Breaks if a rule is accepted where it has no meaning, or the refusal does not say what would work."""
    with pytest.raises(ValueError, match=message):
        check_rule(tiny_config(base, {"optim": {"weight_decay": 1.0} | fields}))


def test_a_knob_of_another_rule(tiny_config: Config) -> None:
    """Breaks if optim.projection_every is accepted where it does nothing."""
    with pytest.raises(ValueError, match="projection_every does nothing under decay_rule decoupled"):
        tiny_config({"optim": {"projection_every": 5}})
