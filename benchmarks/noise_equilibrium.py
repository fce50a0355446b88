"""Where each rule and algorithm takes weights that move under noise alone, beside what the formulas say.

    python -m benchmarks.noise_equilibrium

No engine and no model: one tensor, and a gradient that is fresh normal noise in each update. Size is the root mean square of the
weights, rotation the angle between a tensor before and after an update (radians).
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.markdown import read_result, table
from benchmarks.outcome import RESULTS, write_result
from configs.equilibrium import growth, settled, under_noise
from configs.errors import InputError
from configs.load import validate
from configs.noise_steps import Steps, steps_of
from configs.plan import make_plan
from configs.precision import TABLE
from configs.schema import RunConfig
from configs.tensors import TensorSpec
from optim.algorithms import ALGORITHMS, build_optimizer, moments, zero_state
from optim.parameter_groups import set_step
from optim.rules import RULES, Pieces, Rule, rule_of
from optim.stochastic import Piece, StochasticRounding, with_rounding

PRECISIONS = ("fp32", "bf16-true", "bf16-stochastic")
LR, PULL, NOISE = 0.01, 0.005, 0.5  # η; the share ηλ that decay takes of a weight in an update; σ of the gradients
BETAS, MOMENTUM = (0.9, 0.99), {"sgd": 0.9, "muon": 0.95}
SIDE = {"muon": 64}  # of the tensor, a square; of others 100
UPDATES, ARRIVED = 1300, 800  # four time constants of 200 updates, then averages over 500
AWAY = 1.3  # weights begin this much larger than decoupled decay makes them
RESULT = "noise_equilibrium.json"


def cells() -> Iterator[tuple[str, str]]:
    """Every (rule, algorithm) whose law is known: the rule names its algorithms, Muon has no coupled decay, K-FAC no law."""
    for name, module in RULES.items():
        for algorithm in Rule(module).algorithms or ALGORITHMS:
            if (name, algorithm) != ("l2_coupled", "muon") and algorithm != "kfac":
                yield name, algorithm


def setting(rule: str, algorithm: str, precision: str) -> RunConfig | None:
    """A run's configuration at PULL, or None where the rule, or muon, is refused in that precision."""
    # under bfloat16 masters Muon is refused
    if algorithm == "muon" and TABLE[precision].masters != "float32":
        return None
    own = {
        "name": "noise",
        "optim": {
            "algorithm": algorithm,
            "decay_rule": rule,
            "lr": lr_of(rule, algorithm),
            **({} if algorithm == "sgd" else {"betas": BETAS}),
            **({"momentum": MOMENTUM[algorithm]} if algorithm in MOMENTUM else {}),
            "weight_decay": decay_of(rule, algorithm) * (LR if rule == "independent" else 1.0),
        },
        "model": {"n_layer": 1, "n_head": 1, "n_embd": 16, "seq_len": 16, "vocab_size": 64, "dropout": 0.0},
        "batch": {"tokens_per_step": 64},
        "schedule": {"kind": "constant", "warmup_steps": 0, "steps": UPDATES},
        "data": {"path": "none"},
        "precision": precision,
        "parallel": {"zero_stage": 0 if TABLE[precision].masters == "float32" else 1},
    }
    config = validate(own, "noise")  # outside of what is caught: an error of this file is no refusal
    try:
        make_plan(config, 1, None)
    except InputError:
        return None
    return config


def decay_of(rule: str, algorithm: str) -> float:
    """λ at which about PULL of a weight goes in an update, as it multiplies η."""
    gain = steps(algorithm).gain
    return {
        "l2_coupled": PULL / LR / gain,
        "l2_loss": PULL / LR / gain / 2,
        "swd": PULL / LR * NOISE,
        "cautious": 2 * PULL / LR,  # about half of the weights decay
        "cautious_random": 2 * PULL / LR,
        "selective_projection": 0.5,  # a share, whatever η is
        "norm_projection": 0.0,
        "hyperball": 0.0,
        "sphere": 0.0,
    }.get(rule, PULL / LR)


def steps(algorithm: str) -> Steps:
    return steps_of(algorithm, BETAS, MOMENTUM.get(algorithm, 0.0), shape_of(algorithm), NOISE)


def shape_of(algorithm: str) -> tuple[int, int]:
    return (SIDE.get(algorithm, 100),) * 2


def first_of(algorithm: str) -> float:
    """The root mean square that weights begin at: away from where decoupled decay takes them."""
    return AWAY * settled(steps(algorithm), LR, PULL / LR)[0]


def on_sphere(algorithm: str) -> float:
    """The root mean square that weights of norm 1 have, here one tensor."""
    return 1 / math.sqrt(math.prod(shape_of(algorithm)))


def lr_of(rule: str, algorithm: str) -> float:
    """η: on the sphere smaller by as much as weights are, so that they turn as under norm_projection."""
    return LR * on_sphere(algorithm) / first_of(algorithm) if rule == "sphere" else LR


def predicted(rule: str, algorithm: str) -> tuple[float, float] | None:
    decay = decay_of(rule, algorithm)
    first = on_sphere(algorithm) if rule == "sphere" else first_of(algorithm)
    return under_noise(rule, steps(algorithm), lr_of(rule, algorithm), decay, NOISE, first)


