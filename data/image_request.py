"""The command line of a preparation of images: its options, and which source they name."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from configs.errors import InputError
from data.image_folder import open_folder
from data.image_parquet import LAYOUTS, open_parquet
from data.image_sources import SOURCES, ImageSource
from data.image_tables import TABLES, open_parts, open_table
from data.inputs import files_named

VAL_FRACTION, MOST_HELD_OUT = 0.2, 10_000  # by default; as many as CIFAR's own test split has


@dataclass(frozen=True)
class ImageOptions:
    """What determines prepared images besides the source.

    `channels` None: as the source has them. `val_fraction` None: the source's own split, or the default share. `label_noise`:
    the share of the training labels that is made wrong.
    """

    channels: int | None = None
    val_fraction: float | None = None
    seed: int = 0
    label_noise: float = 0.0
    label_noise_seed: int = 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m data.prepare_images",
        description="Prepare labelled images: arrays of pixels and labels, and a manifest.",
    )
    add = made.add_argument
    add("--source", required=True, choices=SOURCES)
    add(
        "--input",
        nargs="+",
        help="folder: the folder. cifar5m: npz parts, or parquet files. cifar10, cifar100, tiny-imagenet: parquet "
        "files; without it the hub's. "
        "digits, mnist5k: the package's file, where the package is not installed. Files, folders or quoted globs",
    )
    add("--out", required=True, type=Path, help="folder to write")
    add("--dataset", help="cifar10, cifar100, tiny-imagenet, cifar5m: another copy on the hub, with the same columns")
    add("--revision", help="of the dataset; default main, else the hub's parquet conversion")
    add("--channels", type=int, choices=(1, 3), help="convert to grey or to colours; default as the source has them")
    add(
        "--val-fraction",
        type=float,
        help=f"share of each class that is held out, where the source has no split of its own; default {VAL_FRACTION}, and "
        f"{MOST_HELD_OUT:,} images at most",
    )
    add("--seed", type=int, help="seed of what is held out; default 0")
    add("--label-noise", type=float, default=0.0, help="share of the training labels that is made wrong; default 0")
    add("--label-noise-seed", type=int, help="seed of the wrong labels; default 0")
    return made


def read_request(args: argparse.Namespace) -> tuple[ImageSource, ImageOptions]:
    """The source and options a command line names. InputError for options that cannot work, or that would do nothing."""
    if args.val_fraction is not None and not 0 < args.val_fraction < 1:
        raise InputError(f"--val-fraction {args.val_fraction:g} must lie between 0 and 1")
    if not 0 <= args.label_noise <= 1:
        raise InputError(f"--label-noise {args.label_noise:g} must lie between 0 and 1: it is a share of the labels")
    if args.label_noise_seed is not None and not args.label_noise:
        raise InputError("--label-noise-seed does nothing without --label-noise; leave it out, or ask for noise")
    for option, seed in (("--seed", args.seed), ("--label-noise-seed", args.label_noise_seed)):
        if seed is not None and seed < 0:
            raise InputError(f"{option} {seed} must be at least 0")
    source = _open(args)
    if source.val is not None:
        given = [
            name for name, value in (("--val-fraction", args.val_fraction), ("--seed", args.seed)) if value is not None
        ]
        if given:
            raise InputError(
                f"--source {source.kind} has a validation split of its own here: leave {', '.join(given)} out"
            )
    return source, ImageOptions(
        args.channels, args.val_fraction, args.seed or 0, args.label_noise, args.label_noise_seed or 0
    )


def _open(args: argparse.Namespace) -> ImageSource:
    kind, patterns = args.source, args.input or []
    hub = [name for name, value in (("--dataset", args.dataset), ("--revision", args.revision)) if value]
    if hub and (patterns or kind not in LAYOUTS):
        why = "--input names files here" if patterns else f"--source {kind} reads no dataset of the hub"
        raise InputError(f"{why}: leave {', '.join(hub)} out")
    if kind == "cifar5m":
        if not patterns and args.dataset is None:
            raise InputError(
                "--source cifar5m needs --input: its npz parts or parquet files; or --dataset, a copy on the hub"
            )
        if parts := _parts(patterns):
            return open_parts(parts, args.channels)
    if kind in LAYOUTS:
        return open_parquet(kind, _files(patterns, ".parquet"), args.dataset, args.revision, args.channels)
    if kind in TABLES:
        return open_table(kind, Path(_only(kind, patterns)) if patterns else None, args.channels)
    if not patterns:
        raise InputError(f"--source {kind} needs --input: a folder of classes")
    return open_folder(Path(_only(kind, patterns)), args.channels)


def _parts(patterns: list[str]) -> list[Path]:
    """CIFAR-5m's npz parts; none where parquet files are named. InputError for both."""
    files = _files(patterns, ".npz", ".parquet")
    parquet = [file for file in files if file.suffix == ".parquet"]
    if 0 < len(parquet) < len(files):
        other = next(file for file in files if file.suffix != ".parquet")
        raise InputError(f"--input names {parquet[0]} and {other}: the same images in two forms; give one of them")
    return [] if parquet else files


def _only(kind: str, patterns: list[str]) -> str:
    if len(patterns) > 1:
        raise InputError(f"--source {kind} reads one folder or file; --input names {len(patterns)}")
    return patterns[0]


def _files(patterns: list[str], *suffixes: str) -> list[Path]:
    """The files that the patterns name, each once, sorted; of a folder all with one of the suffixes, below it too."""
    files: set[Path] = set()
    for pattern in patterns:
        path = Path(pattern)
        below = (file for file in path.rglob("*") if file.suffix in suffixes)
        matching = [file for file in below if file.is_file()] if path.is_dir() else files_named(pattern)
        if not matching:
            what = f"is a folder that holds no *{' or *'.join(suffixes)}" if path.is_dir() else "matches no file"
            raise InputError(f"--input {pattern!r} {what}")
        files |= set(matching)
    return sorted(files)
