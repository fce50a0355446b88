"""Images in folders: FOLDER/CLASS/image.png, or FOLDER/train/CLASS/image.png beside FOLDER/val/CLASS/image.png."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from configs.errors import InputError
from data.image_sources import ImageSource, Row, decode_image

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
TRAIN, HELD_OUT = "train", ("val", "valid", "validation", "test")


def open_folder(root: Path, channels: int | None) -> ImageSource:
    """The classes are the names of the folders, sorted. InputError for a layout that could mean something else."""
    if not root.is_dir():
        raise InputError(f"--input {root} is no folder; --source folder reads FOLDER/CLASS/image.png")
    skipped: Counter[str] = Counter()
    names = _folders(root, skipped)
    held_out = [name for name in names if name in HELD_OUT]
    # Folders train and val are splits and not classes: taken for classes, they would train a network to tell them apart.
    if TRAIN in names and held_out:
        if len(names) > 2:
            raise InputError(
                f"{root} holds {', '.join(names)}; one folder train and one of {', '.join(HELD_OUT)} are read"
            )
        train, classes = _classes(root / TRAIN, _folders(root / TRAIN, skipped), skipped)
        val, other = _classes(root / held_out[0], _folders(root / held_out[0], skipped), skipped)
        if classes != other:
            differing = ", ".join(sorted(set(classes) ^ set(other))[:5])
            raise InputError(
                f"{root / TRAIN} and {root / held_out[0]} have not the same classes: {differing} in one alone"
            )
        splits = [train, val]
    else:
        train, classes = _classes(root, names, skipped)
        splits = [train]
    rows = [partial(_read, files, channels) for files in splits]
    origin = {
        "files": sum(len(files) for files in splits),
        "bytes": sum(path.stat().st_size for files in splits for path, _ in files),
    }
    val_rows = rows[1] if len(rows) > 1 else None
    return ImageSource("folder", classes, rows[0], val_rows, origin, skipped=dict(skipped))


def _read(files: list[tuple[Path, int]], channels: int | None) -> Iterator[Row]:
    for path, label in files:
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror or error})") from None
        yield Row(decode_image(raw, str(path), channels), label, str(path))


def _classes(root: Path, names: list[str], skipped: Counter[str]) -> tuple[list[tuple[Path, int]], list[str]]:
    """Every image file with its class's number, and the classes' names."""
    files = []
    if not names:
        raise InputError(f"{root} holds no folder; --source folder reads FOLDER/CLASS/image.png")
    for label, name in enumerate(names):
        images = _images(root / name, skipped)
        if not images:
            raise InputError(f"{root / name} holds no image ({', '.join(SUFFIXES)}); add some, or remove the folder")
        files += [(path, label) for path in images]
    return files, names


def _folders(root: Path, skipped: Counter[str]) -> list[str]:
    """The names of the folders in `root`, sorted. Files beside them are counted, as nothing else than images is read."""
    names = []
    for path in root.iterdir():
        if path.name.startswith("."):
            skipped["hidden file or folder"] += 1
        elif path.is_dir():
            names.append(path.name)
        elif path.suffix.lower() in SUFFIXES:
            raise InputError(f"{path} is an image outside a class; --source folder reads FOLDER/CLASS/image.png")
        else:
            skipped["file without an image's suffix"] += 1
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise InputError(f"{root} holds a folder whose name is not UTF-8 ({name!r}); rename it") from None
    return sorted(names)


def _images(folder: Path, skipped: Counter[str]) -> list[Path]:
    """The image files of one class, sorted by name."""
    images = []
    for path in folder.iterdir():
        if path.name.startswith("."):
            skipped["hidden file or folder"] += 1
        elif path.is_dir():
            raise InputError(
                f"{folder} holds the folder {path.name}; a class's images lie in its folder itself: move them there"
            )
        elif path.suffix.lower() in SUFFIXES:
            images.append(path)
        else:
            skipped["file without an image's suffix"] += 1
    return sorted(images)
