"""Weights in the Gauss–Newton and Fisher metrics, and the input Jacobian: against the long way round and P2's lemmas."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from configs.images import ImageModel
from model.classifier import Classifier
from tests.small_nets import CLASSES, NETS, frozen, gradient, leaves
from weights import gauss_newton, input_jacobian, jacobian
from weights.frozen import Batches, Frozen, freeze

FLOAT64 = {"rtol": 1e-10, "atol": 1e-12}


def jacobians(network: Frozen, batches: Batches) -> tuple[Tensor, Tensor, Tensor]:
    """J (n, K, P) by one torch.autograd.grad a logit, logits (n, K), targets (n,)."""
    rows, outputs = [], []
    for x in torch.cat([inputs for inputs, _ in batches]):
        weights = leaves(network)
        logits = network.logits(weights, network.placed(x[None]))[0]
        rows.append(torch.stack([gradient(network, logit, weights) for logit in logits]))
        outputs.append(logits.detach())
    return torch.stack(rows), torch.stack(outputs), torch.cat([targets for _, targets in batches])


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("alone", [False, True])
def test_norms_are_the_quadratic_forms(name: str, alone: bool) -> None:
    """Breaks if a metric is another's, a frozen tensor or another layer counts, or the labels are not the model's own."""
    network, batches = frozen(name)
    rows, logits, targets = jacobians(network, batches)
    p = logits.softmax(1)
    for names in gauss_newton.layers(network).values() if alone else [list(network.parameters)]:
        theta = {n: t if n in names else torch.zeros_like(t) for n, t in network.parameters.items()}
        flat = network.flat(theta)
        found = gauss_newton.along(network, batches, names, progress=False)
        torch.testing.assert_close(found.gauss_newton, torch.einsum("nkp,p->nk", rows, flat).square().sum(1), **FLOAT64)
        # ∇ℓ of every label a model may draw, weighted by its probability: Σ_y p_y (∇ℓ_y·θ)²
        gradients = torch.einsum("nyk,nkp->nyp", p[:, None] - torch.eye(CLASSES).double(), rows)
        squares = (gradients @ flat).square()
        torch.testing.assert_close(found.fisher, (p * squares).sum(1), **FLOAT64)
        torch.testing.assert_close(found.fisher_empirical, squares.gather(1, targets[:, None])[:, 0], **FLOAT64)
    assert not torch.allclose(found.fisher, found.fisher_empirical)


@pytest.mark.engine
@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("stage", [0, 3])
def test_it_is_the_forward_derivative(name: str, stage: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if two backward passes are not torch's forward derivative, or part from it with the linear map that DeepSpeed puts in
    torch's place at stage 3."""
    network, batches = frozen(name)
    theta = (network.parameters,)
    forward = [
        torch.func.jvp(partial(lambda x, p: network.logits(p, x), network.placed(x)), theta, theta) for x, _ in batches
    ]
    forms = gauss_newton.kronecker(network, batches, progress=False)
    norms = input_jacobian.exact(network, batches, progress=False).squares
    if stage == 3:
        from deepspeed.runtime.zero.linear import zero3_linear_wrap

        monkeypatch.setattr(nn.functional, "linear", zero3_linear_wrap)
    found = gauss_newton.along(network, batches, progress=False)
    torch.testing.assert_close(found.logits, torch.cat([z for z, _ in forward]), **FLOAT64)
    torch.testing.assert_close(found.moved, torch.cat([u for _, u in forward]), **FLOAT64)
    assert gauss_newton.kronecker(network, batches, progress=False) == pytest.approx(forms, rel=1e-10)
    torch.testing.assert_close(input_jacobian.exact(network, batches, progress=False).squares, norms, **FLOAT64)


def linear_map(network: Frozen, name: str) -> tuple[Tensor, nn.Module]:
    module = network.network.get_submodule(f"model.{name}")
    return network.parameters[f"{name}.weight"].flatten(1), module


@pytest.mark.parametrize("name", NETS)
def test_kroneckers_form_is_the_factors(name: str) -> None:
    """Breaks if θᵀ(A ⊗ S)θ is not that of the factors as K-FAC has them: inputs with a 1 for the bias, patches of a convolution,
    the mean over positions in S and the sum over them in A, and a frozen bias left out."""
    network, batches = frozen(name)
    found = gauss_newton.kronecker(network, batches, progress=False)
    for layer, value in found.items():
        weight, module = linear_map(network, layer)
        inputs: list[Tensor] = []
        outputs: list[Tensor] = []
        handle = module.register_forward_hook(lambda _, i, o, a=inputs, s=outputs: a.append(i[0]) or s.append(o))
        x = torch.cat([one for one, _ in batches])
        logits = network.logits(leaves(network), network.placed(x))
        handle.remove()
        grads = [torch.autograd.grad(z.sum(), outputs[0], retain_graph=True)[0] for z in logits.unbind(1)]
        if isinstance(module, nn.Conv2d):
            grads = [g.flatten(2) for g in grads]
            patches = nn.functional.unfold(
                inputs[0].detach(), module.kernel_size, padding=module.padding
            )  # (n, d_in, T)
        else:
            patches, grads = inputs[0].detach()[:, :, None], [g[:, :, None] for g in grads]
        if f"{layer}.bias" in network.parameters:
            patches = torch.cat([patches, torch.ones_like(patches[:, :1])], 1)
            weight = torch.cat([weight, network.parameters[f"{layer}.bias"][:, None]], 1)
        n, positions = len(x), patches.shape[2]
        a = torch.einsum("nit,njt->ij", patches, patches) / n
        s = sum(torch.einsum("nit,njt->ij", g, g) for g in grads) / n / positions
        theta = weight.T.reshape(-1)  # A ⊗ S acts on columns of W, one below the other
        assert value == pytest.approx((theta @ torch.kron(a, s) @ theta).item(), rel=1e-10), layer
    assert len(found) == {"mlp": 2, "convolutions": 3}[name]