def measured(config: RunConfig, shape: tuple[int, int], first: float, along: float = 0.0) -> tuple[float, float, float]:
    """(RMS, rotation, growth of the mean square in an update) of one tensor, whole on one rank, over the updates after ARRIVED.

    `along`: what each gradient has along the weights, over its noise.
    """
    start = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * first
    dtype, rule = getattr(torch, TABLE[config.precision].masters), rule_of(config.optim)
    rule.on_start({"w": start})
    w = nn.Parameter(start.to(dtype))
    built = build_optimizer({"w": w}, {"w": TensorSpec(shape, "mlp.fc", "matrix")}, config.optim)
    optimizer = with_rounding(built, moments(config.optim), config)
    if isinstance(optimizer, StochasticRounding):
        optimizer.know([(w, Piece("w", 0, 0, w.numel()))])
    optimizer.state[w] = zero_state(w.detach(), config.optim, optimizer.param_groups[0]["family"])
    pieces, squares, cosines = one_tensor(config, w, optimizer), [], []
    generator, after = torch.Generator().manual_seed(1), w.detach().double()
    for t in range(UPDATES):
        before = after
        pull = along * before / before.square().mean().sqrt() if along else 0.0
        gradient = (NOISE * (torch.randn(shape, generator=generator) + pull)).to(dtype)
        w.grad = gradient
        set_step(optimizer, config, t, config.optim.lr)
        rule.on_gradients(pieces, [gradient.view(-1)])
        kept = rule.before_step(pieces, [gradient.view(-1)], t)
        optimizer.step()
        rule.on_step(pieces, kept, t)
        rule.after_step(pieces, kept, t)
        after = w.detach().double()
        if t >= ARRIVED:
            squares.append(after.square().mean().item())
            cosines.append(((before * after).sum() / (before.norm() * after.norm())).item())
    angles = [math.acos(min(1.0, cosine)) for cosine in cosines]
    sizes = [math.sqrt(square) for square in squares]
    return sum(sizes) / len(sizes), sum(angles) / len(angles), (squares[-1] - squares[0]) / (len(squares) - 1)


def one_tensor(config: RunConfig, w: nn.Parameter, optimizer: torch.optim.Optimizer) -> Pieces:
    """What a rule sees where a single tensor is the model."""

    def of_each(reduce: Callable[[Tensor], Tensor]) -> Callable[[Iterable[Tensor]], dict[str, float]]:
        return lambda tensors: {"w": reduce(next(iter(tensors)).double()).item()}

    return Pieces(
        config=config,
        names=["w"],
        starts=[0],
        weights=[w.detach().view(-1)],
        groups=optimizer.param_groups,
        group_of={"w": optimizer.param_groups[0]},
        sizes={"w": w.numel()},
        numbers={},
        moment=lambda kind: [optimizer.state[w][kind].view(-1)],
        sums=of_each(torch.sum),
        square_norms=of_each(lambda tensor: tensor.square().sum()),
        step=lambda: int(optimizer.state[w]["step"].item()),
    )


def measure(rule: str, algorithm: str, precision: str) -> dict[str, Any] | None:
    """Measurement over prediction of a cell; None where it is refused."""
    config = setting(rule, algorithm, precision)
    if config is None:
        return None
    size, angle, grown = measured(config, shape_of(algorithm), first_of(algorithm))
    law = predicted(rule, algorithm)
    if law is None:
        return {"growth": grown, "ratios": [grown / growth(steps(algorithm), LR, config.optim.weight_decay)]}
    return {"rms": size, "rotation": angle, "ratios": [size / law[0], angle / law[1]]}


def chance(algorithm: str) -> float:
    """Standard error of a measured growth, over it: w² also moves by 2w·Δw, of mean 0, an element independent of the others.

    Over the updates after ARRIVED w² grows by Δ = E Δw²: the error is 2√(w²·Δ)/(Δ√n), 3 % of 100 × 100 weights, 5 % of 64 × 64.
    """
    grown = growth(steps(algorithm), LR, decay_of("selective_projection", algorithm))
    before = first_of(algorithm) ** 2 + grown * ARRIVED
    return 2 * math.sqrt(before / (grown * (UPDATES - ARRIVED))) / math.sqrt(math.prod(shape_of(algorithm)))


def rules_under_noise() -> str:
    """The table of docs/rules.md: prediction, and measurement over it, in each precision."""
    of = {(row["rule"], row["algorithm"], row["precision"]): row for row in read_result(RESULT)["rows"]}
    rows = []
    for rule, algorithm in cells():
        law = predicted(rule, algorithm)
        said = (f"{law[0]:.4g}", f"{law[1]:.4g}") if law else ("none: grows as √t", "none")
        over = []
        for precision in PRECISIONS:
            row = of.get((rule, algorithm, precision))
            over.append(" · ".join(f"{ratio:.3f}" for ratio in row["ratios"]) if row else "refused")
        rows.append((f"`{rule}`", algorithm, *said, *over))
    return table(("rule", "algorithm", "RMS", "rotation", *(f"{p}: measured over it" for p in PRECISIONS)), rows)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.noise_equilibrium",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args()
    rows = []
    for rule, algorithm in cells():
        for precision in PRECISIONS:
            if (row := measure(rule, algorithm, precision)) is not None:
                rows.append({"rule": rule, "algorithm": algorithm, "precision": precision, **row})
                print(rule, algorithm, precision, *(f"{ratio:.3f}" for ratio in row["ratios"]))
    write_result(RESULTS / RESULT, "noise_equilibrium", {"rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
