"""K-FAC's factors against the exact Fisher and Gauss–Newton matrices of small networks, in float64."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from optim.kfac_statistics import input_products, output_products
from tests.test_kfac import DOUBLE, drawn


def root(metric: str, logits: Tensor) -> Tensor:
    """Output gradients (K, N, K) whose outer products add up to the exact Hessian of each row: columns of a root of it."""
    if metric == "gauss_newton":
        return torch.eye(logits.shape[1], dtype=DOUBLE)[:, None, :].expand(-1, len(logits), -1)
    p = logits.softmax(-1)
    # Σ_y p_y (p − e_y)(p − e_y)ᵀ = diag(p) − ppᵀ
    columns = p[None] - torch.eye(p.shape[1], dtype=DOUBLE)[:, None, :]
    return columns * p.T[:, :, None].sqrt()


def exact_and_factored(
    network: nn.Sequential, x: Tensor, metric: str
) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
    """The mean over examples of J'HJ over all parameters of the linear maps, each as (outputs, inputs); and A, S of each."""
    layers = {str(i): layer for i, layer in enumerate(network) if isinstance(layer, nn.Linear)}
    parameters = [layer.weight for layer in layers.values()]
    exact = torch.zeros(sum(p.numel() for p in parameters), dtype=DOUBLE)
    exact = torch.outer(exact, exact)
    for one in x:
        for v in root(metric, network(one[None])):
            rows = torch.autograd.grad(network(one[None]), parameters, v)
            flat = torch.cat([row.flatten() for row in rows])
            exact += torch.outer(flat, flat) / len(x)
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    for name, layer in layers.items():
        layer.register_forward_hook(lambda _m, given, out, name=name: seen.update({name: (given[0].detach(), out)}))
    logits = network(x)
    a = {name: input_products(layer, seen[name][0])[0] / len(x) for name, layer in layers.items()}
    s = {name: torch.zeros(layer.out_features, layer.out_features, dtype=DOUBLE) for name, layer in layers.items()}
    for v in root(metric, logits.detach()):
        gradients = torch.autograd.grad(logits, [seen[name][1] for name in layers], v, retain_graph=True)
        for (name, layer), g in zip(layers.items(), gradients, strict=True):
            s[name] += output_products(layer, g) / len(x)
    return exact, {name: (a[name], s[name]) for name in layers}


def linears(*sizes: int, relu: bool = False) -> nn.Sequential:
    parts: list[nn.Module] = []
    for i, (d_in, d_out) in enumerate(itertools.pairwise(sizes)):
        layer = nn.Linear(d_in, d_out, bias=False).double()
        layer.weight.data = drawn(d_out, d_in, seed=i) / math.sqrt(d_in)
        parts += [layer, nn.ReLU()] if relu else [layer]
    return nn.Sequential(*(parts[:-1] if relu else parts))


def block_errors(exact: Tensor, factors: dict[str, tuple[Tensor, Tensor]]) -> list[float]:
    """‖A ⊗ S − exact block‖/‖exact block‖ of each layer."""
    errors, start = [], 0
    for a, s in factors.values():
        # vec by rows: element (o, i) at o·d + i, so S is the outer factor.
        size = len(a) * len(s)
        block = exact[start : start + size, start : start + size]
        errors.append(((torch.kron(s, a) - block).norm() / block.norm()).item())
        start += size
    return errors


@pytest.mark.parametrize("metric", ["fisher", "gauss_newton"])
def test_one_layer_is_exact(metric: str) -> None:
    """Breaks if A or S of one linear map is another mean than the exact matrix's, where the outputs' Hessian is the same for all
    inputs: Gauss–Newton, and a softmax over equal logits."""
    network = linears(5, 4)
    if metric == "fisher":
        network[0].weight.data.zero_()  # type: ignore[operator,union-attr]
    assert max(block_errors(*exact_and_factored(network, drawn(7, 5, seed=9), metric))) < 1e-12


def test_deep_linear_is_exact_with_white_inputs() -> None:
    """Breaks if a block of a deep linear network under Gauss–Newton is not exact, or A of white inputs is not I."""
    white = torch.cat([torch.eye(4, dtype=DOUBLE), -torch.eye(4, dtype=DOUBLE)]) * 2  # E x = 0, E xxᵀ = I
    exact, factors = exact_and_factored(linears(4, 5, 3, 2), white, "gauss_newton")
    torch.testing.assert_close(factors["0"][0], torch.eye(4, dtype=DOUBLE), rtol=0, atol=1e-12)
    assert max(block_errors(exact, factors)) < 1e-12


@pytest.mark.parametrize(
    ("metric", "known"), [("fisher", (0.495, 0.664, 0.382)), ("gauss_newton", (0.461, 0.322, 0.0))]
)
def test_elsewhere_the_error_is_known(metric: str, known: tuple[float, ...]) -> None:
    """Breaks if the blocks of a ReLU network are off by other shares of themselves than docs/rules.md says. Under
    Gauss–Newton the last layer's is exact: its Hessian does not depend on the input."""
    errors = block_errors(*exact_and_factored(linears(6, 5, 4, 3, relu=True), drawn(64, 6, seed=3), metric))
    assert errors == pytest.approx(known, abs=2e-3)


@pytest.mark.parametrize(("stride", "padding", "bias"), [(1, 0, False), (2, 1, True)])
def test_convolution_by_brute_force(stride: int, padding: int, bias: bool) -> None:
    """Breaks if a convolution's patches are in another order than its weight, a position is left out or counted twice, or A ⊗ S has
    another scale than the second moment of per-example gradients, where Grosse and Martens' assumptions hold to the letter."""
    layer = nn.Conv2d(2, 3, 2, stride, padding, bias=bias).double()
    x = drawn(5, 2, 3, 3, seed=1)
    shape = layer(x).shape
    positions = shape[2] * shape[3]
    # The assumptions: g of each position is one of three vectors with a sign of its own, whatever the inputs are.
    choices, d = drawn(3, 3, seed=2), len(input_products(layer, x)[0])
    a, rows = input_products(layer, x)
    assert rows == 5 * positions
    s, exact = torch.zeros(3, 3, dtype=DOUBLE), torch.zeros(3 * d, 3 * d, dtype=DOUBLE)
    count = 0
    for signs in itertools.product((-1.0, 1.0), repeat=positions):
        for c in choices:
            count += 1
            g = c[None, :, None] * torch.tensor(signs, dtype=DOUBLE)[None, None, :]
            g = g.view(1, *shape[1:])
            s += output_products(layer, g)
            for one in x:
                found = torch.autograd.grad(layer(one[None]), list(layer.parameters()), g)
                parts = [found[0].flatten(1), *(column[:, None] for column in found[1:])]
                flat = torch.cat(parts, 1).flatten()
                exact += torch.outer(flat, flat)
    torch.testing.assert_close(torch.kron(s / count, a / rows), exact / (count * len(x)), rtol=1e-10, atol=1e-12)
