"""From labelled images to arrays on disk: `python -m data.prepare_images --source … --out DIR`.

One pass over the source writes every image as it comes, so that memory holds labels (2 bytes an image) and one block of images.
Where the source has no validation split, one is then taken out of the written file, block by block. The work is done in
DIR.preparing, the manifest is written last, and the folder is renamed at the end. Killed before, the same command starts over.

Shapes: N images, C channels, H height, W width.
"""

from __future__ import annotations

import os
import sys
from array import array
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from configs.errors import InputError
from data.image_labels import Labels, noisy_labels, validation_rows
from data.image_manifest import ImageManifest, ImageSplit, read_image_manifest
from data.image_request import MOST_HELD_OUT, VAL_FRACTION, ImageOptions, parser, read_request
from data.image_sources import ImageSource, Rows
from data.manifest import FILE
from data.order import Ids
from data.output import building, replace_file
from data.shards import sha256_of

BLOCK_BYTES = 4 << 20  # of images in memory at once
IMAGES, LABELS, TRUE_LABELS = "images.u8", "labels.u16", "true_labels.u16"
Shape = tuple[int, int, int]  # (C, H, W)


def prepare_images(source: ImageSource, out: Path, options: ImageOptions) -> ImageManifest:
    """Prepare `source` into the folder `out`. Images already there of the same source and options are returned as they are.

    Raises InputError for anything else in `out`, and for images or labels that cannot be one data set; OSError for a full disk.
    Nothing is left behind.
    """
    request = {"source": source.describe(), "options": asdict(options)}
    done = _prepared_already(out, request)
    if done is not None:
        return done
    with building(out, request, goes_on=False) as work:
        manifest = _prepare_in(work, source, options)
        replace_file(work / FILE, (manifest.model_dump_json(indent=2) + "\n").encode())
    written = read_image_manifest(out)
    assert written is not None
    return written


def _prepared_already(out: Path, request: dict[str, Any]) -> ImageManifest | None:
    """The manifest in `out` if it holds what is requested; None if `out` is free. InputError if it holds anything else."""
    if not out.exists():
        return None
    if not out.is_dir():
        raise InputError(f"{out} holds something else (it is no folder); choose another --out")
    problem = "no prepared images" if any(out.iterdir()) else ""
    try:
        done = read_image_manifest(out)
    except InputError as error:
        done, problem = None, str(error)
    if done is not None:
        kept = {key: value for key, value in done.source.items() if key != "notes"}
        if {"source": kept, "options": done.options} == request:
            print(f"{out} is prepared already")
            return done
        problem = "images prepared otherwise"
    if problem:
        raise InputError(f"{out} holds something else ({problem}); choose another --out")
    return None


def _prepare_in(work: Path, source: ImageSource, options: ImageOptions) -> ImageManifest:
    labels, shape = _write(work, "train", source, source.train, None)
    if source.val is not None:
        val_labels, _ = _write(work, "val", source, source.val, shape)
    else:
        fraction = options.val_fraction or min(VAL_FRACTION, MOST_HELD_OUT / len(labels))
        held_out = validation_rows(labels, source.classes, fraction, options.seed)
        _hold_out(work, held_out, len(labels), int(np.prod(shape)))
        val_labels, labels = labels[held_out], np.delete(labels, held_out)
        if options.val_fraction is None:
            source.notes.append(f"val-fraction {fraction:.4g} of each class, the default: {len(val_labels):,} images")
    _check_classes(source, labels)
    wrong = noisy_labels(labels, len(source.classes), options.label_noise, options.label_noise_seed)
    true_labels = labels if options.label_noise else None
    if options.label_noise and (wrong == labels).all():
        raise InputError(
            f"--label-noise {options.label_noise:g} of {len(labels)} labels changes none; {0.5 / len(labels):.2g} changes one"
        )
    for note in source.notes:
        print(note)
    mean, deviation = _statistics(work / f"train_{IMAGES}", shape)
    described = source.describe()
    return ImageManifest(
        source={**described, "notes": source.notes} if source.notes else described,
        options=asdict(options),
        classes=source.classes,
        shape=shape,
        train=_split(work, "train", wrong, true_labels),
        val=_split(work, "val", val_labels, None),
        mean=mean,
        deviation=deviation,
        wrong_labels=int((wrong != labels).sum()),
    ).with_digest()


def _write(work: Path, split: str, source: ImageSource, rows: Rows, shape: Shape | None) -> tuple[Labels, Shape]:
    """Write a split's images as they come; returns their labels and shape. `shape`: what they must have, else the first's."""
    labels, first = array("H"), "the training images"
    with open(work / f"{split}_{IMAGES}", "wb") as file:
        for image, label, place in tqdm(rows(), desc=split, unit=" images"):
            found = (image.shape[0], image.shape[1], image.shape[2])
            if shape is None:
                shape, first = found, place
            if found != shape:
                raise InputError(f"{place} is {_sized(found)}, {first} {_sized(shape)}; {_mend(found, shape)}")
            if not 0 <= label < len(source.classes):
                raise InputError(
                    f"{place} has the label {label}; the {len(source.classes)} classes of this source are 0 to "
                    f"{len(source.classes) - 1}: the label is damaged, or this is another data set"
                )
            labels.append(label)
            file.write(image.tobytes())
        file.flush()
        os.fsync(file.fileno())
    if shape is None or not labels:
        raise InputError(f"--source {source.kind} has no images for the split {split}; look at --input")
    return np.array(labels, dtype=np.uint16), shape


