"""Batches of prepared images: what an update reads, and fixed ones for evaluation.

Pixels stay uint8: the network normalises them where it runs, by the mean and deviation in the manifest.
Shapes: M micro-steps per rank, b micro-batch, n any number of images; C channels, H height, W width.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from configs.errors import InputError
from data.augment import Augment, Images
from data.image_manifest import ImageManifest
from data.image_order import ImageOrder
from data.loader import IGNORED, EvalBatch, StepBatch, rank_rows
from data.order import Ids, Permutation

Targets = NDArray[np.int64]


class ImageStream:
    """Random access to one split's images and labels, memory-mapped."""

    def __init__(
        self,
        folder: str | Path,
        manifest: ImageManifest,
        split: Literal["train", "val"],
        true_labels: bool = False,
        subset: int | None = None,
    ) -> None:
        """`true_labels`: those before some were made wrong; the same where none was.

        `subset`: only so many of the images, drawn by chance that no seed changes, a smaller subset inside a larger one.

        InputError if a file is missing or has another size than the manifest says.
        """
        files = manifest.train if split == "train" else manifest.val
        name = files.true_labels_file if true_labels and files.true_labels_file else files.labels_file
        self.classes, self._labels_path = len(manifest.classes), Path(folder) / name
        self._images = _mapped(Path(folder) / files.images_file, "u1", files.images, manifest.shape)
        self._labels = _mapped(self._labels_path, "<u2", files.images, ())
        # A file may be sorted by class, so that its beginning would be no sample of it.
        self._chosen = (
            None if subset in (None, files.images) else Permutation(files.images, "subset")(np.arange(subset))
        )

    def __len__(self) -> int:
        return len(self._labels if self._chosen is None else self._chosen)

    def _places(self, ids: Ids) -> Ids:
        """Where in the file these images lie."""
        return ids if self._chosen is None else self._chosen[ids]

    def read(self, ids: Ids, out: Images) -> None:
        """Fill out (n, C, H, W) with the images of these numbers (n,)."""
        assert len(self) > ids.max() >= ids.min() >= 0, ids
        # In this mode numpy writes to `out` itself.
        np.take(self._images, self._places(ids), axis=0, out=out, mode="clip")

    def labels(self, ids: Ids) -> Targets:
        """The labels of these images, (n,). InputError for one beyond the classes: the file is damaged."""
        ids = self._places(ids)
        labels = self._labels[ids].astype(np.int64)
        if len(labels) and labels.max() >= self.classes:
            place = int(np.argmax(labels >= self.classes))
            raise InputError(
                f"{self._labels_path} has the label {labels[place]} for image {ids[place]}, and the classes of the data are 0 to "
                f"{self.classes - 1}: the file is damaged; restore it, or prepare the data again"
            )
        return labels


class TrainImages:
    """The training split under a run's configuration: what update t reads."""

    def __init__(
        self,
        folder: str | Path,
        manifest: ImageManifest,
        batch: int,
        seed: int,
        epochs: int = 1,
        augment: Augment | None = None,
        first: int = 0,
        subset: int | None = None,
    ) -> None:
        """`first`: see ImageOrder; `subset`: see ImageStream.

        InputError if a file is not as the manifest says, or the batch is larger than the split.
        """
        self._stream = ImageStream(folder, manifest, "train", subset=subset)
        self.order = ImageOrder(len(self._stream), batch, epochs, seed, first)
        self.shape, self._augment = manifest.shape, augment or Augment()
        self._mean = np.array([round(255 * value) for value in manifest.mean], np.uint8)

    @property
    def start_digest(self) -> str:
        """The chain's value before the first update: it names the order and its seed."""
        return hashlib.sha256(f"images/{self.order.seed}".encode()).hexdigest()

    def step_ids(self, t: int) -> Ids:
        """The global batch of update t as epoch·images + image, in order."""
        return self.order.step_ids(t)

    def read(self, ids: Ids, out: Images) -> None:
        """Fill out (n, C, H, W) with the images of step_ids (n,), as they look in their epochs."""
        epochs, images = np.divmod(ids, self.order.images)
        self._stream.read(images, out)
        if self._augment.any:
            out[:] = self._augment.apply(out, epochs, images, self.order.seed, self._mean)

    def labels(self, ids: Ids) -> Targets:
        """The labels that are trained on, of images of step_ids (n,)."""
        return self._stream.labels(ids % self.order.images)


