"""Products with the Hessian, its trace and its largest eigenvalue, against the whole matrix of a tiny net in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.small_nets import NETS, batches, frozen
from weights.frozen import Frozen, freeze
from weights.hessian import product, quadratic_forms, top_eigenvalue, trace

pytestmark = pytest.mark.slow  # by its length alone: `make check` takes a minute


def whole(name: str) -> torch.Tensor:
    """H (P, P), by torch.autograd.functional.hessian of the mean loss of all examples at once."""
    network, data = frozen(name)
    x, y = (torch.cat(parts) for parts in zip(*data, strict=True))

    def loss(flat: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(network.logits(network.unflat(flat), x.double()), y)

    return torch.autograd.functional.hessian(loss, network.flat(network.parameters))


@pytest.mark.parametrize("name", NETS)
def test_products_are_the_matrix(name: str) -> None:
    """Breaks if batches of unlike size weigh alike, a tensor is left out, or order of tensors and vector differ."""
    network, data = frozen(name)
    identity = torch.eye(network.size, dtype=torch.float64)
    columns = torch.stack([product(network, data, v) for v in identity])
    torch.testing.assert_close(columns, whole(name), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", NETS)
def test_trace(name: str) -> None:
    """Breaks if the probes' mean is not the trace: exactly over an orthonormal set, within its error over random signs."""
    network, data = frozen(name)
    matrix = whole(name)
    true = matrix.trace().item()
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(network.size, network.size, dtype=torch.float64, generator=generator)
    basis = torch.linalg.qr(normal)[0]
    forms = quadratic_forms(network, data, lambda i: basis[i], network.size, progress=False)
    assert math.fsum(forms) == pytest.approx(true, rel=1e-10)
    found = trace(network, data, 200, seed=1, progress=False)
    assert abs(found.value - true) < 3 * found.error
    # Signs leave the diagonal without variance.
    variance = 2 * (matrix - matrix.diag().diag()).square().sum().item()
    assert found.error == pytest.approx(math.sqrt(variance / 200), rel=0.2)


def test_error_of_the_trace_is_that_seen() -> None:
    """Breaks if the standard error is not that of a mean over probes, or more probes change the first ones."""
    network, data = frozen("mlp")
    many = [trace(network, data, 10, seed, progress=False) for seed in range(40)]
    values = torch.tensor([one.value for one in many])
    assert values.std().item() == pytest.approx((sum(one.error**2 for one in many) / len(many)) ** 0.5, rel=0.3)
    assert trace(network, data, 3, seed=5, progress=False).forms == many[5].forms[:3]
    assert math.isnan(trace(network, data, 1, seed=5, progress=False).error)


@pytest.mark.parametrize("name", NETS)
def test_top_eigenvalue(name: str) -> None:
    """Breaks if Lanczos finds another eigenvalue, or says that it has converged where it has not."""
    network, data = frozen(name)
    values = torch.linalg.eigvalsh(whole(name))
    found = top_eigenvalue(network, data, seed=1, tolerance=1e-6, progress=False)
    assert found.converged
    assert found.value == pytest.approx(values[-1].item(), rel=1e-6)
    # the residual is a bound: an eigenvalue lies within it
    short = top_eigenvalue(network, data, seed=1, tolerance=1e-6, most=3, progress=False)
    assert not short.converged
    assert short.products == 3
    assert (values - short.value).abs().min().item() <= short.residual * (1 + 1e-9)
    assert short.value <= values[-1].item() * (1 + 1e-12)


def test_top_eigenvalue_is_the_largest_not_the_farthest() -> None:
    """Breaks if the most negative eigenvalue is taken for the top because it is larger in magnitude."""
    network, data, values = saddle()
    assert values[0].item() < -values[-1].item() < 0
    found = top_eigenvalue(network, data, seed=2, tolerance=1e-8, progress=False)
    assert found.value == pytest.approx(values[-1].item(), rel=1e-6)


def saddle() -> tuple[Frozen, list[tuple[torch.Tensor, torch.Tensor]], torch.Tensor]:
    """z = (0, Σ a·tanh²(b·x) − Σ b²), the right class 0: −ln p rises with z₁, and −b² curves it downwards by more than all else.

    Its network, its data and all eigenvalues of its Hessian, ascending.
    """

    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.tensor([0.3, 0.1])), nn.Parameter(torch.tensor([0.2, 0.4]))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            z = (torch.tanh(x * self.b).square() * self.a).sum(1)
            return torch.stack([torch.zeros_like(z), z - self.b.square().sum()], 1)

    torch.manual_seed(0)
    data = [(torch.randn(6, 2), torch.zeros(6, dtype=torch.long))]
    network = freeze(Product(), torch.float64)

    def loss(flat: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(network.logits(network.unflat(flat), data[0][0].double()), data[0][1])

    matrix = torch.autograd.functional.hessian(loss, network.flat(network.parameters))
    return network, data, torch.linalg.eigvalsh(matrix)


def test_linear_loss_and_float32() -> None:
    """Breaks if a tensor that the gradient does not depend on ends the measure, or float32 loses more than its digits."""
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(4, 3))
    data = batches(torch.randn(11, 4))
    exact = top_eigenvalue(freeze(model, torch.float64), data, seed=0, tolerance=1e-8, progress=False)
    found = top_eigenvalue(freeze(model), data, seed=0, tolerance=1e-4, progress=False)
    assert found.converged
    assert found.value == pytest.approx(exact.value, rel=1e-5)
    # An input of zeros: the weight has no part in any loss.
    zeros = [(torch.zeros(5, 4), torch.arange(5) % 3)]
    assert trace(freeze(model), zeros, 5, seed=0, progress=False).value > 0
