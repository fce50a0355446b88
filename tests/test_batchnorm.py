"""Batch normalisation is torch's: the same outputs, gradients and running buffers, though the buffers move by the update."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from configs.errors import InputError
from configs.images import ImageModel
from model.batchnorm import BatchNorm, Statistics, batch_norm
from model.classifier import Classifier

SHAPES = [(16, 6, 5, 7), (16, 6)]  # images, and features
FORMATS = [torch.contiguous_format, torch.channels_last]


def batches(shape: tuple[int, ...], count: int, seed: int = 0) -> list[Tensor]:
    """Channels of different sizes, so that no statistic is near its start."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.arange(1, shape[1] + 1).view(-1, *[1] * (len(shape) - 2))
    return [torch.randn(shape, generator=generator) * scale + scale for _ in range(count)]


def pair(shape: tuple[int, ...], affine: bool = True) -> tuple[BatchNorm, nn.Module]:
    """Ours and torch's, with the same gains and biases."""
    ours, theirs = (
        BatchNorm(shape[1], affine),
        (nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d)(shape[1], affine=affine),
    )
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        a.data.copy_(torch.linspace(0.5, 2, shape[1]))
        b.data.copy_(a)
    return ours, theirs


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_is_torchs_bit_for_bit(shape: tuple[int, ...], affine: bool, memory_format: torch.memory_format) -> None:
    """Breaks if one micro-batch on one rank leaves other buffers than torch's layer, or another output or gradient, by a bit."""
    ours, theirs = pair(shape, affine)
    statistics = Statistics(ours)
    for x in batches(shape, 20):
        if len(shape) == 4:
            x = x.contiguous(memory_format=memory_format)
        inputs = [x.clone().requires_grad_() for _ in range(2)]
        outputs = [layer(x) for layer, x in zip((ours, theirs), inputs, strict=True)]
        assert torch.equal(*outputs)
        for output in outputs:
            (output**3).sum().backward()
        assert torch.equal(inputs[0].grad, inputs[1].grad)
        statistics.add()
        statistics.fold(statistics.take())
        assert torch.equal(ours.running_mean, theirs.running_mean)
        assert torch.equal(ours.running_var, theirs.running_var)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    ours.eval(), theirs.eval()
    x = batches(shape, 1, seed=1)[0]
    assert torch.equal(ours(x), theirs(x))


def test_forward_moves_no_buffer_and_notes_in_order() -> None:
    """Breaks if a forward pass moves the buffers, evaluation leaves a note, or notes are mixed up among layers or passes."""
    network = nn.Sequential(BatchNorm(3), nn.Conv2d(3, 5, 1), BatchNorm(5, affine=False))
    statistics, seen = Statistics(network), []
    before = statistics.read()
    for x in batches((8, 3, 4, 4), 3):
        hidden = network[1](network[0](x))
        network(x)
        statistics.add()
        seen.append(torch.cat([x.mean((0, 2, 3)), x.var((0, 2, 3)), hidden.mean((0, 2, 3)), hidden.var((0, 2, 3))]))
    assert all(torch.equal(before[name], buffer) for name, buffer in statistics.read().items())
    notes = statistics.take()
    assert notes.shape == (3, statistics.size) == (3, 16)
    torch.testing.assert_close(notes.float(), torch.stack(seen), rtol=1e-5, atol=1e-6)
    assert len(statistics.take()) == 0, "taken twice"
    network.eval()
    network(batches((8, 3, 4, 4), 1)[0])
    assert network[0].note is None
    assert list(before) == ["0.running_mean", "0.running_var", "2.running_mean", "2.running_var"]


def test_order_of_ranks_and_micro_steps_decides_and_nothing_else() -> None:
    """Breaks if the buffers depend on which rank noted a batch, or if folding in pieces differs from folding at once."""
    layers = [BatchNorm(4) for _ in range(3)]
    one, two, other = map(Statistics, layers)
    data = batches((8, 4, 3, 3), 8)
    for x in data:
        layers[0](x)
        one.add()
    notes = one.take()
    one.fold(notes)
    # Two ranks of four micro-steps each: their notes, (ranks, micro-steps, F), in the order of global micro-steps.
    ranks = torch.stack([notes[0::2], notes[1::2]])
    two.fold(ranks.transpose(0, 1).flatten(0, 1)[:3])
    two.fold(ranks.transpose(0, 1).flatten(0, 1)[3:])
    other.fold(notes.flip(0))
    assert torch.equal(layers[0].running_var, layers[1].running_var)
    assert not torch.equal(layers[0].running_var, layers[2].running_var)


def test_dropped_notes_leave_no_trace() -> None:
    """Breaks if an update that is left out moves the buffers later."""
    layer, again = BatchNorm(4), BatchNorm(4)
    statistics, other = Statistics(layer), Statistics(again)
    bad, good = batches((8, 4), 2)
    layer(bad)
    statistics.add()
    statistics.drop()
    for one, own in ((layer, statistics), (again, other)):
        one(good)
        own.add()
        own.fold(own.take())
    assert torch.equal(layer.running_mean, again.running_mean)


def test_a_batch_that_is_not_finite_spoils_no_later_note() -> None:
    """Breaks if a note keeps something of the one before it."""
    layer, x = BatchNorm(4), batches((8, 4), 1)[0]
    layer(torch.full_like(x, torch.nan))
    layer(x)
    torch.testing.assert_close(layer.note[0].float(), x.mean(0))


