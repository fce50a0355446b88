"""Prepared images: the pixels and labels of the source, the same bytes each time, and whole or not at all."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.errors import InputError
from data import prepare_images as module
from data.image_labels import noisy_labels, validation_rows
from data.image_tables import TABLES
from tests.pictures import (
    arrays,
    png,
    prepared_pictures,
    random_pictures,
    run,
    together,
    write_folder,
    write_parquet,
    write_part,
    write_table,
)

pytestmark = pytest.mark.slow  # by its length alone: `make check` takes a minute


@pytest.mark.parametrize(("kind", "side"), [("digits", 8), ("mnist5k", 28)])
def test_tables_of_packages(kind: str, side: int, tmp_path: Path) -> None:
    """Breaks if a picture or its label is changed, lost or turned; a class is not shared out; or the order is not the file's.

    The package's own file where it is installed; else one of the same layout.
    """
    table = TABLES[kind]
    if find_spec(table.module) is None:
        labels = [number % 10 for number in range(150)]
        images = random_pictures((side, side, 1), 150)[..., 0].astype(int) % (17 if kind == "digits" else 256)
        given = ["--input", write_table(tmp_path / "table.csv.gz", images, labels)]
    else:
        spec, given = find_spec(table.module), []
        assert spec is not None
        assert spec.origin is not None
        numbers = np.loadtxt(Path(spec.origin).parent / table.file, delimiter=",", dtype=int)
        images, labels = numbers[:, :-1].reshape(-1, side, side), numbers[:, -1].tolist()
    manifest = run(tmp_path / "out", kind, *given)
    assert manifest.shape == (1, side, side)
    assert manifest.classes == [str(digit) for digit in range(10)]
    given_rows = [(image.astype(np.uint8).tobytes(), label) for image, label in zip(images, labels, strict=True)]
    assert together(tmp_path / "out", manifest) == sorted(given_rows)
    train, val = (arrays(tmp_path / "out", manifest, split) for split in ("train", "val"))
    assert np.array_equal(np.bincount(val[1]), [round(0.2 * count) for count in np.bincount(labels)])
    places = {image: row for row, (image, _) in enumerate(given_rows)}
    rows = [places[image.tobytes()] for image in train[0]]
    assert rows == sorted(rows)


@pytest.mark.parametrize("kind", ["cifar10", "cifar100", "tiny-imagenet"])
@pytest.mark.parametrize("named", [True, False])
def test_parquet_of_the_hub(kind: str, named: bool, tmp_path: Path) -> None:
    """Breaks if another column is read, splits are mixed, files are read out of order, or pixels are not those of the files."""
    image, label, count = {"cifar10": ("img", "label", 10), "cifar100": ("img", "fine_label", 100)}.get(
        kind, ("image", "label", 200)
    )
    images = random_pictures((3, 6, 8), 50)
    labels = [number * 7 % count for number in range(50)]
    held_out = "test" if kind != "tiny-imagenet" else "valid"
    names = {
        "train-00000-of-00002": range(20),
        "train-00001-of-00002": range(20, 35),
        f"{held_out}-00000-of-00001": range(35, 50),
    }
    if not named:  # the hub's own conversion: a folder for each split
        names = {"train/0000": range(20), "train/0001": range(20, 35), f"{held_out}/0000": range(35, 50)}
    for name, rows in names.items():
        path = tmp_path / "test_train" / "data" / f"{name}.parquet"
        write_parquet(path, images[list(rows)], [labels[row] for row in rows], image, label, count if named else None)
    manifest = run(tmp_path / "out", kind, "--input", tmp_path / "test_train")
    assert manifest.classes == [f"kind {number}" if named else str(number) for number in range(count)]
    for split, rows in (("train", range(35)), ("val", range(35, 50))):
        read, read_labels = arrays(tmp_path / "out", manifest, split)
        assert np.array_equal(read, images[list(rows)])
        assert read_labels.tolist() == [labels[row] for row in rows]
    if absent := count - len(set(labels[:35])):
        (note,) = manifest.source["notes"]
        assert note.startswith(f"{absent} classes have no training image, ")


def test_grey_among_colours(tmp_path: Path) -> None:
    """Breaks if Tiny ImageNet's grey pictures stop its preparation, or are read as something else than equal colours."""
    colours, grey = random_pictures((3, 4, 4), 6), random_pictures((1, 4, 4), 2, seed=1)
    rows = [{"bytes": png(one), "path": "x.JPEG"} for one in [*colours, grey[0][0], grey[1][0]]]
    pq.write_table(pa.table({"image": rows, "label": [0, 1] * 4}), tmp_path / "train.parquet")
    manifest = run(tmp_path / "out", "tiny-imagenet", "--input", tmp_path / "train.parquet", "--val-fraction", 0.25)
    kept = {image for image, _ in together(tmp_path / "out", manifest)}
    assert kept == {one.tobytes() for one in colours} | {np.repeat(one, 3, axis=0).tobytes() for one in grey}


