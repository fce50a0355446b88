"""The noise of gradients against a loop over examples, predictions, norms, and the objective."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from configs.errors import InputError
from tests.small_nets import NETS, convolutions, frozen, gradient, leaves, mlp
from weights.frozen import freeze
from weights.noise import gradient_noise, noise_scale
from weights.norms import norm, objective, penalty
from weights.predictions import ensemble, probabilities, score, total_variation


def by_loop(name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of each example its gradient by the parameters (n, P), ∂ℓ/∂z (n, K) and its loss (n,), by torch.autograd.grad."""
    network, batches = frozen(name)
    gradients, residuals, losses = [], [], []
    for inputs, targets in batches:
        for x, y in zip(inputs.double(), targets, strict=True):
            weights = leaves(network)
            logits = network.logits(weights, x[None])
            loss = F.cross_entropy(logits, y[None])
            residuals.append(torch.autograd.grad(loss, logits, retain_graph=True)[0][0])
            gradients.append(gradient(network, loss, weights))
            losses.append(loss.detach())
    return torch.stack(gradients), torch.stack(residuals), torch.stack(losses)


@pytest.mark.parametrize("name", NETS)
def test_noise_scale_is_the_loops(name: str) -> None:
    """Breaks if ∂ℓ/∂z is not softmax minus one-hot, or σ² is over something else than its squares."""
    network, batches = frozen(name)
    found = noise_scale(network, batches, progress=False)
    _, residuals, losses = by_loop(name)
    torch.testing.assert_close(found.squares, residuals.square().sum(1), rtol=1e-12, atol=0)
    assert found.loss == pytest.approx(losses.mean().item(), rel=1e-12)
    assert found.per_logit == pytest.approx(residuals.square().mean().item(), rel=1e-12)
    # the bound of the docstring, example by example
    assert (found.squares <= 2 * losses).all()
    assert found.scale <= 2 * found.loss


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("at_once", [1, 150, 10**6])
def test_gradient_noise_is_the_loops(name: str, at_once: int) -> None:
    """Breaks if an example's gradient mixes with others', a tensor or a chunk is lost, or the mean is not that of all."""
    network, batches = frozen(name)
    found = gradient_noise(network, batches, at_once, progress=False)
    gradients, _, losses = by_loop(name)
    torch.testing.assert_close(found.squares, gradients.square().sum(1), rtol=1e-12, atol=0)
    mean = gradients.mean(0)
    assert found.square_of_mean == pytest.approx(mean.square().sum().item(), rel=1e-12)
    deviations = (gradients - mean).square().sum(1)
    assert found.of_one == pytest.approx(deviations.sum().item() / (len(gradients) - 1), rel=1e-10)
    assert found.loss == pytest.approx(losses.mean().item(), rel=1e-12)


def test_noise_of_a_batch_is_that_of_all_batches() -> None:
    """Breaks if the factor of a batch is wrong: here every batch of 3 of 6 examples is tried, with and without replacement."""
    network, batches = frozen("mlp")
    six = [(torch.cat([x for x, _ in batches])[:6], torch.cat([y for _, y in batches])[:6])]
    found, gradients = gradient_noise(network, six, progress=False), by_loop("mlp")[0][:6]
    mean = gradients.mean(0)

    def noise(chosen: torch.Tensor) -> float:
        return (gradients[chosen].mean(1) - mean).square().sum(1).mean().item()

    without = torch.combinations(torch.arange(6), 3)
    assert found.of_batch(3, 6) == pytest.approx(noise(without), rel=1e-10)
    # With replacement the six are all there is: their own variance has 6 below, an estimate of more examples' has 5.
    replaced = torch.cartesian_prod(*[torch.arange(6)] * 3)
    assert found.of_batch(3) * 5 / 6 == pytest.approx(noise(replaced), rel=1e-10)
    assert found.of_batch(6, 6) == 0
    with pytest.raises(InputError, match="a batch of 7 examples of 6"):
        found.of_batch(7, 6)


