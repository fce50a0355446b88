"""Which layers may be scaled, each by a number of its own, without a change of the network: on our networks, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from configs.errors import InputError
from configs.groups import decay_groups
from configs.schema import Model, Optim
from configs.tensors import tensor_table
from model import batchnorm
from model.classifier import Classifier
from tests.test_image_models import KINDS, NORMS, classifier, config_of, images_of

pytestmark = pytest.mark.slow  # by its length alone: `make check` takes a minute

FACTORS = (0.25, 3.0)
CASES = [(kind, norms) for kind in ("resnet18", "resnet32", "vgg16", "mlp") for norms in NORMS]


def outputs_and_gradients(model: Classifier, training: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits of six images, and the gradient of their loss by tensor; no statistics move."""
    pixels, targets = images_of(model.config)
    model.train(training)
    logits = model.logits(pixels)
    loss = torch.nn.functional.cross_entropy(logits, targets)
    names, tensors = zip(*model.named_parameters(), strict=True)
    return logits.detach(), dict(zip(names, torch.autograd.grad(loss, tensors), strict=True))


def scaled(model: Classifier, name: str, factor: float) -> None:
    with torch.no_grad():
        dict(model.named_parameters())[name].mul_(factor)


def far(one: Tensor, other: Tensor) -> float:
    """‖one − other‖ over ‖other‖."""
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize(("kind", "norms"), CASES, ids=str)
def test_a_followed_layer_may_be_scaled(kind: str, norms: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if a layer is called followed by a normalisation that its size goes through, BN(x; aθ) ≠ BN(x; θ), or its gradient
    does not fall as 1/a; or if a layer that may be scaled is not called so."""
    # The ε in the root is what breaks the law: here it is below float64's last digit beside any variance.
    monkeypatch.setattr(batchnorm, "EPS", 1e-30)
    config = config_of(kind, **norms)
    model, table = classifier(kind, **norms).double(), tensor_table(config)
    logits, gradients = outputs_and_gradients(model, training=True)
    for name in (name for name, tensor in table.items() if tensor.role == "matrix"):
        for factor in FACTORS:
            scaled(model, name, factor)
            after, changed = outputs_and_gradients(model, training=True)
            scaled(model, name, 1 / factor)
            if not table[name].followed_by:
                assert far(after, logits) > 1e-5, f"{name} may be scaled by {factor}, and is not called followed"
                continue
            assert far(after, logits) < 1e-9, (name, factor)
            for other, gradient in changed.items():
                expected = gradients[other] / (factor if other == name else 1.0)
                assert far(gradient, expected) < 1e-7, (name, factor, other)


def test_every_layer_of_p2s_networks_is_followed() -> None:
    """Breaks if a hidden layer of VGG16, of the post-activation ResNet32, of the MLP or of a scale-invariant network counts as one
    that must not be scaled; or one of a pre-activation ResNet that goes into the residual stream as one that may."""
    for kind in KINDS:
        for norms in NORMS:
            table = tensor_table(config_of(kind, **norms))
            followed = {name for name, t in table.items() if t.followed_by}
            hidden = {name for name, t in table.items() if t.role == "matrix" and t.kind != "head"}
            if norms["batchnorm"] == "none":
                assert not followed
            elif kind in ("resnet32", "vgg16", "mlp") or norms.get("scale_invariant"):
                assert followed == hidden
            else:
                assert followed == {name for name in hidden if name.endswith("conv1.weight")}
            normed = {name.rpartition(".")[0] for name, _ in classifier(kind, **norms).named_buffers()}
            assert {t.followed_by for t in table.values() if t.followed_by} <= normed


def test_masks_by_kind() -> None:
    """Breaks if conv decays another tensor than the convolutions, last another than the last layer's matrix, one of them decays
    a gain or a bias, or a mask that a model has no tensor for is taken."""
    optim = {mask: Optim(lr=0.1, weight_decay=0.2, decay_mask=mask) for mask in ("conv", "last", "matmul")}
    for kind in KINDS:
        table = tensor_table(config_of(kind))
        decayed = {mask: set(decay_groups(table, optim[mask])["decayed"][0]) for mask in ("last", "matmul")}
        assert decayed["last"] == {"head.weight"}
        if kind == "mlp":
            with pytest.raises(
                InputError, match="decay_mask conv: the model has no convolution; it has hidden, head; use matmul"
            ):
                decay_groups(table, optim["conv"])
            continue
        conv = set(decay_groups(table, optim["conv"])["decayed"][0])
        assert conv == {name for name, tensor in table.items() if len(tensor.shape) == 4}
        assert conv | decayed["last"] == decayed["matmul"]
        assert math.isclose(decay_groups(table, optim["conv"])["decayed"][1], 0.2)
    frozen = tensor_table(config_of("resnet18", batchnorm="plain", scale_invariant=True))
    gpt = {"n_layer": 1, "n_head": 1, "n_embd": 8, "seq_len": 8, "vocab_size": 16}
    tied, untied = (tensor_table(Model(**gpt, tied_head=is_tied)) for is_tied in (True, False))
    for table, mask, words in (
        (tied, "conv", "no convolution; it has embedding, position, attn.qkv"),
        (tied, "last", "no last layer of its own that is trained: a tied head is the embedding"),
        (frozen, "last", "a scale-invariant network's is frozen"),
    ):
        with pytest.raises(InputError, match=words):
            decay_groups(table, optim[mask])
    assert decay_groups(untied, optim["last"])["decayed"][0] == ["head.weight"]