def _sized(shape: Shape) -> str:
    channels, height, width = shape
    return f"{width} × {height} pixels of {channels} channel{'s' if channels > 1 else ''}"


def _mend(found: Shape, shape: Shape) -> str:
    if found[1:] != shape[1:]:
        return "all images of a data set have one size: resize them first"
    return "some are grey and some have colours: --channels 3 or 1 converts them"


def _hold_out(work: Path, held_out: Ids, count: int, pixels: int) -> None:
    """Move the rows `held_out`, rising, of the training images to the validation images; the rest closes up, in its order.

    In place: what is written lies never beyond what was read, so that a data set needs its size on disk once.
    """
    rows = max(1, BLOCK_BYTES // pixels)
    keep = np.ones(count, bool)
    keep[held_out] = False
    with open(work / f"train_{IMAGES}", "r+b") as train, open(work / f"val_{IMAGES}", "wb") as val:
        written = 0
        for start in range(0, count, rows):
            train.seek(start * pixels)
            block = np.frombuffer(train.read(rows * pixels), np.uint8).reshape(-1, pixels)
            kept = keep[start : start + rows]
            val.write(block[~kept].tobytes())
            train.seek(written)
            written += train.write(block[kept].tobytes())
        train.truncate(written)
        for file in (train, val):
            file.flush()
            os.fsync(file.fileno())


def _check_classes(source: ImageSource, labels: Labels) -> None:
    """InputError where there is nothing to tell apart. Classes without images are told: a network has outputs for them too."""
    present = np.unique(labels)
    if len(present) < 2:
        raise InputError(
            f"all {len(labels)} training images are of the class {source.classes[int(present[0])]!r}; a network learns to tell two "
            "classes apart, or more: look at --input"
        )
    absent = [name for label, name in enumerate(source.classes) if label not in present]
    if absent:
        source.notes.append(f"{len(absent)} classes have no training image, {', '.join(absent[:5])} among them")


def _statistics(path: Path, shape: Shape) -> tuple[list[float], list[float]]:
    """Mean and deviation of each channel over all pixels, in units of 255.

    The sums are whole numbers, which have no order of summation: only the last division rounds.
    """
    channels, area = shape[0], shape[1] * shape[2]
    sums, squares, images = np.zeros(channels, np.uint64), np.zeros(channels, np.uint64), 0
    with open(path, "rb") as file:
        while raw := file.read(max(1, BLOCK_BYTES // (channels * area)) * channels * area):
            block = np.frombuffer(raw, np.uint8).reshape(-1, channels, area)
            sums += block.sum(axis=(0, 2), dtype=np.uint64)
            squares += np.square(block, dtype=np.uint32).sum(axis=(0, 2), dtype=np.uint64)
            images += len(block)
    n = images * area
    mean = [int(one) / (n * 255) for one in sums]
    variance = [(n * int(two) - int(one) ** 2) / (n * 255) ** 2 for one, two in zip(sums, squares, strict=True)]
    constant = [channel for channel, value in enumerate(variance) if value == 0]
    if constant:
        raise InputError(
            f"channel {constant[0]} is the same in every pixel of every training image ({mean[constant[0]] * 255:g}): a network "
            "normalises by its deviation, which is 0; leave that channel out (see --channels)"
        )
    return mean, [value**0.5 for value in variance]


def _split(work: Path, split: str, labels: Labels, true_labels: Labels | None) -> ImageSplit:
    """Write a split's labels, and hash all its files."""
    names = {"images": f"{split}_{IMAGES}", "labels": f"{split}_{LABELS}"}
    replace_file(work / names["labels"], labels.astype("<u2").tobytes())
    if true_labels is not None:
        names["true_labels"] = f"{split}_{TRUE_LABELS}"
        replace_file(work / names["true_labels"], true_labels.astype("<u2").tobytes())
    fields: dict[str, Any] = {"images": len(labels)}
    for what, name in names.items():
        fields |= {f"{what}_file": name, f"{what}_sha256": sha256_of(work / name)}
    return ImageSplit(**fields)


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        source, options = read_request(args)
        manifest = prepare_images(source, args.out, options)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for reason, count in manifest.source.get("skipped", {}).items():
        print(f"skipped {count:,}: {reason}")
    wrong = f"; {manifest.wrong_labels:,} training labels are wrong on purpose" if manifest.wrong_labels else ""
    print(
        f"{args.out}: {manifest.train.images:,} training and {manifest.val.images:,} validation images of {len(manifest.classes)} "
        f"classes, {_sized(manifest.shape)}{wrong}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