def relu_net(hidden: int) -> tuple[Frozen, Batches]:
    """Our own MLP without normalisation; its biases are 0, as at its start, so that it is one without biases."""
    fields: dict[str, Any] = {"image_size": 3, "channels": 2, "classes": 4, "width": 7, "batchnorm": "none"}
    model = Classifier(ImageModel(kind="mlp", hidden_layers=hidden, **fields), [0.4, 0.6], [0.2, 0.3])
    model.init_weights(hidden)
    assert all(not p.any() for name, p in model.named_parameters() if name.endswith("bias"))
    g = torch.Generator().manual_seed(5)
    pixels = torch.randint(0, 256, (13, 2, 3, 3), generator=g, dtype=torch.uint8)
    model = model.double()
    return freeze(model, torch.float64), list(zip(pixels.split(5), torch.zeros(13, dtype=int).split(5), strict=True))


def linear_net(hidden: int) -> tuple[Frozen, Batches]:
    """Deep linear, over inputs whose mean is 0 and covariance I to rounding."""
    torch.manual_seed(hidden)
    sizes = [6, *[8] * hidden, 4]
    model = nn.Sequential(*(nn.Linear(a, b, bias=False) for a, b in itertools.pairwise(sizes))).double()
    x = torch.randn(40, 6).double()
    white = torch.linalg.qr(x - x.mean(0))[0] * 40**0.5
    return freeze(model, torch.float64), [(white, torch.zeros(40, dtype=int))]


@pytest.mark.parametrize("net", [relu_net, linear_net])
@pytest.mark.parametrize("hidden", [1, 2, 5])
def test_lemmas_1_and_2(net: Any, hidden: int) -> None:
    """Breaks if f = J_x x = J_θ θ/(L + 1), or ‖θ‖²_G = (L + 1)²·E‖f‖², does not hold of what the two measures compute."""
    network, batches = net(hidden)
    found = gauss_newton.along(network, batches, progress=False)
    torch.testing.assert_close(found.moved, (hidden + 1) * found.logits, rtol=1e-9, atol=1e-9)
    square = found.logits.square().sum(1).mean().item()
    assert found.gauss_newton.mean().item() == pytest.approx((hidden + 1) ** 2 * square, rel=1e-9)
    for inputs, _ in batches:
        x = network.seen(network.placed(inputs))
        _, along_x = torch.func.jvp(lambda x: network.logits_of_seen(network.parameters, x), (x,), (x,))
        torch.testing.assert_close(along_x, network.logits(network.parameters, inputs), rtol=1e-9, atol=1e-9)
    # Each layer of them alone moves the logits by the logits: the net is homogeneous in it.
    for names in gauss_newton.layers(network).values():
        one = gauss_newton.along(network, batches, names, progress=False)
        torch.testing.assert_close(one.moved, found.logits, rtol=1e-9, atol=1e-9)
    factors = gauss_newton.kronecker(network, batches, progress=False)
    holds = sum(factors.values()) == pytest.approx((hidden + 1) * square, rel=1e-9)
    assert holds == (net is linear_net), "Lemma 2's K-FAC form is of deep linear nets alone"


@pytest.mark.parametrize("hidden", [1, 2, 5])
def test_theorem_1(hidden: int) -> None:
    """Breaks if ‖θ‖²_G of a deep linear net over white inputs is not (L + 1)²·‖J_x‖_F²."""
    network, batches = linear_net(hidden)
    norm = gauss_newton.along(network, batches, progress=False).gauss_newton.mean().item()
    inputs = input_jacobian.exact(network, batches, progress=False)
    assert norm == pytest.approx((hidden + 1) ** 2 * inputs.mean_square, rel=1e-9)
    product = torch.linalg.multi_dot(list(network.parameters.values())[::-1])
    assert inputs.norm == pytest.approx(product.norm().item(), rel=1e-9)


def test_input_jacobian_is_of_normalised_pixels() -> None:
    """Breaks if an example's rows are mixed with another's, or the derivative is by pixels in units of 255."""
    network, batches = relu_net(2)
    found = input_jacobian.exact(network, batches, progress=False)
    x = network.seen(torch.cat([inputs for inputs, _ in batches]))
    assert x.mean((0, 2, 3)).abs().max() < 1
    whole = torch.func.vmap(torch.func.jacrev(lambda one: network.logits_of_seen(network.parameters, one[None])[0]))(x)
    torch.testing.assert_close(found.squares[:, 0], whole.flatten(1).square().sum(1), **FLOAT64)


@pytest.mark.parametrize("name", NETS)
def test_input_estimate_has_no_bias(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if the mean over all vectors of signs is another square than the exact one, or its draws are the other Jacobian's."""
    network, batches = frozen(name)
    true = input_jacobian.exact(network, batches, progress=False)
    drawn = []
    every = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=CLASSES)))

    def signs(count: int, seed: int, who: int, example: int, draw: int) -> Tensor:
        drawn.append((who, example, draw))
        return every[draw]

    monkeypatch.setattr("weights.input_jacobian.signs", signs)
    found = input_jacobian.estimate(network, batches, len(every), seed=7, progress=False)
    torch.testing.assert_close(found.squares.mean(1), true.squares[:, 0], **FLOAT64)
    assert len(set(drawn)) == len(drawn) == 11 * len(every)
    assert all(who != jacobian.JACOBIAN for who, _, _ in drawn)
    assert found.bias < 0 == true.bias