def step_batches(
    data: TrainImages, start: int, digest: str | None, micro_batch: int, rank: int, ranks: int, steps: int | None = None
) -> Iterator[StepBatch]:
    """Batches of updates start, start+1, … to `steps`, by default all that the epochs fill; inputs uint8 (M, b, C, H, W), targets
    (M, b). `digest` is the chain's value before `start`."""
    digest = digest or data.start_digest
    rows = rank_rows(data.order.batch, micro_batch, rank, ranks)
    for t in range(start, data.order.steps if steps is None else steps):
        ids = data.step_ids(t)
        digest = hashlib.sha256(bytes.fromhex(digest) + ids.astype("<i8").tobytes()).hexdigest()
        mine = ids[rows.reshape(-1)]
        pixels = np.empty((rows.size, *data.shape), np.uint8)
        data.read(mine, pixels)
        yield StepBatch(t, pixels.reshape(*rows.shape, *data.shape), data.labels(mine).reshape(rows.shape), ids, digest)


def eval_batches(
    folder: str | Path,
    manifest: ImageManifest,
    micro_batch: int,
    rank: int,
    ranks: int,
    count: int | None = None,
    split: Literal["train", "val"] = "val",
    true_labels: bool = False,
    subset: int | None = None,
    mixed: bool = False,
) -> Iterator[EvalBatch]:
    """A rank's batches of `count` images, spread evenly over the split (or its `subset`) in order; without it, of all.

    `mixed`: in an order drawn by chance that no seed changes. A file may be sorted by class, and batches of one class say nothing
    of how the classes differ, which running statistics of batch normalisation are estimated from.
    They are fixed, and never augmented. Every rank gets equally many batches, as sharded parameters need; the last ones are
    filled up with black images whose targets are IGNORED.
    """
    stream = ImageStream(folder, manifest, split, true_labels, subset)
    count = len(stream) if count is None else count
    if not 1 <= count <= len(stream):
        raise InputError(
            f"{count} images of the {len(stream)} in the split {split}; 1 to {len(stream)} can be evaluated"
        )
    images = np.arange(count, dtype=np.int64) * len(stream) // count
    if mixed:
        images = images[Permutation(count, "mixed")(np.arange(count, dtype=np.int64))]
    for first in range(0, count, micro_batch * ranks):
        places = range(count)[first + rank * micro_batch : first + (rank + 1) * micro_batch]
        ids = images[places.start : places.stop]
        pixels = np.zeros((micro_batch, *manifest.shape), np.uint8)
        targets = np.full(micro_batch, IGNORED, np.int64)
        if len(ids):
            stream.read(ids, pixels[: len(ids)])
            targets[: len(ids)] = stream.labels(ids)
        yield EvalBatch(pixels, targets, len(ids), places)


def balanced(
    folder: str | Path, manifest: ImageManifest, count: int, subset: int | None = None
) -> tuple[Images, Targets]:
    """`count` training images, (n, C, H, W) and the labels that are trained on (n,): of every class equally many, as far as it has
    them.

    They follow from the data and the count alone. In the order in which subsets are drawn, the classes take turns: the first image
    of each class, the second of each, and so on. So a smaller count is inside a larger one, and a subset with enough images of
    each class gives the same as the whole split. InputError for more images than there are.
    """
    stream = ImageStream(folder, manifest, "train", subset=subset)
    if not 1 <= count <= len(stream):
        raise InputError(f"{count} images of the {len(stream)} that are trained on; choose 1 to {len(stream)}")
    ids = np.arange(len(stream), dtype=np.int64)
    if len(stream) == manifest.train.images:  # no subset: the stream is in the order of the file, which may be sorted
        ids = Permutation(len(stream), "subset")(ids)
    labels = stream.labels(ids)
    turns = np.empty_like(ids)  # how many images of its class come before an image
    for label in range(stream.classes):
        own = np.flatnonzero(labels == label)
        turns[own] = np.arange(len(own))
    chosen = np.argsort(turns, kind="stable")[:count]
    pixels = np.empty((count, *manifest.shape), np.uint8)
    stream.read(ids[chosen], pixels)
    return pixels, labels[chosen]


def _mapped(path: Path, dtype: str, images: int, shape: tuple[int, ...]) -> NDArray[Any]:
    """A file as an array (images, *shape), without read-ahead: a batch takes images from everywhere."""
    expected = images * int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    size = path.stat().st_size if path.is_file() else None
    if size != expected:
        what = "is missing" if size is None else f"has {size} bytes"
        raise InputError(f"{path} {what}; the manifest says {expected} bytes: prepare the data again")
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    mapped.madvise(mmap.MADV_RANDOM)
    return np.frombuffer(mapped, dtype).reshape(images, *shape)
