"""Checkpoints: one layout by parameter name, whatever the ZeRO stage, the number of ranks or the micro-batch.

    checkpoints/step_00001000/
        weights.safetensors      the masters (float32; bfloat16 under bf16-true)
        exp_avg.safetensors      Adam's first moment
        exp_avg_sq.safetensors   Adam's second moment
        manifest.json            step, counters, experiment, SHA-256 and size of each file

A checkpoint exists when its manifest does: it is written last, into a temporary folder that is then renamed, and
deleted first. Whole tensors by name make resume, re-sharding, branching and export one and the same reading.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from engine.agree import on_every_rank, on_first_rank
from engine.fragments import Fragments
from optim.adamw import MOMENTS
from record.files import sync_folder, write_text

KINDS = ("weights", *MOMENTS)
MANIFEST = "manifest.json"
logger = logging.getLogger(__name__)


class File(BaseModel):
    bytes: int
    sha256: str


class CheckpointManifest(BaseModel):
    """`counters` are the run's own (step, Σηλ, order digest, …) and Adam's step; `experiment` is its identity's fields."""

    format: int = 1
    step: int
    counters: dict[str, Any]
    experiment: dict[str, Any]
    files: dict[str, File]


def save(folder: Path, step: int, fragments: Fragments, counters: dict[str, Any], experiment: dict[str, Any]) -> Path:
    """Write checkpoint `step` under `folder`; collective. Ranks share the files between them.

    Returns its path. Where a rank fails (a full disk), nothing stays behind and every rank raises ValueError.
    """
    final, work = folder / f"step_{step:08d}", folder / f".step_{step:08d}.tmp"
    if on_first_rank(lambda: final in complete(folder)):
        return final
    on_first_rank(lambda: _make_room(final, work))
    try:
        files: dict[str, File] = {}
        for index, kind in enumerate(KINDS):
            files |= _write(work / f"{kind}.safetensors", kind, fragments, writer=index % dist.get_world_size())
        manifest = CheckpointManifest(
            step=step,
            counters={**counters, "optimizer_step": fragments.optimizer_step},
            experiment=experiment,
            files=dict(sorted(files.items())),
        )
        on_first_rank(lambda: _publish(work, final, manifest))
    except ValueError:
        on_first_rank(lambda: shutil.rmtree(work, ignore_errors=True))
        raise
    return final


def load(path: Path, fragments: Fragments) -> dict[str, Any]:
    """Read a checkpoint into the live engine; collective. Returns its manifest's counters.

    Every file's hash is checked, and afterwards that the forward pass sees the loaded weights. ValueError if damaged.
    """
    manifest = read_manifest(path)
    ranks, rank = dist.get_world_size(), dist.get_rank()
    on_every_rank(lambda: _check_files(path, dict(sorted(manifest.files.items())[rank::ranks])))
    for kind in KINDS:
        with safe_open(path / f"{kind}.safetensors", framework="pt") as file:
            fragments.load(kind, file.get_tensor)
    fragments.optimizer_step = manifest.counters["optimizer_step"]
    fragments.refresh()
    with safe_open(path / "weights.safetensors", framework="pt") as file:
        fragments.check_forward(file.get_tensor)
    return manifest.counters


def newest(folder: Path) -> Path | None:
    """The newest complete checkpoint under `folder`, chosen by rank 0 for all; None if there is none."""
    return on_first_rank(lambda: max(complete(folder), default=None))


def complete(folder: Path) -> list[Path]:
    """Checkpoints whose manifest and files are there at their full size, oldest first."""
    found = []
    for path in sorted(folder.glob("step_*")):
        try:
            files = read_manifest(path).files
        except ValueError:
            continue
        if all((path / name).is_file() and (path / name).stat().st_size == file.bytes for name, file in files.items()):
            found.append(path)
    return found


def delete_old(folder: Path, keep_last: int | None) -> None:
    """Delete all but the newest `keep_last` checkpoints, their manifest first; a failure is logged, no more. Rank 0 only."""
    for path in complete(folder)[:-keep_last] if keep_last is not None else []:
        try:
            (path / MANIFEST).unlink()
            shutil.rmtree(path)
        except OSError as error:
            logger.warning("%s could not be deleted: %s", path, error)


def delete_unfinished(folder: Path) -> None:
    """Remove what a save that was killed left behind. For the folder's only writer."""
    for path in folder.glob(".step_*.tmp"):
        shutil.rmtree(path)


def read_manifest(path: Path) -> CheckpointManifest:
    """The manifest of a checkpoint. ValueError if there is none or it cannot be read."""
    try:
        return CheckpointManifest.model_validate_json((path / MANIFEST).read_bytes())
    except (OSError, ValidationError) as error:
        raise ValueError(f"{path} is not a complete checkpoint: {error}") from None


def _make_room(final: Path, work: Path) -> None:
    """Remove an unfinished save of the same step, and a damaged checkpoint, its manifest first."""
    if final.exists():
        logger.warning("%s is damaged and is written again", final)
        (final / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(final)
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)


def _write(path: Path, kind: str, fragments: Fragments, writer: int) -> dict[str, File]:
    """Gather one kind on rank `writer` and write it there; returns the file's entry on every rank."""
    tensors = fragments.gather(kind, to=writer)

    def write() -> File | None:
        if tensors is None:
            return None
        try:
            save_file(tensors, path)
        except SafetensorError as error:
            raise OSError(f"cannot write {path}: {error}") from None
        path.chmod(0o644)
        return _describe(path)

    entries: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(entries, on_every_rank(write))
    return {path.name: entries[writer]}


def _publish(work: Path, final: Path, manifest: CheckpointManifest) -> None:
    write_text(work / MANIFEST, manifest.model_dump_json(indent=2) + "\n")
    os.replace(work, final)
    sync_folder(final.parent)


def _check_files(path: Path, files: dict[str, File]) -> None:
    for name, file in files.items():
        if _describe(path / name) != file:
            raise ValueError(
                f"checkpoint {path} is damaged: {name} differs from its manifest; delete it to resume from an older one"
            )


def _describe(path: Path) -> File:
    """Size and hash of a file, which is on disk when this returns."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        return File(bytes=path.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())