@pytest.mark.parametrize("packed", [False, True])
def test_parts_in_the_order_of_their_numbers(packed: bool, tmp_path: Path) -> None:
    """Breaks if CIFAR-5m's parts are read in the order of the alphabet, with their planes mistaken, or packed ones as bytes."""
    images = random_pictures((5, 4, 3), 30)  # H, W, C
    labels = np.arange(30) % 10
    for part, rows in (("part0", slice(0, 10)), ("part2", slice(10, 20)), ("part10", slice(20, 30))):
        write_part(tmp_path / f"cifar5m_{part}.npz", images[rows], labels[rows], packed)
    manifest = run(tmp_path / "out", "cifar5m", "--input", tmp_path, "--val-fraction", 0.34)
    assert manifest.shape == (3, 5, 4)
    assert manifest.classes[0::9] == ["airplane", "truck"]
    (train, train_labels), (val, _) = (arrays(tmp_path / "out", manifest, split) for split in ("train", "val"))
    assert (len(train), len(val)) == (20, 10)
    rows = [int(np.flatnonzero((images.transpose(0, 3, 1, 2) == one).all(axis=(1, 2, 3)))[0]) for one in train]
    assert rows == sorted(rows)
    assert train_labels.tolist() == labels[rows].tolist()


def test_parquet_of_cifar5m(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if CIFAR-5m as parquet files is another data set than as npz parts, or files of both kinds are read together."""
    images, labels = random_pictures((3, 4, 4), 30), [row % 10 for row in range(30)]
    write_parquet(tmp_path / "table" / "part0.parquet", images, labels, "image", "label")
    (tmp_path / "parts").mkdir()
    write_part(tmp_path / "parts" / "part0.npz", np.stack(images).transpose(0, 2, 3, 1), np.array(labels), False)
    table, parts = (run(tmp_path / f"out-{form}", "cifar5m", "--input", tmp_path / form) for form in ("table", "parts"))
    assert table.classes == parts.classes
    for split in ("train", "val"):
        one, other = arrays(tmp_path / "out-table", table, split), arrays(tmp_path / "out-parts", parts, split)
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    assert module.main(["--source", "cifar5m", "--input", str(tmp_path), "--out", str(tmp_path / "both")]) == 2
    assert "the same images in two forms" in capsys.readouterr().err


@pytest.mark.parametrize("splits", [False, True])
def test_folders_of_classes(splits: bool, tmp_path: Path) -> None:
    """Breaks if classes are not the sorted names of the folders, train and val are taken for classes, or files are left out."""
    roots = [tmp_path / "files" / name for name in ("train", "val")] if splits else [tmp_path / "files"]
    pixels = [write_folder(root, (3, 5, 7), [10, 10, 10], seed) for seed, root in enumerate(roots)]
    for root in roots:
        (root / "class1").rename(root / "Zebra")
        (root / "notes.txt").write_text("no image")
        (root / "Zebra" / ".DS_Store").write_bytes(b"")
    manifest = run(tmp_path / "out", "folder", "--input", tmp_path / "files")
    assert manifest.classes == ["Zebra", "class0", "class2"]
    assert manifest.source["skipped"] == {
        "file without an image's suffix": len(roots),
        "hidden file or folder": len(roots),
    }
    labels = np.repeat([1, 0, 2], 10)
    expected = [(image.tobytes(), int(label)) for part in pixels for image, label in zip(part, labels, strict=True)]
    assert together(tmp_path / "out", manifest) == sorted(expected)
    assert manifest.val.images == (30 if splits else 6)


@pytest.mark.parametrize(
    ("channels", "mode"), [(None, "L"), (None, "RGB"), (None, "1"), (None, "P"), (1, "RGB"), (3, "L"), (3, "RGBA")]
)
def test_channels(channels: int | None, mode: str, tmp_path: Path) -> None:
    """Breaks if grey or colour is not as the source has it, or --channels converts otherwise than PIL does."""
    from PIL import Image

    pictures = [Image.fromarray(one.transpose(1, 2, 0)).convert(mode) for one in random_pictures((3, 4, 4), 20)]
    for number, picture in enumerate(pictures):
        path = tmp_path / "files" / f"class{number % 2}" / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    more = [] if channels is None else ["--channels", channels]
    manifest = run(tmp_path / "out", "folder", "--input", tmp_path / "files", *more)
    target = {1: "L", 3: "RGB"}[channels] if channels else {"1": "L", "P": "RGB"}.get(mode, mode)
    assert manifest.shape == (1 if target == "L" else 3, 4, 4)
    planes = [np.asarray(picture.convert(target)) for picture in pictures]
    expected = sorted((one if one.ndim == 2 else one.transpose(2, 0, 1)).tobytes() for one in planes)
    assert [image for image, _ in together(tmp_path / "out", manifest)] == expected


def test_statistics_are_those_of_the_training_split(tmp_path: Path) -> None:
    """Breaks if mean or deviation are of other images, another formula, or rounded on the way: over blocks they are exact."""
    out, manifest = prepared_pictures(tmp_path, (3, 9, 9), [40, 30], label_noise=0.5)
    pixels = arrays(out, manifest, "train")[0].astype(np.float64) / 255
    assert np.allclose(manifest.mean, pixels.mean(axis=(0, 2, 3)), rtol=1e-13, atol=0)
    assert np.allclose(manifest.deviation, pixels.std(axis=(0, 2, 3)), rtol=1e-12, atol=0)
    other, block = tmp_path / "other", module.BLOCK_BYTES
    module.BLOCK_BYTES = 700  # two images
    try:
        again = run(other, "folder", "--input", tmp_path / "files", "--label-noise", 0.5)
    finally:
        module.BLOCK_BYTES = block
    assert again == manifest
    assert all(
        (other / name).read_bytes() == (out / name).read_bytes()
        for name, _ in [*manifest.train.files(), *manifest.val.files()]
    )


def test_validation_is_a_share_of_each_class() -> None:
    """Breaks if a class is held out more than another, seeds choose the same images, or a class would be missing on one side."""
    labels = np.array([0] * 100 + [2] * 50 + [1] * 7, np.uint16)
    names = ["a", "b", "c", "never"]
    rows = validation_rows(labels, names, 0.3, 0)
    assert np.bincount(labels[rows]).tolist() == [30, 2, 15]
    assert (np.diff(rows) > 0).all()
    assert not np.array_equal(rows, validation_rows(labels, names, 0.3, 1))
    with pytest.raises(
        InputError, match=r"class 'b' has 7 images, of which --val-fraction 0.05 would hold out 0: .*from 0.071 on"
    ):
        validation_rows(labels, names, 0.05, 0)
    with pytest.raises(
        InputError, match=r"class 'b' has 7 images, of which --val-fraction 0.95 would hold out 7: .*a smaller"
    ):
        validation_rows(labels, names, 0.95, 0)
    with pytest.raises(InputError, match=r"class 'b' has 1 images.*it needs another image"):
        validation_rows(np.array([0, 0, 1], np.uint16), names, 0.5, 0)


@pytest.mark.parametrize("classes", [2, 3, 10, 65536])
def test_label_noise(classes: int) -> None:
    """Breaks if more or fewer labels are wrong than asked, one of them is right by chance, or a class is favoured."""
    labels = (np.arange(20_000) * 7 % classes).astype(np.uint16)
    noisy = noisy_labels(labels, classes, 0.2, 0)
    assert noisy.dtype == np.uint16
    assert (noisy != labels).sum() == 4000
    assert noisy.max() < classes
    assert np.array_equal(noisy, noisy_labels(labels, classes, 0.2, 0))
    assert not np.array_equal(noisy, noisy_labels(labels, classes, 0.2, 1))
    assert np.array_equal(noisy_labels(labels, classes, 0, 0), labels)
    assert (noisy_labels(labels, classes, 1, 0) != labels).all()
    if classes <= 10:
        wrong = noisy != labels
        shift = (noisy[wrong].astype(int) - labels[wrong]) % classes
        counts = np.bincount(shift, minlength=classes)[1:]
        assert (
            (counts - 4000 / (classes - 1)) ** 2 / (4000 / (classes - 1))
        ).sum() < 32  # χ² with 8 or fewer: p < 1e-4
        assert abs(np.flatnonzero(wrong).mean() - 10_000) < 400  # from everywhere: σ is 91


def test_noise_is_on_training_labels_and_remembered(tmp_path: Path) -> None:
    """Breaks if validation labels are touched, the true ones are lost, the rate is not said, or clean data has the same digest."""
    write_folder(tmp_path / "files", (1, 4, 4), [50, 50, 50])
    clean = run(tmp_path / "clean", "folder", "--input", tmp_path / "files")
    noisy = run(
        tmp_path / "noisy", "folder", "--input", tmp_path / "files", "--label-noise", 0.1, "--label-noise-seed", 5
    )
    true = (tmp_path / "noisy" / "train_true_labels.u16").read_bytes()
    assert true == (tmp_path / "clean" / "train_labels.u16").read_bytes()
    assert not (tmp_path / "clean" / "train_true_labels.u16").exists()
    labels = arrays(tmp_path / "noisy", noisy, "train")[1]
    assert (labels != np.frombuffer(true, "<u2")).sum() == noisy.wrong_labels == 12
    assert noisy.options["label_noise"] == 0.1
    assert noisy.options["label_noise_seed"] == 5
    assert noisy.digest != clean.digest
    for name in ("val_labels.u16", "val_images.u8", "train_images.u8"):
        assert (tmp_path / "noisy" / name).read_bytes() == (tmp_path / "clean" / name).read_bytes()
    assert noisy.described()["wrong_labels"] == 12
