"""Bad images and options: one clear error (asked, found, what would work), exit code 2, and nothing left."""

from __future__ import annotations

import gzip
import os
import re
import struct
import zlib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data.image_tables import TABLES
from data.prepare_images import main
from tests.pictures import png, random_pictures, write_folder, write_parquet, write_part, write_table

GREY, COLOUR = (1, 4, 4), (3, 4, 4)


def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], *given: object) -> str:
    """The one line of a refusal; nothing beside what stood there is left."""
    before = sorted(tmp_path.rglob("*"))
    assert main([*map(str, given), "--out", str(tmp_path / "out")]) == 2
    assert sorted(tmp_path.rglob("*")) == before
    errors = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert len(errors) == 1
    return errors[0].partition("error: ")[2]


def add(path: Path, raw: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(raw)


def bomb(files: Path) -> None:
    """A header of 70,000 × 70,000 pixels: a decoder would hold 5 GB."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", 70_000, 70_000, 8, 0, 0, 0, 0)
    header = struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    add(files / "class0" / "zz.png", b"\x89PNG\r\n\x1a\n" + header + png(np.zeros((4, 4), np.uint8))[33:])


# What is done to a good folder of classes 0 and 1 with ten grey images of 4 × 4 pixels each → what is said.
FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "mixed sizes": (
        lambda files: add(files / "class1" / "zz.png", png(np.zeros((4, 5), np.uint8))),
        "class1/zz.png is 5 × 4 pixels of 1 channel, .*class0/0000.png 4 × 4 pixels of 1 channel; .*one size: resize them first",
    ),
    "grey and colours": (
        lambda files: add(files / "class1" / "zz.png", png(np.zeros(COLOUR, np.uint8))),
        "class1/zz.png is 4 × 4 pixels of 3 channels, .*: --channels 3 or 1 converts them",
    ),
    "an empty file": (lambda files: add(files / "class0" / "zz.png", b""), "class0/zz.png cannot be read as an image"),
    "no image": (lambda files: add(files / "class0" / "zz.png", b"hello"), "class0/zz.png cannot be read as an image"),
    "cut off": (
        lambda files: add(files / "class0" / "zz.jpg", png(random_pictures(GREY, 1)[0, 0], "JPEG")[:-40]),
        r"class0/zz.jpg cannot be read as an image \(OSError: .*[Tt]runcated",
    ),
    "a bomb": (
        bomb,
        "class0/zz.png (has 70000 × 70000 pixels; at most 1024|cannot be read as an image .DecompressionBomb)",
    ),
    "too large": (
        lambda files: add(files / "class0" / "zz.png", png(np.zeros((2, 1025), np.uint8))),
        "class0/zz.png has 1025 × 2 pixels; at most 1024 a side are read: resize it",
    ),
    "16 bits": (
        lambda files: Image.fromarray(np.full((4, 4), 60_000, np.uint16)).save(files / "class0" / "zz.png"),
        "class0/zz.png has pixels of the kind I;16; .*: convert it to 8 bits",
    ),
    "alpha": (
        lambda files: Image.new("RGBA", (4, 4)).save(files / "class0" / "zz.png"),
        "class0/zz.png has pixels of the kind RGBA; .*: --channels 3 or 1 converts it",
    ),
    "a dead link": (lambda files: (files / "class0" / "zz.png").symlink_to("nowhere"), "zz.png"),
    "an empty class": (
        lambda files: (files / "class2").mkdir(),
        "class2 holds no image .*; add some, or remove the folder",
    ),
    "one image of a class": (
        lambda files: add(files / "rare" / "0.png", png(np.zeros((4, 4), np.uint8))),
        "class 'rare' has 1 images, of which --val-fraction 0.2 would hold out 0: it needs another image",
    ),
    "a folder in a class": (
        lambda files: (files / "class0" / "more").mkdir(),
        "class0 holds the folder more; a class's images lie in its folder itself",
    ),
    "an image beside the classes": (
        lambda files: add(files / "zz.png", png(np.zeros((4, 4), np.uint8))),
        "zz.png is an image outside a class; --source folder reads FOLDER/CLASS/image.png",
    ),
    "train, val and classes": (
        lambda files: [write_folder(files / name, GREY, [3, 3]) for name in ("train", "val")],
        "holds class0, class1, train, val; one folder train and one of val",
    ),
}


@pytest.mark.parametrize("what", FOLDERS)
def test_bad_folders(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if such a folder is prepared, gives a traceback, or leaves half of a data set."""
    write_folder(tmp_path / "files", GREY, [10, 10])
    change, message = FOLDERS[what]
    change(tmp_path / "files")
    said = refused(tmp_path, capsys, "--source", "folder", "--input", tmp_path / "files")
    assert re.search(message, said), said


def test_one_class_no_class_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if data with nothing to tell apart, or none at all, is prepared."""
    write_folder(tmp_path / "one", GREY, [10])
    said = refused(tmp_path, capsys, "--source", "folder", "--input", tmp_path / "one")
    assert said.startswith("all 8 training images are of the class 'class0'")
    (tmp_path / "none").mkdir()
    assert "holds no folder" in refused(tmp_path, capsys, "--source", "folder", "--input", tmp_path / "none")
    assert "is no folder" in refused(tmp_path, capsys, "--source", "folder", "--input", tmp_path / "never")
    write_folder(tmp_path / "two" / "train", GREY, [5, 5])
    write_folder(tmp_path / "two" / "test", GREY, [5, 5, 5])
    said = refused(tmp_path, capsys, "--source", "folder", "--input", tmp_path / "two")
    assert "have not the same classes: class2 in one alone" in said
    write_folder(tmp_path / "sizes" / "train", GREY, [5, 5])
    write_folder(tmp_path / "sizes" / "val", (1, 4, 6), [5, 5])
    said = refused(tmp_path, capsys, "--source", "folder", "--input", tmp_path / "sizes")
    assert "is 6 × 4 pixels of 1 channel, the training images 4 × 4" in said


def test_constant_channels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if a channel without deviation is prepared: a network would divide by zero."""
    for number in range(10):
        picture = random_pictures(COLOUR, 1, number)[0]
        picture[1] = 9
        add(tmp_path / "files" / f"class{number % 2}" / f"{number}.png", png(picture))
    said = refused(tmp_path, capsys, "--source", "folder", "--input", tmp_path / "files")
    assert said.startswith("channel 1 is the same in every pixel of every training image (9)")


def test_bad_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if an option that cannot work, or would do nothing, is taken without a word."""
    write_folder(tmp_path / "files", GREY, [10, 10])
    write_folder(tmp_path / "split" / "train", GREY, [5, 5])
    write_folder(tmp_path / "split" / "val", GREY, [5, 5])
    folder = ("--source", "folder", "--input", tmp_path / "files")
    split = ("--source", "folder", "--input", tmp_path / "split")
    for given, message in (
        ((*folder, "--val-fraction", 1), "--val-fraction 1 must lie between 0 and 1"),
        ((*folder, "--val-fraction", "nan"), "--val-fraction nan must lie"),
        (
            (*folder, "--val-fraction", 0.01),
            "class 'class0' has 10 images, of which --val-fraction 0.01 would hold out 0",
        ),
        ((*folder, "--label-noise", 1.2), "--label-noise 1.2 must lie between 0 and 1"),
        ((*folder, "--label-noise", "nan"), "--label-noise nan must lie"),
        ((*folder, "--label-noise", 0.01), "--label-noise 0.01 of 16 labels changes none; 0.031 changes one"),
        ((*folder, "--label-noise-seed", 1), "--label-noise-seed does nothing without --label-noise"),
        ((*folder, "--seed", -1), "--seed -1 must be at least 0"),
        (
            ("--source", "folder", "--dataset", "a/b"),
            "--source folder reads no dataset of the hub: leave --dataset out",
        ),
        ((*folder, tmp_path), "reads one folder or file; --input names 2"),
        ((*split, "--val-fraction", 0.5, "--seed", 1), "split of its own here: leave --val-fraction, --seed out"),
        (("--source", "folder"), "--source folder needs --input: a folder of classes"),
        (("--source", "cifar5m"), "--source cifar5m needs --input: its npz parts or parquet files; or --dataset"),
        (("--source", "cifar5m", "--input", tmp_path), "is a folder that holds no *.npz or *.parquet"),
        (("--source", "cifar10", "--input", tmp_path / "*.parquet"), "*.parquet' matches no file"),
        (
            ("--source", "cifar10", "--input", tmp_path, "--revision", "x"),
            "--input names files here: leave --revision out",
        ),
        (
            ("--source", "mnist5k", "--input", tmp_path / "x"),
            "x is not there; --source mnist5k reads the mnist_5k.csv.gz",
        ),
    ):
        said = refused(tmp_path, capsys, *given)
        assert message in said, said


@pytest.mark.parametrize("kind", TABLES)
def test_a_package_that_is_missing(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if the error does not say what to install."""
    if find_spec(TABLES[kind].module):
        pytest.skip(f"{TABLES[kind].package} is installed")
    said = refused(tmp_path, capsys, "--source", kind)
    assert f"which is not installed: `pip install {TABLES[kind].package}`, or name its" in said


def test_bad_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if a damaged table of pixels is read, or its line is not named."""
    good = write_table(tmp_path / "good.csv.gz", random_pictures((8, 8, 1), 40)[..., 0], [0, 1] * 20)
    lines = gzip.decompress(good.read_bytes()).splitlines()
    for line, message in (
        (b"1,2,3", "bad.csv.gz:41 has 3 numbers; 64 pixels and a label are 65"),
        (lines[0][:-1] + b"12", "bad.csv.gz:41 has the label 12; the 10 classes of this source are 0 to 9"),
        (lines[0][:-1] + b"-1", "bad.csv.gz:41 has the label -1"),
        (b"256" + lines[0][lines[0].index(b",") :], "bad.csv.gz:41 has pixels from"),
        (b"0.5" + lines[0][lines[0].index(b",") :], "bad.csv.gz:41 holds something else than whole numbers"),
        (b"9" * 30 + lines[0][lines[0].index(b",") :], "bad.csv.gz:41 holds something else than whole numbers"),
    ):
        (tmp_path / "bad.csv.gz").write_bytes(gzip.compress(b"\n".join([*lines, line]) + b"\n"))
        said = refused(tmp_path, capsys, "--source", "digits", "--input", tmp_path / "bad.csv.gz")
        assert message in said, said
    for raw in (good.read_bytes()[:-100], b"no gzip"):
        (tmp_path / "bad.csv.gz").write_bytes(raw)
        said = refused(tmp_path, capsys, "--source", "digits", "--input", tmp_path / "bad.csv.gz")
        assert "bad.csv.gz cannot be read after line" in said
    (tmp_path / "bad.csv.gz").write_bytes(gzip.compress(b""))
    said = refused(tmp_path, capsys, "--source", "digits", "--input", tmp_path / "bad.csv.gz")
    assert said == "--source digits has no images for the split train; look at --input"


def test_bad_parquet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if a file without images, of other columns, with labels beyond the classes or of unclear splits is read."""
    images, path = random_pictures(COLOUR, 6), tmp_path / "train.parquet"
    asked = ("--source", "cifar10", "--input", path)
    for columns, message in (
        ({"image": [png(images[0])], "label": [0]}, "has no column 'img' (found: image, label)"),
        ({"img": [png(images[0])], "fine_label": [0]}, "has no column 'label' (found: img, fine_label)"),
        ({"img": [{"bytes": None, "path": "a.png"}], "label": [0]}, "row 0 has no image in the column 'img'"),
        ({"img": [png(images[0]), None], "label": [0, 0]}, "row 1 has no image in the column 'img'"),
        ({"img": [png(images[0])], "label": ["cat"]}, "row 0 has the label 'cat'"),
        ({"img": [png(images[0]), png(images[1])], "label": [9, 10]}, "row 1 has the label 10; the 10 classes"),
        ({"img": [png(images[0])[:60]], "label": [0]}, "row 0 cannot be read as an image"),
        ({"img": pa.array([], pa.binary()), "label": pa.array([], pa.int64())}, "has no images for the split train"),
    ):  # fmt: skip
        pq.write_table(pa.table(columns), path)
        said = refused(tmp_path, capsys, *asked)
        assert message in said, said
    write_parquet(path, images, [0, 1] * 3, "img", "label")
    raw = path.read_bytes()
    for damaged in (b"no parquet", raw[: len(raw) // 2], raw[:20] + bytes(200) + raw[220:]):
        path.write_bytes(damaged)
        said = refused(tmp_path, capsys, *asked)
        assert "train.parquet" in said, said
    path.write_bytes(raw)
    for name, message in (
        ("other", "other.parquet does not say that"),
        ("test", ""),
        ("valid", "a test split and"),
    ):
        write_parquet(tmp_path / f"{name}.parquet", images, [0, 1] * 3, "img", "label")
        if message:
            said = refused(tmp_path, capsys, "--source", "cifar10", "--input", tmp_path)
            assert message in said, said
        (tmp_path / "other.parquet").unlink(missing_ok=True)
    path.unlink()
    said = refused(tmp_path, capsys, "--source", "cifar10", "--input", tmp_path / "test.parquet")
    assert "test.parquet does not say that it is for training" in said


def test_bad_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if a part of other types or lengths is read as if its bytes were pixels, or a pickle in it is run."""
    images, labels = random_pictures((4, 4, 3), 20), np.arange(20) % 10
    path = tmp_path / "part0.npz"
    for pixels, numbers, message in (
        (images.astype(np.float32), labels, "has images (20, 4, 4, 3) of float32; uint8"),
        (images.transpose(0, 3, 1, 2), labels, "has images (20, 3, 4, 4) of uint8"),
        (images, labels[:19], "has labels (19,) of int64 for images (20, 4, 4, 3)"),
        (images, labels + 0.5, "has labels (20,) of float64"),
        (images, labels + 1, "image 9 has the label 10; the 10 classes"),
        (np.asfortranarray(images), labels, "is stored by columns"),
        (np.array([None] * 20), labels, "is stored as Python objects"),
        (images[:0], labels[:0], "has no images for the split train"),
    ):
        write_part(path, pixels, numbers)
        said = refused(tmp_path, capsys, "--source", "cifar5m", "--input", path)
        assert message in said, said
    np.savez(path, pictures=images)
    said = refused(tmp_path, capsys, "--source", "cifar5m", "--input", path)
    assert "part0.npz holds pictures; images are read from X" in said
    write_part(path, images, labels)
    raw = path.read_bytes()
    for damaged in (b"", raw[: len(raw) // 2], raw[:300] + bytes(50) + raw[350:]):
        path.write_bytes(damaged)
        said = refused(tmp_path, capsys, "--source", "cifar5m", "--input", path)
        assert "part0.npz cannot be read as an npz part" in said


def test_the_hub_out_of_reach(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks if a machine without network waits for long, or its user does not learn how to bring the files."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # as HF_HUB_OFFLINE=1 sets it at the import
    said = refused(tmp_path, capsys, "--source", "cifar10")
    assert said.startswith("dataset uoft-cs/cifar10 at revision main cannot be reached")
    assert "`hf download uoft-cs/cifar10" in said
    assert "`python -m data.prepare_images --source cifar10 --input DIR" in said


def test_names_that_are_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if a class whose name cannot be written to JSON ends in a traceback after all images were read."""
    write_folder(tmp_path / "files", GREY, [5, 5])
    os.rename(os.fsencode(tmp_path / "files" / "class0"), os.fsencode(tmp_path / "files") + b"/\xff\xfe")
    assert "name is not UTF-8" in refused(tmp_path, capsys, "--source", "folder", "--input", tmp_path / "files")
