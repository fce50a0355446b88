"""K-FAC's arithmetic, in float64: against the exact Fisher and Gauss–Newton matrices of small networks, formulas, and draws."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from configs.errors import InputError
from configs.schema import RunConfig
from configs.tensors import TensorSpec
from optim.algorithms import build_optimizer
from optim.kfac import KFAC, dampings, inverse
from optim.kfac_statistics import input_products, is_known, output_gradients
from optim.parameter_groups import set_step

KFAC_OPTIM: dict[str, Any] = {"algorithm": "kfac", "lr": 1.0, "momentum": 0.0, "weight_decay": 0.0, "grad_clip": 0.0}
Config = Callable[..., RunConfig]
DOUBLE = torch.float64


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def over(layers: dict[str, nn.Module], config: RunConfig) -> KFAC:
    """The optimiser of some layers."""
    named = {f"{name}.{kind}": p for name, layer in layers.items() for kind, p in layer.named_parameters()}
    tensors = {
        name: TensorSpec(tuple(p.shape), "hidden", "matrix" if p.dim() > 1 else "bias") for name, p in named.items()
    }
    optimizer = build_optimizer(named, tensors, config.optim)
    assert isinstance(optimizer, KFAC)
    set_step(optimizer, config, 0, config.optim.lr)
    return optimizer


def test_one_step_reaches_the_minimum(tiny_config: Config) -> None:
    """Breaks if the step of an undamped layer is not (A ⊗ S)⁻¹ of its gradient, bias included, or η or the sign is another: linear
    regression is solved in one."""
    x, y = drawn(40, 6, seed=1), drawn(40, 3, seed=2)
    for how in ("eigen", "cholesky"):
        layer = nn.Linear(6, 3).double()
        config = tiny_config(
            {"optim": KFAC_OPTIM | {"kfac": {"damping": 0.0, "metric": "gauss_newton", "inverse": how}}}
        )
        optimizer = over({"layer": layer}, config)
        a, rows = input_products(layer, x)
        optimizer.fold({"layer": (a / rows, torch.eye(3, dtype=DOUBLE))})
        optimizer.invert(["layer"])
        optimizer.counts["inverses"] += 1
        (0.5 * (layer(x) - y).square().sum() / len(x)).backward()
        optimizer.step()
        ones = torch.cat([x, x.new_ones(40, 1)], 1)
        solution = torch.linalg.lstsq(ones, y).solution.T
        torch.testing.assert_close(torch.cat([layer.weight, layer.bias[:, None]], 1).detach(), solution)


def test_damping_and_pi() -> None:
    """Breaks if π is not the root of the mean eigenvalues' ratio, the two dampings' product is not λ_d, or an inverse is of another
    matrix; or a scale that moves from A to S changes the step."""
    a, s = (m @ m.T for m in (drawn(5, 9, seed=1), drawn(3, 8, seed=2)))
    for_a, for_s = dampings(a, s, 1e-2)
    pi = math.sqrt((a.trace().item() / 5) / (s.trace().item() / 3))
    assert for_a == pytest.approx(pi * 0.1)
    assert for_s == pytest.approx(0.1 / pi)
    for how in ("eigen", "cholesky"):
        found = inverse(a, for_a, how)
        assert found is not None
        torch.testing.assert_close(found @ (a + for_a * torch.eye(5, dtype=DOUBLE)), torch.eye(5, dtype=DOUBLE))
    moved = [(7 * a, s / 7), (a, s)]
    steps = []
    for one, other in moved:
        both = [inverse(f, d, "eigen") for f, d in zip((one, other), dampings(one, other, 1e-2), strict=True)]
        assert both[0] is not None
        assert both[1] is not None
        steps.append(torch.kron(both[0], both[1]))
    torch.testing.assert_close(*steps)
    # A layer that nothing reaches: no trace to divide by.
    assert dampings(a, torch.zeros(3, 3), 1e-2) == (0.1, 0.1)


def test_singular_factors_are_refused(tiny_config: Config) -> None:
    """Breaks if at damping 0 a factor of lower rank is inverted all the same, or the error does not say which."""
    x = drawn(3, 6, seed=1).float()  # three examples, six inputs
    for how in ("eigen", "cholesky"):
        layer = nn.Linear(6, 2, bias=False)
        config = tiny_config(
            {"optim": KFAC_OPTIM | {"kfac": {"damping": 0.0, "metric": "gauss_newton", "inverse": how}}}
        )
        optimizer = over({"layer": layer}, config)
        optimizer.fold({"layer": (input_products(layer, x)[0] / 3, torch.eye(2))})
        with pytest.raises(InputError, match=r"A of layer layer is singular.*damping above 0"):
            optimizer.invert(["layer"])


def test_samples_have_the_metrics_mean() -> None:
    """Breaks if labels are drawn from another distribution than the model's, or normal numbers have another mean or covariance."""
    n, logits = 40_000, torch.tensor([1.0, -0.5, 0.3, -2.0])
    p, many, targets = logits.double().softmax(-1), logits.expand(40_000, 4), torch.zeros(40_000, dtype=torch.long)
    for metric, exact in (("fisher", torch.diag(p) - torch.outer(p, p)), ("gauss_newton", torch.eye(4, dtype=DOUBLE))):
        v = output_gradients(metric, many, targets, seed=3, step=5, first=0).double()
        products = v[:, :, None] * v[:, None, :]
        off = (products.mean(0) - exact).abs() / (products.std(0) / math.sqrt(n) + 1e-7)
        assert off.max() < 4.5, metric  # of sixteen numbers, in standard errors
        assert (v.mean(0).abs() / (v.std(0) / math.sqrt(n))).max() < 4.5
    # The data's labels, and no draw.
    v = output_gradients("fisher_empirical", many[:3], torch.tensor([2, -100, 0]), 3, 5, 0).double()
    for row, label in ((0, 2), (2, 0)):
        torch.testing.assert_close(v[row], p - F.one_hot(torch.tensor(label), 4), rtol=1e-6, atol=1e-7)
    assert not v[1].any()  # it does not count


