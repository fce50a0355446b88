"""The networks for images: equal to a reference written differently, to published counts, and to the tensor table."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from configs.cost import n_parameters
from configs.image_cost import flops_per_image
from configs.image_tensors import STAGES, block_shapes
from configs.images import ImageModel
from configs.tensors import is_hidden_matrix, is_normalised, tensor_table
from model.classifier import Classifier, FrozenLinear

pytestmark = pytest.mark.slow  # by its length alone: `make check` takes a minute

KINDS = ["resnet18", "resnet34", "resnet32", "vgg16", "mlp"]
NORMS: list[dict[str, Any]] = [
    {"batchnorm": "affine"},
    {"batchnorm": "plain"},
    {"batchnorm": "none"},
    {"batchnorm": "plain", "scale_invariant": True},
]

CASES = [(kind, norms) for kind in KINDS for norms in NORMS]
CASES += [("vgg16", {"batchnorm": norm, "hidden_layers": 2}) for norm in ("none", "affine")]


def config_of(kind: str, **fields: Any) -> ImageModel:
    return ImageModel.model_validate({"kind": kind, "width": 4, "image_size": 12, "channels": 2, "classes": 5} | fields)


def classifier(kind: str, autocast: torch.dtype | None = None, **fields: Any) -> Classifier:
    """A small network away from its first weights and statistics, so that each of them matters."""
    config = config_of(kind, **fields)
    model = Classifier(config, [0.47, 0.35][: config.channels], [0.23, 0.27][: config.channels], autocast)
    model.init_weights(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.dim() == 1:
                tensor += 0.3 * torch.rand(tensor.shape, generator=generator)
        # Near those of the images: by means of 0 and variances of 1 nothing passes the last ReLU of a deep network.
        model.re_estimate([images_of(config)[0]])
        model.statistics.set(
            {n: b * (0.8 + 0.4 * torch.rand(b.shape, generator=generator)) for n, b in model.statistics.read().items()}
        )
    return model


def images_of(config: ImageModel, count: int = 6) -> tuple[Tensor, Tensor]:
    generator, size = torch.Generator().manual_seed(2), config.image_size
    shape = (count, config.channels, size, size)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return pixels, torch.randint(0, config.classes, (count,), generator=generator)


def reference(model: Classifier, pixels: Tensor) -> Tensor:
    """The logits by unfolded matrix products and sums, from the state's tensors alone."""
    state, config = {**dict(model.named_parameters()), **dict(model.named_buffers())}, model.config

    def conv(name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight, bias = state[f"{name}.weight"], state.get(f"{name}.bias")
        kernel, size = weight.shape[-1], -(-x.shape[-1] // stride)
        columns = F.unfold(x, kernel, padding=kernel // 2, stride=stride)  # (B, C_in·k·k, positions)
        y = torch.einsum("oi,bip->bop", weight.flatten(1), columns)
        return (y if bias is None else y + bias[:, None]).view(len(x), -1, size, size)

    def norm(name: str, x: Tensor) -> Tensor:
        if f"{name}.running_mean" not in state:
            return x
        axes, shape = (0, 2, 3)[: 1 if x.dim() == 2 else 3], (1, -1, *[1] * (x.dim() - 2))
        mean, var = (state[f"{name}.{kind}"] for kind in ("running_mean", "running_var"))
        if model.training:
            mean, var = x.mean(axes), x.var(axes, unbiased=False)
        y = (x - mean.view(shape)) / (var.view(shape) + 1e-5).sqrt()
        gain, bias = state.get(f"{name}.weight"), state.get(f"{name}.bias")
        return y if gain is None else y * gain.view(shape) + bias.view(shape)

    x = torch.stack(
        [(pixels[:, c].float() / 255 - model.mean[c]) / model.deviation[c] for c in range(config.channels)], 1
    )
    if config.kind == "mlp":
        x = x.flatten(1)
        for i in range(config.depth):
            name = f"body.layers.{i}"
            x = x @ state[f"{name}.linear.weight"].T + state.get(f"{name}.linear.bias", torch.zeros(1))
            x = norm(f"{name}.norm", x).clamp(min=0)
    elif config.kind == "vgg16":
        for i in range(13):
            x = norm(f"body.layers.{i}.norm", conv(f"body.layers.{i}.conv", x)).clamp(min=0)
            if i in (1, 3, 6, 9, 12):  # padded by zeros, which no maximum of a ReLU's outputs sees
                odd = x.shape[-1] % 2
                x = F.pad(x, (0, odd, 0, odd)).unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5))
        x = x.flatten(1)
        for i in range(config.depth):
            x = (x @ state[f"body.hidden.{i}.weight"].T + state[f"body.hidden.{i}.bias"]).clamp(min=0)
    elif config.kind == "resnet32":
        x = norm("body.stem_norm", conv("body.stem", x)).clamp(min=0)
        for i in range(15):
            name, stride = f"body.blocks.{i}", 2 if i in (5, 10) else 1
            y = norm(f"{name}.norm1", conv(f"{name}.conv1", x, stride)).clamp(min=0)
            y = norm(f"{name}.norm2", conv(f"{name}.conv2", y))
            x = norm(f"{name}.shortcut_norm", conv(f"{name}.shortcut", x, stride)) if stride == 2 else x
            x = (x + y).clamp(min=0)
        x = x.flatten(2).mean(-1)
    else:
        starts = (2, 4, 6) if config.kind == "resnet18" else (3, 7, 13)
        x = norm("body.stem_norm", conv("body.stem", norm("body.input_norm", x)))
        for i in range(8 if config.kind == "resnet18" else 16):
            name, stride = f"body.blocks.{i}", 2 if i in starts else 1
            y = norm(f"{name}.norm1", x).clamp(min=0)
            x = norm(f"{name}.shortcut_norm", conv(f"{name}.shortcut", y, stride)) if stride == 2 else x
            y = norm(f"{name}.norm2", conv(f"{name}.conv1", y, stride)).clamp(min=0)
            x = x + norm(f"{name}.conv2_norm", conv(f"{name}.conv2", y))
        x = norm("body.norm", x).clamp(min=0).flatten(2).mean(-1)
    return x @ state["head.weight"].T + state["head.bias"]


@pytest.mark.parametrize(("kind", "norms"), CASES, ids=str)
def test_logits_are_the_references(kind: str, norms: dict[str, Any]) -> None:
    """Breaks if a network differs from its definition, in training or evaluation, or the loss from a mean over images."""
    model = classifier(kind, **norms)
    pixels, targets = images_of(model.config)
    with torch.no_grad():
        for training in (True, False):
            model.train(training)
            expected = reference(model, pixels)
            scale = expected.abs().max().item()  # those of a deep network may be large
            assert expected.std(0).min() > 0.003 * scale, "a network that tells no image from another shows nothing"
            torch.testing.assert_close(model.logits(pixels), expected, rtol=1e-4, atol=1e-5 * max(1.0, scale))
        losses = expected.logsumexp(-1) - expected[range(len(targets)), targets]
        torch.testing.assert_close(model(pixels, targets), losses.sum(), rtol=1e-5, atol=1e-4)
        by_target = model(pixels, targets, by_target=True)
        torch.testing.assert_close(by_target[:, 0], losses, rtol=1e-4, atol=1e-5 * max(1.0, scale))
        assert by_target[:, 1].tolist() == (expected.argmax(-1) != targets).float().tolist()
        seen = model(pixels, targets, statistics=True)
    wanted = [losses.sum(), expected.logsumexp(-1).sum(), by_target[:, 1].sum(), expected.max()]
    torch.testing.assert_close(seen, torch.stack(wanted).double(), rtol=1e-5, atol=1e-4)


def test_targets_that_do_not_count() -> None:
    """Breaks if an image that only fills a batch enters the loss or the error."""
    model = classifier("mlp").eval()
    pixels, targets = images_of(model.config)
    alone = model(pixels[:4], targets[:4])
    targets[4:] = -100
    torch.testing.assert_close(model(pixels, targets), alone)
    assert model(pixels, targets, by_target=True)[4:].tolist() == [[0.0, 0.0]] * 2
    torch.testing.assert_close(model(pixels, targets, statistics=True)[0].float(), alone)


@pytest.mark.parametrize(("kind", "norms"), CASES, ids=str)
def test_parameters_and_flops_are_those_of_the_table(kind: str, norms: dict[str, Any]) -> None:
    """Breaks if the plan counts other tensors than the network has, or other FLOPs than torch counts in its forward pass."""
    model = classifier(kind, **norms)
    live = [(name, tuple(p.shape)) for name, p in model.named_parameters()]
    table = tensor_table(model.config)
    assert live == [(name, tensor.shape) for name, tensor in table.items()]
    assert all(p.requires_grad for p in model.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.logits(images_of(model.config)[0])
    assert 3 * counter.get_total_flops() == 6 * flops_per_image(model.config)  # of 6 images
    normalised = {name for name, tensor in table.items() if is_normalised(tensor)}
    convolutions = {name for name, tensor in table.items() if is_hidden_matrix(tensor)}
    assert convolutions == {name for name, shape in live if len(shape) > 1 and name != "head.weight"}
    behind = {name for name in convolutions if name.startswith("body.hidden")}  # of VGG16: no normalisation reads them
    assert normalised == (set() if norms["batchnorm"] == "none" else convolutions - behind)


def convolutions_of(kind: str, w: int) -> int:
    """Weights of a ResNet's convolutions, from its definition: two of 3 × 3 a block, one of 1 × 1 where the width doubles."""
    total, d_in = 3 * w * 9, w
    for stage, blocks in enumerate(STAGES[kind]):
        d = w * 2**stage
        total += 9 * d_in * d + 9 * d * d * (2 * blocks - 1) + (d_in * d if stage else 0)
        d_in = d
    return total


def test_parameter_counts_are_the_published_ones() -> None:
    """Breaks if a network of width 64 for CIFAR-10 has other parameters than those that papers and their codes count.

    ResNet18 and 34 (11.17 and 21.28 million): kuangliu's pre-activation ResNet18 has 11,171,146; P1 adds a normalisation of the
    input (6) and one before the mean (1,024). VGG16 with one linear layer (14.7 million), ResNet32 × 4 (7.4 million).
    """
    assert convolutions_of("resnet18", 64) == 11_159_232
    of_norms = {kind: 2 * sum(a + b for a, b, _ in block_shapes(64, STAGES[kind])) for kind in ("resnet18", "resnet34")}
    head = 512 * 10 + 10
    assert convolutions_of("resnet18", 64) + of_norms["resnet18"] + head == 11_171_146
    vgg, d_in = 0, 3
    for d in [64, 64, 128, 128, *[256] * 3, *[512] * 6]:
        vgg, d_in = vgg + 9 * d_in * d, d
    channels = 2 * 64 + 2 * 128 + 3 * 256 + 6 * 512
    resnet32 = convolutions_of("resnet32", 64) + 256 * 10 + 10
    counts = {
        ("resnet18", "affine"): (11_171_146 + 1_024 + 6, 11_172_176),
        ("resnet18", "plain"): (convolutions_of("resnet18", 64) + head, 11_164_362),
        ("resnet34", "affine"): (convolutions_of("resnet34", 64) + of_norms["resnet34"] + 1_024 + 6 + head, 21_280_336),
        ("vgg16", "none"): (vgg + channels + head, 14_719_818),
        ("vgg16", "affine"): (vgg + 2 * channels + head, 14_724_042),
        ("vgg16", "plain"): (vgg + head, 14_715_594),
        ("resnet32", "plain"): (resnet32, 7_418_058),
    }
    for (kind, batchnorm), (formula, count) in counts.items():
        config = config_of(kind, width=64, image_size=32, channels=3, classes=10, batchnorm=batchnorm)
        assert n_parameters(config) == formula == count, (kind, batchnorm)
    # P1's VGG16: two more linear layers of 512 units
    three = config_of("vgg16", width=64, image_size=32, channels=3, classes=10, batchnorm="none", hidden_layers=2)
    assert n_parameters(three) == vgg + channels + head + 2 * (512 * 512 + 512) == 15_245_130


@pytest.mark.parametrize("kind", KINDS)
def test_scale_invariant(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if some layer's norm changes the outputs, its gradient at a times the norm is not 1/a as large, or the head learns.

    In float64 and with an ε of 1e-14: beside the variance of small outputs its 1e-5 is seen (1 % of the first layer's gradient).
    """
    monkeypatch.setattr("model.batchnorm.EPS", 1e-14)
    model = classifier(kind, batchnorm="plain", scale_invariant=True, image_size=16, width=8).double()
    (pixels, targets), a = images_of(model.config, 16), 32.0
    assert isinstance(model.head, FrozenLinear)
    assert not any(name.startswith("head") for name, _ in model.named_parameters())

    def measured() -> tuple[Tensor, dict[str, Tensor]]:
        logits = model.logits(pixels)
        gradients = torch.autograd.grad(F.cross_entropy(logits, targets), list(model.parameters()))
        return logits.detach(), dict(zip((name for name, _ in model.named_parameters()), gradients, strict=True))

    logits, gradients = measured()
    for name, parameter in model.named_parameters():
        before = parameter.detach().clone()
        parameter.data = before * a
        scaled, others = measured()
        torch.testing.assert_close(scaled, logits, rtol=0, atol=1e-5)
        relative = (others[name] * a - gradients[name]).norm() / gradients[name].norm()
        assert relative < 1e-5, (name, relative)
        parameter.data = before
        radial = (gradients[name] * before).sum() / (gradients[name].norm() * before.norm())
        assert abs(radial) < 1e-6, name


@pytest.mark.parametrize("kind", ["resnet18", "vgg16", "mlp"])
def test_init_is_hes_and_of_the_seed(kind: str) -> None:
    """Breaks if the seed does not decide every weight, a frozen head's too, or their scale is not what the docstring says."""
    fields = {"width": 32, "batchnorm": "plain"}
    made = [
        Classifier(config_of(kind, **fields, scale_invariant=frozen), [0.0] * 2, [1.0] * 2)
        for frozen in (False, True, True)
    ]
    for model, seed in zip(made, (0, 0, 1), strict=True):
        model.init_weights(seed)
    trained, frozen, other = ({**dict(m.named_parameters()), **dict(m.head.named_buffers(prefix="head"))} for m in made)
    assert all(torch.equal(trained[name], tensor) for name, tensor in frozen.items()), "the head moves the draws"
    assert not torch.equal(frozen["head.weight"], other["head.weight"])
    assert not frozen["head.weight"].requires_grad
    for name, tensor in trained.items():
        if tensor.numel() > 2000:
            d_in = math.prod(tensor.shape[1:])
            variance = 1 / (3 * d_in) if name == "head.weight" else 2 / d_in
            assert tensor.var().item() == pytest.approx(variance, rel=5 / math.sqrt(tensor.numel() / 2)), name
    assert not frozen["head.bias"].any()


def test_autocast_is_inside_forward() -> None:
    """Breaks if bf16-mixed convolves in float32, normalises in bfloat16, or changes the weights' dtype."""
    seen: list[torch.dtype] = []
    model = classifier("resnet18", autocast=torch.bfloat16)
    for module in (model.body.blocks[0].conv1, model.body.blocks[0].norm2, model.head):
        module.register_forward_hook(lambda _m, _i, out: seen.append(out.dtype))
    loss = model(*images_of(model.config))
    loss.backward()
    assert (loss.dtype, seen) == (torch.float32, [torch.bfloat16, torch.float32, torch.bfloat16])
    assert {p.dtype for p in model.parameters()} | {p.grad.dtype for p in model.parameters()} == {torch.float32}


def test_training_notes_one_batch_and_evaluation_none() -> None:
    """Breaks if a forward pass in training is noted twice or not at all, or evaluation or the example moves statistics."""
    model = classifier("resnet18")
    pixels, targets = images_of(model.config)
    model(pixels, targets)
    model(pixels, targets)
    assert model.statistics.take().shape == (2, model.statistics.size)
    model.eval()
    model(*model.example(torch.device("cpu")))
    assert not model.statistics.notes
