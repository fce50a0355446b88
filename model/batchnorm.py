"""Batch normalisation whose running statistics move with the update, and not in the forward pass.

In training a layer normalises by its batch, and notes the batch's mean and unbiased variance. After an applied update the engine
folds the notes of all micro-steps and ranks, in one order, into the running buffers, by torch's rule. So all ranks have the same
buffers, an update that is left out moves none, and a resumed run continues them exactly.

Shapes: B images, C channels or features, F the numbers of one note: of each layer, in the network's order, C means and C variances.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from configs.errors import InputError

MOMENTUM, EPS = 0.1, 1e-5  # torch's defaults, and P1's
Batch = TypeVar("Batch")


class BatchNorm(nn.Module):
    """nn.BatchNorm1d and nn.BatchNorm2d in one: inputs (B, C) or (B, C, H, W), but for when the running buffers move.

    `affine`: with a gain and a bias for each channel. After a forward pass in training, `note` is the batch's (2, C).
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, affine: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.note: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """In float32 whatever comes in, also under autocast, as LayerNorm is.

        A convolution's bfloat16 outputs have three digits. Statistics in bfloat16 would lose the third, a note of 1 % of a running
        mean would round away in it, and not every device has a kernel for bfloat16 inputs beside float32 statistics.
        """
        x = x.to(torch.promote_types(x.dtype, self.running_mean.dtype))
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, EPS)
        if x.numel() == x.shape[1]:
            raise InputError(
                "batch normalisation in training, of one value per channel: its variance is not defined; use a micro-batch of at "
                "least 2 images"
            )
        # torch's own kernel writes the batch's statistics into "running" buffers. At momentum 1 nothing is left of what they held.
        note = torch.zeros(2, x.shape[1], device=x.device, dtype=x.dtype)
        y = F.batch_norm(x, note[0], note[1], self.weight, self.bias, True, 1.0, EPS)
        self.note = note
        return y


def batch_norm(channels: int, kind: str) -> nn.Module:
    """A layer of `model.batchnorm`: affine, plain, or none, which lets its input through."""
    return nn.Identity() if kind == "none" else BatchNorm(channels, kind == "affine")


class Statistics:
    """The notes and the running buffers of all batch normalisations of a network; of a network without them, nothing.

    Notes are added one after another, a forward pass each, until they are taken or dropped.
    """

    def __init__(self, network: nn.Module) -> None:
        named = {name: module for name, module in network.named_modules() if isinstance(module, BatchNorm)}
        self.layers: dict[str, BatchNorm] = named
        self.notes: list[Tensor] = []
        self._is_mean: Tensor | None = None

    def add(self) -> None:
        """Keep the note of the forward pass that has just ended, float32 (F,)."""
        if self.layers:
            self.notes.append(torch.cat([_taken(layer).flatten() for layer in self.layers.values()]))

    def take(self) -> Tensor:
        """The notes since the last time, oldest first, float32 (notes, F); they are forgotten here."""
        notes, self.notes = self.notes, []
        return torch.stack(notes) if notes else torch.empty(0, self.size)

    def drop(self) -> None:
        """Forget the notes: those of an update that is left out, or of a forward pass that was no training."""
        self.notes = []

    @torch.no_grad()
    def fold(self, notes: Tensor, weights: Sequence[float] | None = None) -> None:
        """running ← (1 − weight)·running + weight·note, for notes (n, F) in order; torch's weight is 0.1 for each.

        As torch's kernel on a CPU rounds: of a mean both products and the sum, of a variance only running's product and the sum (a
        fused multiply-add, which a product and a sum in float64 are). So the buffers are the same bits.
        """
        running = self._flat()
        is_mean = self._mask_of_means(running)
        for i, note in enumerate(notes.to(running.device)):
            weight = running.new_tensor(MOMENTUM if weights is None else weights[i])
            rest = running.new_tensor(1 - (MOMENTUM if weights is None else weights[i])) * running
            variances = (weight.double() * note.double() + rest.double()).to(running.dtype)
            running = torch.where(is_mean, weight * note + rest, variances)
        self._write(running)

    def read(self) -> dict[str, Tensor]:
        """Copies of the running buffers by their names in the network."""
        return {name: buffer.clone() for name, buffer in self._buffers()}

    @torch.no_grad()
    def set(self, buffers: Mapping[str, Tensor]) -> None:
        """Set the running buffers by name, all of them. ValueError where names or shapes are not the network's."""
        own = dict(self._buffers())
        theirs = {name: tuple(tensor.shape) for name, tensor in buffers.items()}
        if theirs != {name: tuple(tensor.shape) for name, tensor in own.items()}:
            raise ValueError(f"running statistics of {sorted(theirs)[:4]}…, the network has {sorted(own)[:4]}…")
        for name, buffer in own.items():
            buffer.copy_(buffers[name])

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        """Within, the buffers may become those of other weights; at the end they are as before, and notes of within are gone."""
        before, (notes, self.notes) = self.read(), (self.notes, [])
        try:
            yield
        finally:
            self.set(before)
            self.notes = notes

    @torch.no_grad()
    def re_estimate(
        self,
        forward: Callable[[Batch], int],
        batches: Iterable[Batch],
        gather: Callable[[Tensor], Tensor] = lambda notes: notes,
    ) -> None:
        """Set the buffers to the averages over batches of images, for weights that were not trained: those of an average (P1).

        `forward` takes a batch through the network, which is in training mode, and says how many images it has. A note of b images
        after n others has weight b / (n + b), as P1 takes it. That is the mean of the batches' variances: what lies between the
        batches' means is in none of them. `gather`: the notes of one batch on all ranks, (1, F) → (ranks, F), where every rank has
        b images of its own.
        """
        (kept, self.notes), seen = (self.notes, []), 0
        try:
            for batch in batches:
                b = forward(batch)
                notes = gather(self.take())
                self.fold(notes, [b / (seen + (i + 1) * b) for i in range(len(notes))])
                seen += b * len(notes)
        finally:
            self.notes = kept

    @property
    def size(self) -> int:
        """F"""
        return sum(2 * len(layer.running_mean) for layer in self.layers.values())

    def _buffers(self) -> Iterator[tuple[str, Tensor]]:
        for name, layer in self.layers.items():
            for kind, buffer in layer.named_buffers():
                yield f"{name}.{kind}", buffer

    def _flat(self) -> Tensor:
        buffers = [buffer for _, buffer in self._buffers()]
        return torch.cat(buffers) if buffers else torch.empty(0)

    def _mask_of_means(self, flat: Tensor) -> Tensor:
        """Which numbers of `flat` are means, bool; made once for a device, since it is asked for in every update."""
        if self._is_mean is None or self._is_mean.device != flat.device:
            parts = [torch.full_like(buffer, "mean" in name) for name, buffer in self._buffers()]
            self._is_mean = torch.cat(parts or [flat]) > 0
        return self._is_mean

    def _write(self, flat: Tensor) -> None:
        buffers = [buffer for _, buffer in self._buffers()]
        for buffer, piece in zip(buffers, flat.split([len(buffer) for buffer in buffers]), strict=True):
            buffer.copy_(piece)


def _taken(layer: BatchNorm) -> Tensor:
    """A layer's note, which it no longer has: so that none is counted twice."""
    note, layer.note = layer.note, None
    assert note is not None, "a batch normalisation that the forward pass did not come to"
    return note