@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1, 1)])
def test_one_value_per_channel_is_refused(shape: tuple[int, ...]) -> None:
    """Breaks if a micro-batch of one image trains on outputs that are all zero; evaluation needs no batch."""
    layer = BatchNorm(3)
    with pytest.raises(InputError, match="micro-batch of at least 2"):
        layer(torch.ones(shape))
    assert torch.isfinite(layer.eval()(torch.ones(shape))).all()


def test_normalises_in_float32_under_autocast() -> None:
    """Breaks if bf16-mixed rounds outputs, statistics or buffers to bfloat16: a note of 0.1 % would be lost in them."""
    layer, x = BatchNorm(6), batches((16, 6, 5, 5), 1)[0].bfloat16()
    statistics = Statistics(layer)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    statistics.add()
    statistics.fold(statistics.take())
    assert y.dtype == layer.running_mean.dtype == torch.float32
    torch.testing.assert_close(
        y, (x.float() - x.float().mean((0, 2, 3), True)) / x.float().std((0, 2, 3), keepdim=True), rtol=1e-2, atol=1e-2
    )
    torch.testing.assert_close(layer.running_mean, 0.1 * x.float().mean((0, 2, 3)), rtol=1e-5, atol=1e-6)


def test_buffers_are_read_and_set_by_name() -> None:
    """Breaks if a checkpoint's buffers reach another layer, or if some are left out without a word."""
    source, target = (nn.ModuleDict({"a": BatchNorm(2), "b": nn.Sequential(BatchNorm(2, False))}) for _ in range(2))
    for i, (_, buffer) in enumerate(source.named_buffers()):
        buffer.fill_(float(i))
    saved = Statistics(source).read()
    Statistics(target).set(dict(reversed(saved.items())))
    assert all(torch.equal(a, b) for a, b in zip(source.buffers(), target.buffers(), strict=True))
    source["a"].running_mean.fill_(9.0)
    assert saved["a.running_mean"].tolist() == [0.0, 0.0], "a view, not a copy"
    del saved["b.0.running_var"]
    with pytest.raises(ValueError, match="running statistics"):
        Statistics(target).set(saved)


def test_none_is_nothing() -> None:
    """Breaks if a network without batch normalisation needs to be treated differently by who asks for its statistics."""
    network = nn.Sequential(nn.Linear(2, 2), batch_norm(2, "none"))
    statistics = Statistics(network)
    network(torch.ones(1, 2))
    statistics.add()
    notes = statistics.take()
    assert (notes.shape, statistics.read(), statistics.size) == ((0, 0), {}, 0)
    statistics.fold(notes)
    statistics.set({})


def torch_copy(model: Classifier) -> nn.Module:
    """The same network with nn.BatchNorm in place of ours."""
    twin = copy.deepcopy(model)
    for name, layer in list(twin.statistics.layers.items()):
        parent, _, own = name.rpartition(".")
        theirs = nn.BatchNorm2d(len(layer.running_mean), affine=layer.weight is not None)
        theirs.load_state_dict(layer.state_dict(), strict=False)
        setattr(twin.get_submodule(parent), own, theirs)
    twin.statistics = Statistics(twin)
    return twin


def test_re_estimation_is_p1s() -> None:
    """Breaks if the statistics of averaged weights are not P1's running average over one pass, with weight b/(n+b).

    The reference resets torch's own layers and sets their momentum before each batch, the last one smaller.
    """
    config = ImageModel(kind="resnet18", width=2, image_size=8, channels=1, classes=3)
    model = Classifier(config, [0.4], [0.2])
    model.init_weights(0)
    images = torch.randint(0, 256, (22, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    twin, n = torch_copy(model), 0
    layers = [module for module in twin.modules() if isinstance(module, nn.BatchNorm2d)]
    for layer in layers:
        layer.running_mean.fill_(7.0)  # what was there does not matter: the first weight is 1
    twin.train()
    for some in images.split(8):
        for layer in layers:
            layer.momentum = len(some) / (n + len(some))
        twin.logits(some)
        n += len(some)
    model.eval()
    model.re_estimate(images.split(8))
    assert not model.training
    assert not model.statistics.notes
    theirs = {name: buffer for name, buffer in twin.named_buffers() if "running" in name}
    for name, buffer in model.statistics.read().items():
        assert torch.equal(buffer, theirs[name]), name


def test_re_estimation_over_ranks_and_back() -> None:
    """Breaks if re-estimation by two ranks differs from one rank that reads the same batches, or the iterate's buffers are lost."""
    config = ImageModel(kind="mlp", width=4, image_size=4, channels=1, classes=3)
    model = Classifier(config, [0.4], [0.2])
    model.init_weights(0)
    images = torch.randint(0, 256, (32, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before, model.statistics.notes = model.statistics.read(), [torch.ones(model.statistics.size)]
    with model.statistics.set_aside():
        model.re_estimate(images.split(8))
        alone = model.statistics.read()
    assert all(torch.equal(before[name], buffer) for name, buffer in model.statistics.read().items())
    assert len(model.statistics.notes) == 1, "notes of the update under way"
    # Rank 0 reads batches 0 and 2; the notes of rank 1, which reads 1 and 3, are taken from a network like it.
    twin, others = copy.deepcopy(model), iter(images.split(8)[1::2])
    twin.train()

    def gather(notes: Tensor) -> Tensor:
        twin.statistics.drop()
        twin.logits(next(others))
        return torch.cat([notes, twin.statistics.take()])

    model.re_estimate(images.split(8)[0::2], gather)
    assert all(torch.equal(alone[name], buffer) for name, buffer in model.statistics.read().items())
