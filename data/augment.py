"""Random crops, flips and cutout: each image's own, decided by (seed, epoch, image) alone.

So an image looks the same in an epoch, whatever batch, rank or micro-batch it is read in, and whether a run was resumed.
Shapes: n images of a batch, C channels, H height, W width.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from configs.errors import InputError
from data.order import GOLDEN, Ids, mix

Images = NDArray[np.uint8]


@dataclass(frozen=True)
class Augment:
    """What is done to training images. Without any, nothing: P1 trains on the images as they are.

    `crop`: pixels of black added on every side, from which a window of the image's own size is cut (He et al. 2016: 4).
    `flip`: left and right are exchanged in half of the images. `cutout`: side of a square that is painted over, its centre
    anywhere in the image, so that a part of it may lie outside (DeVries & Taylor 2017: 16 on CIFAR-10).
    """

    crop: int = 0
    flip: bool = False
    cutout: int = 0

    def __post_init__(self) -> None:
        if self.crop < 0 or self.cutout < 0:
            raise InputError(f"crop {self.crop} and cutout {self.cutout} are pixels, 0 or more")

    @property
    def any(self) -> bool:
        return bool(self.crop or self.flip or self.cutout)

    def apply(self, images: Images, epochs: Ids, ids: Ids, seed: int, fill: NDArray[np.uint8]) -> Images:
        """The images (n, C, H, W) as they look in these epochs (n,); `ids` (n,) are their numbers in the split.

        `fill` (C,): what cutout paints with, the mean of the training split, which a network sees as 0.
        """
        if self.crop:
            across, down = (_draw(f"crop/{axis}", seed, epochs, ids, 2 * self.crop + 1) for axis in ("x", "y"))
            images = _cropped(images, self.crop, across, down)
        if self.flip:
            flipped = _draw("flip", seed, epochs, ids, 2).astype(bool)
            images = np.where(flipped[:, None, None, None], images[..., ::-1], images)
        if self.cutout:
            height, width = images.shape[2:]
            # A square of even side has no middle pixel: its centre is the one below and to the right of its middle.
            top, left = (
                _draw(f"cutout/{axis}", seed, epochs, ids, size) - self.cutout // 2
                for axis, size in (("y", height), ("x", width))
            )
            hidden = _within(top, self.cutout, height)[:, :, None] & _within(left, self.cutout, width)[:, None, :]
            images = np.where(hidden[:, None], fill[:, None, None], images)
        return images


def _cropped(images: Images, pad: int, across: Ids, down: Ids) -> Images:
    """Of each image, padded with black, the window that begins at (down, across)."""
    padded = np.pad(images, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, images.shape[2:], axis=(2, 3))  # a view of all of them
    return windows[np.arange(len(images)), :, down, across]  # (n, C, H, W)


def _within(start: Ids, length: int, size: int) -> NDArray[np.bool_]:
    """(n, size): which places of a line lie in a stretch of this length."""
    places = np.arange(size)
    return (places >= start[:, None]) & (places < start[:, None] + length)


def _draw(what: str, seed: int, epochs: Ids, ids: Ids, below: int) -> Ids:
    """A number from 0 to below − 1 for each (epoch, image): SplitMix64 at a place that the key and the pair name."""
    start = np.frombuffer(hashlib.sha256(f"augment/{what}/{seed}".encode()).digest()[:8], dtype="<u8")
    # One mixing for the epoch, one for the image: a sum of the two would give image i + 1 what i had an epoch later.
    state = mix(start + epochs.astype(np.uint64) * GOLDEN)
    return (mix(state + ids.astype(np.uint64) * GOLDEN) % np.uint64(below)).astype(np.int64)
