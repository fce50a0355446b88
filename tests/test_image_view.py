"""Prepared images as a reader sees them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from data import inspect
from data.image_manifest import FILE
from data.image_view import as_text
from tests.pictures import arrays, prepared_pictures


def test_inspect_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if inspection shows other counts, labels or pixels than the files have, or misses a flipped bit or an edit."""
    folder, manifest = prepared_pictures(tmp_path, (3, 9, 7), [40, 30], label_noise=0.25)
    assert inspect.main([str(folder), "--images", "56"]) == 0
    text = capsys.readouterr().out
    assert manifest.digest in text
    assert "56 for training, 14 for validation, 3 × 9 × 7 bytes each" in text
    assert "14 of 56 training labels are wrong on purpose (25.0%)" in text
    assert f"mean {manifest.mean[2]:.4f}, deviation {manifest.deviation[2]:.4f}" in text
    assert "all as in the manifest" in text
    pixels, labels = arrays(folder, manifest, "train")
    true = np.fromfile(folder / "train_true_labels.u16", "<u2")
    for label in (0, 1):
        wrong = ((labels == label) & (true != label)).sum()
        row = [f"class{label}", (labels == label).sum(), wrong, (8, 6)[label]]
        assert " ".join(map(str, row)) in [" ".join(line.split()) for line in text.splitlines()]
    assert text.count("--- training image") == 56
    for number in (0, 31, 55):
        truly = "" if labels[number] == true[number] else f", truly class{true[number]}"
        assert f"--- training image {number}: class{labels[number]}{truly}\n{as_text(pixels[number])}\n" in text + "\n"

    flipped = bytearray((folder / "val_images.u8").read_bytes())
    flipped[7] ^= 4
    (folder / "val_images.u8").write_bytes(flipped)
    assert inspect.main([str(folder)]) == 2
    assert "val_images.u8 differs from its hash" in capsys.readouterr().err
    assert inspect.main([str(folder), "--no-verify"]) == 0
    (folder / FILE).write_text(json.dumps(json.loads((folder / FILE).read_text()) | {"wrong_labels": 0}))
    assert inspect.main([str(folder)]) == 2
    assert "was changed after preparation" in capsys.readouterr().err
    assert inspect.main([str(tmp_path)]) == 2
    assert "holds no prepared data" in capsys.readouterr().err


def test_a_picture_as_text() -> None:
    """Breaks if a picture is turned, mirrored, not reduced to the columns of a terminal, or its last rows are left out."""
    image = np.zeros((1, 5, 4), np.uint8)
    image[0, 0:2, 3], image[0, 4, 0], image[0, 2, 1] = 200, 200, 100
    assert as_text(image).splitlines() == ["   █", " ░", "█"]
    assert as_text(np.full((3, 4, 4), 9, np.uint8)) == "\n"
    wide = np.zeros((3, 100, 200), np.uint8)
    wide[:, :, 100:] = 255
    lines = as_text(wide).splitlines()
    assert len(lines) == 13
    assert set(lines) == {" " * 25 + "█" * 25}


def test_many_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if of many classes those without a line are not summed up."""
    folder, manifest = prepared_pictures(tmp_path, (1, 4, 4), [5] * 20 + [10, 15, 20], label_noise=1.0)
    assert inspect.main([str(folder), "--images", "0"]) == 0
    text = capsys.readouterr().out
    assert len([line for line in text.splitlines() if line.startswith("class")]) == 21
    _, labels = arrays(folder, manifest, "train")
    rest = np.bincount(labels, minlength=23)[20:]
    assert f"… and 3 more classes of {rest.min()} to {rest.max()} training images, {rest.sum()} of them wrong" in text
    assert "--- training image" not in text
