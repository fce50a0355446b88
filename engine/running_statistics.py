"""The running statistics of batch normalisation over a run's updates and ranks (model/batchnorm.py). Collective.

Shapes: M micro-steps of a rank, F the numbers of one note (a forward pass in training).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from data.loader import EvalBatch


class RunningStatistics:
    """Of a network without batch normalisation, nothing: every verb then does nothing."""

    def __init__(self, ds: Any) -> None:
        """`ds`: a DeepSpeed engine."""
        self._ds = ds
        statistics = getattr(ds.module, "statistics", None)
        self._of_network = statistics if statistics is not None and statistics.layers else None

    @property
    def are_kept(self) -> bool:
        """Whether the network has batch normalisation."""
        return self._of_network is not None

    def move(self) -> None:
        """Move them on by this update's micro-batches.

        All ranks' are folded in, in the order of global micro-steps, so that every rank has the same ones, and the number of ranks
        changes no bit.
        """
        if self._of_network is not None:
            self._of_network.fold(_of_all_ranks(self._of_network.take()))

    def scale(self, factors: dict[str, float]) -> None:
        """Scale those of a normalisation, by its name, as its inputs were scaled: means by the factor, variances by its square."""
        for name, factor in factors.items() if self._of_network is not None else ():
            if (layer := self._of_network.layers.get(name)) is not None:
                layer.running_mean.mul_(factor)
                layer.running_var.mul_(factor**2)

    def drop(self) -> None:
        """Forget the micro-batches of an update that is none."""
        if self._of_network is not None:
            self._of_network.drop()

    @contextmanager
    def re_estimated(self, batches: Iterable[EvalBatch]) -> Iterator[None]:
        """Within, they are those of the weights as they stand, over `batches` of training images, whole ones.

        For an average of weights, which was never trained (P1): a batch of b images after n others has weight b/(n + b).
        """
        if self._of_network is None:
            yield
            return
        with self._of_network.set_aside():
            self._ds.train()
            self._of_network.re_estimate(self._forward, batches, _of_all_ranks)
            yield

    def _forward(self, batch: EvalBatch) -> int:
        inputs, targets = (torch.from_numpy(half).to(self._ds.device) for half in (batch.inputs, batch.targets))
        self._ds(inputs, targets)
        return len(inputs)


def _of_all_ranks(notes: Tensor) -> Tensor:
    """Notes (M, F) of every rank → (M·ranks, F), micro-step m of rank r at m·ranks + r.

    One rank alone has them all, and need not wake gloo's thread for it, which took 7 % of a small network's update.
    """
    if dist.get_world_size() == 1:
        return notes
    gathered = [torch.empty_like(notes) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, notes)
    return torch.stack(gathered, 1).flatten(0, 1)