def test_single_and_alike_examples() -> None:
    """Breaks if equal examples have noise, or if one example alone has a variance."""
    network, batches = frozen("mlp")
    inputs, targets = batches[0]
    alike = [(inputs[:1].expand(5, -1), targets[:1].expand(5))]
    found = gradient_noise(network, alike, progress=False)
    assert abs(found.of_one) < 1e-12 * found.square_of_mean
    assert math.isnan(gradient_noise(network, [(inputs[:1], targets[:1])], progress=False).of_one)


def test_bound_of_proposition_two() -> None:
    """Breaks if noise and loss are not measured of the same examples: E‖g‖² ≤ max‖J‖²·2L holds for any weights."""
    from weights.jacobian import exact

    for name in NETS:
        network, batches = frozen(name)
        found, jacobian = gradient_noise(network, batches, progress=False), exact(network, batches, progress=False)
        assert found.squares.mean().item() <= jacobian.squares.max().item() * 2 * found.loss


def test_total_variation_and_ensemble() -> None:
    """Breaks if an ensemble is not the mean of probabilities, or the distance is no half sum of absolute differences."""
    model, batches = mlp()
    models = [model, mlp()[0]]
    for p in models[1].parameters():
        p.data.mul_(-1.5)
    networks = [freeze(one, torch.float64) for one in models]
    p, q = (probabilities(network, batches, progress=False) for network in networks)
    x = torch.cat([inputs for inputs, _ in batches]).double()
    torch.testing.assert_close(p, model.double().eval()(x).softmax(1).detach())
    mean = ensemble([p, q])
    torch.testing.assert_close(mean, (p + q) / 2)
    # half of the way: half of the distance
    torch.testing.assert_close(total_variation(p, mean), total_variation(p, q) / 2)
    one = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
    other = torch.tensor([[0.0, 0.0, 1.0], [0.25, 0.5, 0.25]])
    assert total_variation(one, other).tolist() == [1.0, 0.25]
    with pytest.raises(InputError, match="same images"):
        total_variation(one, other[:1])
    with pytest.raises(InputError, match="no snapshot"):
        ensemble([])


def test_score_of_probabilities() -> None:
    """Breaks if an ensemble's loss or error is other than cross-entropy and top-1 of its probabilities."""
    network, batches = frozen("convolutions")
    found = score(probabilities(network, batches, progress=False), batches)
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    logits = network.logits(network.parameters, x.double())
    assert found.loss == pytest.approx(F.cross_entropy(logits, y).item(), rel=1e-12)
    assert found.error == (logits.argmax(1) != y).double().mean().item() > 0


def test_norms_and_objective() -> None:
    """Breaks if the frozen bias counts, or a group decays by another's λ."""
    model, _ = convolutions()
    network = freeze(model)
    whole = math.sqrt(sum(p.square().sum().item() for p in model.parameters() if p.requires_grad))
    assert norm(network.parameters) == pytest.approx(whole, rel=1e-6)
    head = {"9.weight": network.parameters["9.weight"]}
    groups = {"decayed": (["0.weight"], 0.1), "head": (["9.weight"], 3.0), "undecayed": (["2.bias"], 0.0)}
    expected = 0.05 * norm({"0.weight": network.parameters["0.weight"]}) ** 2 + 1.5 * norm(head) ** 2
    assert penalty(network.parameters, groups) == pytest.approx(expected, rel=1e-6)
    assert objective(2.0, network.parameters, groups) == pytest.approx(2 + expected, rel=1e-6)


def test_norm_of_many_numbers() -> None:
    """Breaks if sums of float32 squares lose their small ends: torch's norm of 4·10⁷ numbers is 0.3 % too small on a CPU."""
    assert norm({"w": torch.full((40_000_000,), 0.1)}) == pytest.approx(0.1 * 40_000_000**0.5, rel=1e-5)
