"""Which images an update reads: a pure function of (seed, update, batch), an epoch at a time.

Each epoch has its own keyed permutation of all images, cut into batches; what is left at its end fills no batch and is dropped,
as P1 does. Nothing here knows of ranks or micro-batches, so they cannot change it.
"""

from __future__ import annotations

import numpy as np

from configs.errors import InputError
from data.order import BLOCK, Ids, Permutation


class ImageOrder:
    """The sequence of images of a run: `epochs` passes over `images` images, in batches that no two epochs share."""

    def __init__(self, images: int, batch: int, epochs: int, seed: int, first: int = 0) -> None:
        """`first`: the position (epoch·images + place within the epoch) where the run begins, beyond 0 for a branch that reads on.

        InputError for a batch that no epoch fills.
        """
        if not 1 <= batch <= images:
            raise InputError(
                f"a batch of {batch} images, and the training split has {images}; at most {images} are possible"
            )
        self.images, self.batch, self.epochs, self.seed = images, batch, epochs, seed
        self.per_epoch = images // batch  # updates of a whole epoch
        self.dropped = images % batch  # images of a whole epoch that no update reads
        self._epoch, self._place = divmod(first, images)
        # Updates of the epoch that the run begins in: of it, a branch has only what the trunk left.
        self._opening = (images - self._place) // batch
        # What was computed last: the places from the second number on, of this epoch, hold these images.
        self._block: tuple[int, int, Ids] = (-1, 0, np.empty(0, np.int64))

    @property
    def steps(self) -> int:
        """Updates that the run's epochs fill."""
        return max(0, self._opening + (self.epochs - self._epoch - 1) * self.per_epoch)

    def position(self, t: int) -> int:
        """Where update t begins, as `first` counts: a branch that begins there reads what this run reads from t on."""
        if t < self._opening:
            return self._epoch * self.images + self._place + t * self.batch
        epochs, step = divmod(t - self._opening, self.per_epoch)
        return (self._epoch + 1 + epochs) * self.images + step * self.batch

    def step_images(self, t: int) -> tuple[int, Ids]:
        """The epoch of update t and its images, in the batch's order. InputError past the last update."""
        if not 0 <= t < self.steps:
            raise InputError(
                f"update {t} of a run of {self.epochs} epochs, which has {self.steps} updates of {self.batch} images "
                f"({self.dropped} of {self.images} images are left over in each epoch); fewer steps or more data.epochs are needed"
            )
        epoch, place = divmod(self.position(t), self.images)
        known, start, images = self._block
        # Updates come one after another, and a permutation of many images takes little longer than one of a few.
        if known != epoch or not start <= place <= place + self.batch <= start + len(images):
            start, end = place, min(place + max(self.batch, BLOCK), self.images)
            images = Permutation(self.images, f"images/{self.seed}/{epoch}")(np.arange(start, end, dtype=np.int64))
            self._block = epoch, start, images
        return epoch, images[place - start : place - start + self.batch]

    def step_ids(self, t: int) -> Ids:
        """The batch of update t as epoch·images + image, in order."""
        epoch, images = self.step_images(t)
        return epoch * self.images + images
