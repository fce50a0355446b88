"""The Jacobian of the logits by the parameters: exact against a loop, the estimate against the exact one."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from tests.small_nets import CLASSES, NETS, frozen, gradient, leaves, mlp
from weights.frozen import JACOBIAN, TOP, TRACE, freeze, signs
from weights.jacobian import JacobianNorms, estimate, exact


def by_loop(name: str) -> torch.Tensor:
    """‖J‖_F² of each example, by one torch.autograd.grad a logit."""
    network, batches = frozen(name)
    squares = []
    for x in torch.cat([inputs for inputs, _ in batches]).double():
        weights = leaves(network)
        logits = network.logits(weights, x[None])[0]
        squares.append(sum(gradient(network, logit, weights).square().sum() for logit in logits))
    return torch.stack(squares).detach()


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("at_once", [1, 100, 10**6])
def test_exact_is_the_loops(name: str, at_once: int) -> None:
    """Breaks if a tensor or a logit is left out, a frozen one counted, an example mixed with others, or a chunk lost."""
    network, batches = frozen(name)
    found = exact(network, batches, at_once, progress=False)
    loop = by_loop(name)
    torch.testing.assert_close(found.squares[:, 0], loop, rtol=1e-12, atol=0)
    assert found.norm == pytest.approx(loop.sqrt().mean().item(), rel=1e-12)
    assert (found.bias, found.draw_error) == (0, 0)


def test_float32_is_near() -> None:
    """Breaks if float32, which GPUs measure in, is not what is computed in, or loses more than its digits."""
    network, batches = frozen("convolutions", torch.float32)
    assert network.dtype == torch.float32
    squares = exact(network, batches, progress=False).squares[:, 0]
    torch.testing.assert_close(squares, by_loop("convolutions"), rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", NETS)
def test_estimate_has_no_bias(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if the mean of all vectors of signs is another square than the exact one, or that of some draws lies farther off than
    their error says."""
    network, batches = frozen(name)
    loop = by_loop(name)
    found = estimate(network, batches, draws=400, seed=7, progress=False)
    # The draws' own error, not the examples': the exact mean is over the same ones.
    assert abs(found.mean_square - loop.mean().item()) < 4 * found.draw_error < 0.1 * found.mean_square
    # Over all 2^K vectors the mean is exact, not only in the long run: it stands for the expectation itself.
    every = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=CLASSES)))
    monkeypatch.setattr("weights.jacobian.signs", lambda count, seed, who, example, draw: every[draw])
    whole = estimate(network, batches, len(every), seed=7, progress=False)
    torch.testing.assert_close(whole.squares.mean(1), loop, rtol=1e-12, atol=0)


def test_errors_and_the_roots_bias_are_those_seen() -> None:
    """Breaks if an error is over the wrong thing, or the root of the mean is taken for unbiased."""
    network, batches = frozen("mlp")
    true, draws = exact(network, batches, progress=False), 4
    squares = estimate(network, batches, 200 * draws, seed=0, progress=False).squares
    many = [JacobianNorms(part, exact=False) for part in squares.split(draws, dim=1)]
    # Over sets of draws, the means of the same examples spread by draw_error.
    means = torch.tensor([one.mean_square for one in many])
    expected = (sum(one.draw_error**2 for one in many) / len(many)) ** 0.5
    assert means.std().item() == pytest.approx(expected, rel=0.3)
    assert means.mean().item() == pytest.approx(true.mean_square, abs=4 * expected / len(many) ** 0.5)
    # `error` is of examples too: never smaller than theirs alone, by much.
    assert many[0].error > 0.7 * true.error
    # The root lies below, by about what is said. Its part that is linear in the draws has mean 0, and would be most of the noise.
    roots = true.squares.sqrt()
    linear = [((one.squares.mean(1, keepdim=True) - true.squares) / (2 * roots)).mean().item() for one in many]
    short = sum(one.norm - part - true.norm for one, part in zip(many, linear, strict=True)) / len(many)
    assert short < 0
    assert short == pytest.approx(sum(one.bias for one in many) / len(many), rel=0.15)


def test_draws_are_pure() -> None:
    """Breaks if chunks, batches, more draws or a part of the examples change what an example draws, or if two of it are alike."""
    network, batches = frozen("mlp")
    whole = estimate(network, batches, 6, seed=3, progress=False).squares
    assert torch.equal(whole[:, :2], estimate(network, batches, 2, seed=3, progress=False).squares)
    alone = estimate(network, batches, 6, seed=3, at_once=1, progress=False).squares
    torch.testing.assert_close(alone, whole, rtol=1e-12, atol=0)
    last = estimate(network, batches[1:], 6, seed=3, first=4, progress=False).squares
    torch.testing.assert_close(last, whole[4:], rtol=1e-12, atol=0)
    other = estimate(network, batches, 6, seed=4, progress=False).squares
    assert not torch.allclose(other, whole)


def test_signs() -> None:
    """Breaks if signs are not balanced and unrelated over draws, or if two measures of one seed draw the same."""
    one = torch.stack(
        [signs(4096, 5, who, first, second) for who in (JACOBIAN, TRACE, TOP) for first in (0, 1) for second in (0, 1)]
    )
    assert set(one.unique().tolist()) == {-1.0, 1.0}
    products = one @ one.T / 4096
    assert (products - torch.eye(len(one))).abs().max() < 5 / 64
    assert one.mean(1).abs().max() < 5 / 64
    assert torch.equal(signs(100, 5, TOP, 1), signs(4096, 5, TOP, 1)[:100])


def test_freeze_leaves_the_model_alone() -> None:
    """Breaks if a measure moves a model's mode, weights, statistics or gradients, or if it measures in training mode."""
    model, batches = mlp()
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    network = freeze(model, torch.float64)
    exact(network, batches, progress=False)
    assert model.training
    assert all(p.grad is None and p.dtype == torch.float32 for p in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    torch.testing.assert_close(exact(network, batches, progress=False).squares[:, 0], by_loop("mlp"))


def test_logits_of_a_model_that_has_them() -> None:
    """Breaks if a classifier's forward, which is a loss, is taken for its logits, or if autocast stays on."""

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.autocast = nn.Linear(4, CLASSES), torch.bfloat16

        def forward(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            raise AssertionError

        def logits(self, inputs: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", self.autocast, enabled=self.autocast is not None):
                return self.body(inputs)

    _, batches = mlp()
    squares = exact(freeze(Classifier()), batches, progress=False).squares[:, 0]
    # Of a linear map each logit's row is (x, 1).
    x = torch.cat([inputs for inputs, _ in batches]).double()
    torch.testing.assert_close(squares, CLASSES * (x.square().sum(1) + 1), rtol=1e-6, atol=0)