@pytest.mark.parametrize("metric", ["fisher", "gauss_newton"])
def test_draws_are_of_the_place_in_the_batch(metric: str) -> None:
    """Breaks if how a batch is cut into micro-batches changes what is drawn, or another update, seed or place draws the same."""
    logits, targets = drawn(12, 5, seed=1).float(), torch.zeros(12, dtype=torch.long)
    whole = output_gradients(metric, logits, targets, 1, 2, 0)
    parts = [output_gradients(metric, logits[i : i + 4], targets[i : i + 4], 1, 2, i) for i in (0, 4, 8)]
    assert torch.equal(whole, torch.cat(parts))
    for seed, step, first in ((2, 2, 0), (1, 3, 0), (1, 2, 12)):
        assert not torch.equal(whole, output_gradients(metric, logits, targets, seed, step, first))


def test_momentum_and_moving_average(tiny_config: Config) -> None:
    """Breaks if the first statistics are not taken whole, later ones have another weight, or momentum is of another step."""
    layer = nn.Linear(3, 2, bias=False).double()
    optim = {"momentum": 0.9, "lr": 0.1, "kfac": {"factor_decay": 0.75, "damping": 1e-2}}
    optimizer = over({"layer": layer}, tiny_config({"optim": KFAC_OPTIM | optim}))
    pairs = [(m @ m.T, n @ n.T) for m, n in ((drawn(3, 9, seed=i), drawn(2, 9, seed=i + 9)) for i in range(2))]
    w, m, a, s = layer.weight.detach().clone(), torch.zeros(2, 3, dtype=DOUBLE), *pairs[0]
    for t, (new_a, new_s) in enumerate(pairs):
        optimizer.fold({"layer": (new_a, new_s)})
        optimizer.invert(["layer"])
        optimizer.counts["inverses"] += 1
        if t:
            a, s = 0.75 * a + 0.25 * new_a, 0.75 * s + 0.25 * new_s
        gradient = drawn(2, 3, seed=20 + t)
        layer.weight.grad = gradient.clone()
        optimizer.step()
        for_a, for_s = dampings(a, s, 1e-2)
        eyes = for_a * torch.eye(3, dtype=DOUBLE), for_s * torch.eye(2, dtype=DOUBLE)
        m = 0.9 * m + torch.linalg.inv(s + eyes[1]) @ gradient @ torch.linalg.inv(a + eyes[0])
        w = w - 0.1 * m
        torch.testing.assert_close(layer.weight.detach(), w)


