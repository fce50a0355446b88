"""A classifier as a function of its trainable parameters, all else fixed: what the measures of a run's weights differentiate.

Shapes: B examples, K logits, P trainable parameters in all. The network is in eval mode: a BatchNorm normalises by its
buffers, which are constants here. In training mode it mixes the examples of a batch, and then no example has a gradient, or a
Jacobian, of its own. A buffer has no derivative; nor has a parameter that does not require a gradient (a frozen last layer).
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

Batches = Sequence[tuple[Tensor, Tensor]]  # (inputs (B, …), targets (B,) of classes), read anew by every pass
Parameters = dict[str, Tensor]
JACOBIAN, TRACE, TOP, INPUT = range(4)  # who draws signs: no two measures of one seed draw the same
AT_ONCE = 2**27  # numbers of gradients that are held together: 512 MiB in float32, activations not counted


class _Logits(nn.Module):
    """`logits` as forward: functional_call can call nothing else."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor, seen: bool = False) -> Tensor:
        """`seen`: the inputs are those of Frozen.seen."""
        with _AnyOrder():
            name = "logits_of_normalised" if seen else "logits"
            return getattr(self.model, name, self.model)(inputs)


class _AnyOrder(TorchFunctionMode):
    """Networks ask for channels_last for speed alone, and vmap (torch 2.13) has no such order: it is not obeyed here."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is Tensor.contiguous:
            return args[0].contiguous()
        return function(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Frozen:
    """`parameters`: the trainable ones by name, detached; a shared tensor stands once. Made by `freeze`."""

    network: nn.Module
    parameters: Parameters

    @property
    def size(self) -> int:
        """P"""
        return sum(parameter.numel() for parameter in self.parameters.values())

    @property
    def device(self) -> torch.device:
        return next(iter(self.parameters.values())).device

    @property
    def dtype(self) -> torch.dtype:
        return next(iter(self.parameters.values())).dtype

    def logits(self, parameters: Parameters, inputs: Tensor) -> Tensor:
        """(B, …) → (B, K)"""
        return functional_call(self.network, {f"model.{name}": p for name, p in parameters.items()}, (inputs,))

    def seen(self, inputs: Tensor) -> Tensor:
        """What the network's first layer meets: pixels normalised by channel, other inputs as they are."""
        return getattr(self.network.get_submodule("model"), "normalised", lambda x: x)(inputs)

    def logits_of_seen(self, parameters: Parameters, inputs: Tensor) -> Tensor:
        """`logits` of inputs as `seen` gives them."""
        named = {f"model.{name}": p for name, p in parameters.items()}
        return functional_call(self.network, named, (inputs,), {"seen": True})

    def losses(self, parameters: Parameters, inputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of each example, (B,), in nats."""
        return F.cross_entropy(self.logits(parameters, inputs), targets, reduction="none")

    def classes(self, batches: Batches) -> int:
        """K"""
        return self.logits(self.parameters, self.placed(batches[0][0][:1])).shape[-1]

    def placed(self, inputs: Tensor) -> Tensor:
        """On the device; numbers with a point in the dtype, pixels as they are (the network turns them into numbers)."""
        return inputs.to(self.device, self.dtype if inputs.is_floating_point() else None)

    def flat(self, parameters: Parameters) -> Tensor:
        """(P,), in the order of `parameters`."""
        return torch.cat([parameters[name].reshape(-1) for name in self.parameters])

    def unflat(self, vector: Tensor) -> Parameters:
        """The inverse of `flat`."""
        pieces = vector.split([parameter.numel() for parameter in self.parameters.values()])
        return {name: piece.view_as(p) for (name, p), piece in zip(self.parameters.items(), pieces, strict=True)}


def freeze(model: nn.Module, dtype: torch.dtype = torch.float32) -> Frozen:
    """A copy of the model in eval mode and in `dtype`, on the model's device, without autocast.

    Measures are differences of large sums, so the run's own bfloat16 products would hide them. Float64 takes twice the memory; on a
    GPU several times as long.
    """
    assert dtype in (torch.float32, torch.float64)
    # Neither vmap nor a second derivative goes through compiled code.
    assert not getattr(model, "compiled", False), "measure a model that is not compiled"
    model = copy.deepcopy(model).to(dtype).eval()
    if hasattr(model, "autocast"):
        model.autocast = None
    parameters = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    assert parameters, "the model has no trainable parameter"
    return Frozen(_Logits(model), parameters)


def chunks(
    network: Frozen, batches: Batches, at_once: int, title: str, progress: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """The examples in order, at most `at_once` together, on the network's device, with a bar over them."""
    with bar(title, sum(len(inputs) for inputs, _ in batches), " examples", progress) as shown:
        for inputs, targets in batches:
            for some, theirs in zip(inputs.split(at_once), targets.split(at_once), strict=True):
                yield network.placed(some), theirs.to(network.device)
                shown.update(len(some))


def bar(title: str, total: int, unit: str, progress: bool) -> tqdm:
    """As elsewhere: often on a terminal, seldom in a log."""
    interval = 0.5 if sys.stderr.isatty() else 30
    return tqdm(total=total, desc=title, unit=unit, disable=not progress, mininterval=interval, leave=False)


def square_sum(parameters: Parameters) -> Tensor:
    """Σ of squares over all of them, float64 scalar. By sums of squares: torch's float32 norm is too small over many elements."""
    return torch.stack([p.square().sum().double() for p in parameters.values()]).sum()


def signs(count: int, seed: int, who: int, first: int, second: int = 0) -> Tensor:
    """Random ±1, (count,) float32 on the CPU: a pure function of the seed, who draws, and the two numbers of the draw.

    Philox (Salmon et al., SC 2011): the seed is its key, the draw the upper words of its counter, whose lowest one counts the bits.
    """
    generator = np.random.Philox(key=[seed, 0], counter=[0, second, first, who])
    words = np.atleast_1d(generator.random_raw((count + 63) // 64)).astype("<u8")
    bits = np.unpackbits(words.view(np.uint8), count=count, bitorder="little")
    return torch.from_numpy(bits).float().mul_(2).sub_(1)
