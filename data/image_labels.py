"""Which images are held out, and which labels are made wrong: pure functions of labels, options and a seed."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from configs.errors import InputError
from data.order import GOLDEN, Ids, Permutation, mix

Labels = NDArray[np.uint16]


def validation_rows(labels: Labels, classes: Sequence[str], fraction: float, seed: int) -> Ids:
    """The rows that are held out, rising: of every class this share of its images, rounded to the nearest.

    InputError names a class that would have no image on one of the two sides.
    """
    held_out = []
    for label, name in enumerate(classes):
        rows = np.flatnonzero(labels == label)
        count = math.floor(fraction * len(rows) + 0.5)
        if len(rows) and not 0 < count < len(rows):
            mend = f"--val-fraction from {0.5 / len(rows):.2g} on" if count == 0 else "a smaller --val-fraction"
            few = "it needs another image" if len(rows) == 1 else f"it needs more images, or {mend}"
            raise InputError(
                f"class {name!r} has {len(rows)} images, of which --val-fraction {fraction:g} would hold out {count}: {few}"
            )
        if count:
            held_out.append(rows[Permutation(len(rows), f"validation/{seed}/{label}")(np.arange(count))])
    return np.sort(np.concatenate(held_out)) if held_out else np.empty(0, np.int64)


def noisy_labels(labels: Labels, classes: int, rate: float, seed: int) -> Labels:
    """The labels, this share of them wrong: ⌊rate·n + ½⌋ images get one of the other classes, each with the same chance.

    A changed label is never the true one, so that `rate` is the share of wrong labels and not an upper bound of it.
    """
    count = math.floor(rate * len(labels) + 0.5)
    rows = Permutation(len(labels), f"noise/{seed}")(np.arange(count))
    start = np.frombuffer(hashlib.sha256(f"noise/{seed}/label".encode()).digest()[:8], dtype="<u8")
    # 64 bits onto so few classes: no class is favoured by more than one part in 2^48.
    shift = mix(start + rows.astype(np.uint64) * GOLDEN) % np.uint64(classes - 1) + np.uint64(1)
    changed = labels.copy()
    changed[rows] = (labels[rows].astype(np.uint64) + shift) % np.uint64(classes)
    return changed