@pytest.mark.parametrize("rule", ["decoupled", "l2_coupled"])
def test_law_of_decay(rule: str, tiny_config: Config) -> None:
    """Breaks if decoupled decay passes through the curvature, or λw of l2_coupled does not, where the gradient is zero."""
    layer = nn.Conv2d(2, 3, 2).double()
    optim = {"lr": 0.05, "weight_decay": 0.4, "decay_rule": rule, "decay_mask": "matrices"}
    optimizer = over({"layer": layer}, tiny_config({"optim": KFAC_OPTIM | optim}))
    a, s = (m @ m.T for m in (drawn(9, 20, seed=1), drawn(3, 20, seed=2)))
    optimizer.fold({"layer": (a, s)})
    optimizer.invert(["layer"])
    optimizer.counts["inverses"] += 1
    before, bias = layer.weight.detach().clone(), layer.bias.detach().clone()  # type: ignore[union-attr]
    layer.weight.grad, layer.bias.grad = torch.zeros_like(before), torch.zeros_like(bias)  # type: ignore[union-attr]
    optimizer.step()
    if rule == "decoupled":
        torch.testing.assert_close(layer.weight.detach(), (1 - 0.05 * 0.4) * before, rtol=1e-15, atol=0)
        assert torch.equal(layer.bias.detach(), bias)  # type: ignore[union-attr]
        return
    # Preconditioned L2: the bias, which has no λ, moves with its layer.
    state = optimizer.layers["layer"]
    gradient = torch.cat([0.4 * before.flatten(1), torch.zeros(3, 1, dtype=DOUBLE)], 1)
    step = 0.05 * state.s_inverse @ gradient @ state.a_inverse
    torch.testing.assert_close(layer.weight.detach(), before - step[:, :-1].view_as(before))
    torch.testing.assert_close(layer.bias.detach(), bias - step[:, -1])  # type: ignore[union-attr]


def test_kl_clip(tiny_config: Config) -> None:
    """Breaks if the clip has another factor than min(1, √(κ/(η² Σ g·F⁻¹g))), is taken layer by layer, or acts where not due."""
    moved = {}
    for clip in (None, 1e-3, 1e6):
        layers = {"one": nn.Linear(3, 2, bias=False).double(), "other": nn.Linear(4, 3).double()}
        optim = {"lr": 0.3, "kfac": {"kl_clip": clip}}
        optimizer = over(dict(layers), tiny_config({"optim": KFAC_OPTIM | optim}))
        products = 0.0
        for i, (name, layer) in enumerate(layers.items()):
            for p in layer.parameters():
                p.data, p.grad = drawn(*p.shape, seed=i), drawn(*p.shape, seed=i + 5)
            state = optimizer.layers[name]
            optimizer.fold({name: tuple(m @ m.T for m in (drawn(len(f), 9, seed=i + 7) for f in (state.a, state.s)))})  # type: ignore[dict-item]
            optimizer.counts["statistics"].zero_()
        optimizer.invert(list(layers))
        optimizer.counts["inverses"] += 1
        for name in layers:
            g, state = optimizer.layers[name].gradient(), optimizer.layers[name]
            products += 0.3**2 * (g * (state.s_inverse @ g @ state.a_inverse)).sum().item()
        before = [p.detach().clone() for layer in layers.values() for p in layer.parameters()]
        optimizer.step()
        moved[clip] = [
            p.detach() - old
            for p, old in zip((p for layer in layers.values() for p in layer.parameters()), before, strict=True)
        ]
    factor = math.sqrt(1e-3 / products)
    assert factor < 1
    for free, clipped, loose in zip(moved[None], moved[1e-3], moved[1e6], strict=True):
        torch.testing.assert_close(clipped, factor * free)
        assert torch.equal(loose, free)


def test_layers_that_are_known() -> None:
    """Breaks if a layer is taken whose factors these formulas are not."""
    assert is_known(nn.Linear(2, 3))
    assert is_known(nn.Conv2d(4, 4, 3, padding=1, stride=2))
    for layer in (nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3, dilation=2), nn.Embedding(3, 4), nn.Conv1d(2, 3, 2)):
        assert not is_known(layer)
