"""Prepared images for a reader: what the manifest says, how many there are of each class, and some of them as text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.augment import Images
from data.image_loader import ImageStream
from data.image_manifest import ImageManifest

CLASSES = 20  # of which each has a line
COLUMNS = 64  # of a picture
SHADES = " ░▒▓█"


def render_images(folder: Path, manifest: ImageManifest) -> str:
    """The manifest as lines for a reader, and the images of each class. InputError for files that the manifest does not fit."""
    channels, height, width = manifest.shape
    train, val = manifest.train.images, manifest.val.images
    numbers = zip(manifest.mean, manifest.deviation, strict=True)
    wrong = f"{manifest.wrong_labels:,} of {train:,} training labels are wrong on purpose ({manifest.wrong_labels / train:.1%})"
    lines = [
        ("data", f"{folder}, digest {manifest.digest}"),
        ("source", ", ".join(f"{key} {value}" for key, value in manifest.source.items())),
        ("options", ", ".join(f"{key} {value}" for key, value in manifest.options.items())),
        ("images", f"{train:,} for training, {val:,} for validation, {channels} × {height} × {width} bytes each"),
        (
            "pixels",
            "; ".join(f"mean {m:.4f}, deviation {d:.4f}" for m, d in numbers) + " of 255, by channel, in training",
        ),
        ("labels", wrong if manifest.wrong_labels else "none is wrong on purpose"),
    ]
    return "\n".join([*(f"{label:<10} {text}" for label, text in lines), *_by_class(folder, manifest)])


def pictures(folder: Path, manifest: ImageManifest, count: int, seed: int) -> list[str]:
    """Random training images as text, each below its label."""
    if count < 1:
        return []
    stream = ImageStream(folder, manifest, "train")
    ids = np.random.default_rng(seed).choice(len(stream), min(count, len(stream)), replace=False)
    given, true = stream.labels(ids), ImageStream(folder, manifest, "train", true_labels=True).labels(ids)
    out, texts = np.empty((len(ids), *manifest.shape), np.uint8), []
    stream.read(ids, out)
    for image, label, right, pixels in zip(ids.tolist(), given.tolist(), true.tolist(), out, strict=True):
        truly = "" if label == right else f", truly {manifest.classes[right]}"
        texts.append(f"--- training image {image:,}: {manifest.classes[label]}{truly}\n{as_text(pixels)}")
    return texts


def as_text(image: Images) -> str:
    """An image (C, H, W) in shades of grey between its own extremes; a character is two pixels high, for it is so itself."""
    grey = image.mean(0)
    size = -(-grey.shape[1] // COLUMNS)  # pixels to a column
    means = _means(_means(grey, 2 * size, 0), size, 1)
    least, span = means.min(), np.ptp(means) or 1.0
    shades = ((means - least) / span * (len(SHADES) - 1)).round().astype(int)
    return "\n".join("".join(SHADES[shade] for shade in row).rstrip() for row in shades.tolist())


def _means(pixels: NDArray[Any], size: int, axis: int) -> NDArray[Any]:
    """Of so many neighbours along an axis, and of what is left at its end."""
    starts = np.arange(0, pixels.shape[axis], size)
    counts = np.add.reduceat(np.ones(pixels.shape), starts, axis)
    return np.asarray(np.add.reduceat(pixels, starts, axis) / counts)


def _by_class(folder: Path, manifest: ImageManifest) -> list[str]:
    """A line for each class: its images by their labels, and how many of those are wrong. Of many classes, the first."""
    splits = {"train": manifest.train.images, "val": manifest.val.images}
    labels = {name: ImageStream(folder, manifest, name).labels(np.arange(n)) for name, n in splits.items()}  # type: ignore[arg-type]
    true = ImageStream(folder, manifest, "train", true_labels=True).labels(np.arange(splits["train"]))
    count = len(manifest.classes)
    train, val = (np.bincount(of_split, minlength=count) for of_split in labels.values())
    wrong = np.bincount(labels["train"][labels["train"] != true], minlength=count)
    lines = [f"{'class':<10} {'training':>10} {'of them wrong':>15} {'validation':>12}"]
    for name, *numbers in list(zip(manifest.classes, train, wrong, val, strict=True))[:CLASSES]:
        lines.append("{:<10} {:>10,} {:>15,} {:>12,}".format(name, *numbers))
    if count > CLASSES:
        more = f"{count - CLASSES:,} more classes of {train[CLASSES:].min():,} to {train[CLASSES:].max():,} training images"
        lines.append(f"… and {more}, {wrong[CLASSES:].sum():,} of them wrong")
    return lines
