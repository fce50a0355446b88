"""CIFAR-10, CIFAR-100, Tiny ImageNet, CIFAR-5m as the Hugging Face hub has them: parquet of images and labels, local or remote.

No remote code is run: only parquet files are read, on the hub those of one resolved revision.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from configs.errors import InputError
from data.hub import CONVERTED, parquet_files
from data.image_sources import ImageSource, Row, decode_image
from data.image_tables import CIFAR

BATCH_ROWS = 256  # of a parquet file in memory at once
HUB = "hf://datasets/"


@dataclass(frozen=True)
class Layout:
    """A data set on the hub: its name (None: of several copies none is the official one), its columns, how many classes it has,
    its channels where not all images have them, and the classes' names for a file that has none."""

    dataset: str | None
    image: str
    label: str
    classes: int
    channels: int | None = None
    names: tuple[str, ...] = ()


LAYOUTS = {
    "cifar10": Layout("uoft-cs/cifar10", "img", "label", 10),
    "cifar100": Layout("uoft-cs/cifar100", "img", "fine_label", 100),
    "tiny-imagenet": Layout("zh-plus/tiny-imagenet", "image", "label", 200, 3),  # some of its images are grey
    "cifar5m": Layout(None, "image", "label", 10, names=CIFAR),
}
SPLITS = {"train": "train", "test": "test", "valid": "valid", "validation": "valid", "val": "valid"}
WORD = re.compile(rf"(?<![a-z])({'|'.join(SPLITS)})(?![a-z])")
FETCH = "and read them with `python -m data.prepare_images --source {kind} --input DIR --out …`"


def open_parquet(
    kind: str, files: list[Path], dataset: str | None, revision: str | None, channels: int | None
) -> ImageSource:
    """Local `files`, or without any those of a data set of the hub. The split of each is read from its name.

    InputError for files that do not say what they are for.
    """
    layout = LAYOUTS[kind]
    if files:
        origin: dict[str, Any] = {"files": len(files), "bytes": sum(path.stat().st_size for path in files)}
        names = [str(path) for path in files]
    else:
        copy = dataset or layout.dataset
        assert copy is not None, "data/image_request.py asks for it"
        origin, names = _on_the_hub(kind, copy, revision)
    splits = _splits(names)
    features = _open(splits["train"][0]).features or {}
    classes = _class_names(features.get(layout.label), layout)
    rows = {
        split: partial(read_rows, files, layout, channels or layout.channels)
        for split, files in splits.items()
        if files
    }
    return ImageSource(kind, classes, rows["train"], rows.get("val"), origin)


def _on_the_hub(kind: str, dataset: str, revision: str | None) -> tuple[dict[str, Any], list[str]]:
    """What the manifest says of a data set of the hub, and the addresses of its files at one resolved revision."""
    for candidate in [revision] if revision else ["main", CONVERTED]:
        sha, sizes = parquet_files(dataset, candidate, FETCH.format(kind=kind))
        if sizes:
            origin = {"dataset": dataset, "revision": sha, "files": len(sizes), "bytes": sum(sizes.values())}
            return origin, [f"{HUB}{dataset}@{sha}/{name}" for name in sizes]
    raise InputError(
        f"dataset {dataset} has no parquet files at revision {revision or 'main'}; name one with --revision"
    )


def _splits(names: list[str]) -> dict[str, list[str]]:
    """Files for training and for validation: a `test` split comes before one called `valid`, which is what CIFAR reports.

    InputError where some names say their split and others do not, or none is for training.
    """
    found: dict[str, list[str]] = {}
    for name in names:
        *_, parent, file = ["", *name.lower().split("/")]
        words = WORD.findall(file) or [parent]  # train-00000-of-00002.parquet, or train/0000.parquet
        found.setdefault(SPLITS.get(words[0], ""), []).append(name)
    if set(found) == {""}:
        return {"train": found[""], "val": []}
    if "" in found or "train" not in found:
        unclear = found.get("", names)[0]
        raise InputError(
            f"{unclear} does not say that it is for training; name every file, or its folder, train, test or valid, or none of them"
        )
    if "test" in found and "valid" in found:
        raise InputError(
            f"{found['test'][0]} and {found['valid'][0]}: a test split and a validation split; leave the one out that is not wanted"
        )
    return {"train": found["train"], "val": found.get("test", found.get("valid", []))}


def _open(name: str) -> Any:
    """A parquet file as a stream of rows; its images stay the bytes of their files."""
    import datasets

    try:
        return datasets.load_dataset(
            "parquet", data_files=[name], split="train", streaming=True, batch_size=BATCH_ROWS
        ).decode(False)
    except Exception as error:  # pyarrow's, and those of the libraries around it
        raise _unread(name, "is not a parquet file that can be read", error) from None


def _unread(name: str, what: str, error: Exception) -> Exception:
    """A local file is the user's to mend; the hub may be out of reach for a moment, which is nobody's mistake."""
    message = f"{name} {what}: {type(error).__name__}: {str(error)[:300]}"
    return OSError(message) if name.startswith(HUB) else InputError(message)


def _class_names(feature: Any, layout: Layout) -> list[str]:
    """The classes' names, where the file or the layout has them; else their numbers."""
    names = getattr(feature, "names", None) or layout.names
    return [str(name) for name in names] if names else [str(number) for number in range(layout.classes)]


def read_rows(names: list[str], layout: Layout, channels: int | None) -> Iterator[Row]:
    """The rows of these files. InputError names the file and row of what cannot be read; OSError where the hub is out of reach."""
    for name in names:
        stream = _open(name)
        for column in (layout.image, layout.label):
            if column not in (stream.features or {}):
                raise InputError(f"{name} has no column {column!r} (found: {', '.join(stream.features or {})})")
        rows, number = iter(stream), 0
        while True:
            try:
                row = next(rows, None)
            except Exception as error:
                raise _unread(name, f"cannot be read after row {number}", error) from None
            if row is None:
                break
            place = f"{name}: row {number}"
            stored = row[layout.image]
            raw = stored.get("bytes") if isinstance(stored, dict) else stored
            if not isinstance(raw, bytes):
                raise InputError(f"{place} has no image in the column {layout.image!r} (its bytes must be in the file)")
            label = row[layout.label]
            if not isinstance(label, int):
                raise InputError(
                    f"{place} has the label {label!r} in the column {layout.label!r}; a whole number is read"
                )
            yield Row(decode_image(raw, place, channels), label, place)
            number += 1
