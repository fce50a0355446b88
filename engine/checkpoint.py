"""Checkpoints: one layout by parameter name, whatever the ZeRO stage, the number of ranks or the micro-batch.

    checkpoints/step_00001000/
        weights.safetensors      the masters (float32; bfloat16 under bf16-true and bf16-stochastic)
        exp_avg.safetensors      Adam's first moment; SGD has momentum_buffer or none
        exp_avg_sq.safetensors   Adam's second moment; torch.optim.NAME has a file for each name in its state
        ema_0.99.safetensors     and so on, where averages.ema asks for them
        buffers.safetensors      running statistics of batch normalisation, and a head that is not trained
        curvature.safetensors    K-FAC's factors and their inverses, by layer
        manifest.json            step, counters, experiment, SHA-256 and size of each file

A checkpoint exists when its manifest does: it is written last, into a temporary folder that is then renamed, and
deleted first. Whole tensors by name make resume, re-sharding, branching and export one and the same reading.
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from configs.cadence import is_kept
from configs.errors import InputError
from configs.schema import Checkpoint as CheckpointConfig
from engine.agree import on_every_rank, on_first_rank
from engine.fragments import Fragments
from record.checkpoint_manifest import (
    BUFFERS,
    CURVATURE,
    DAMAGED,
    MANIFEST,
    SUPERSEDED,
    CheckpointManifest,
    File,
    check_files,
    describe,
    read_manifest,
    why_incomplete,
)
from record.checkpoints import complete, incomplete_after, step_of
from record.files import sync_folder, write_text

logger = logging.getLogger(__name__)


def save(folder: Path, step: int, fragments: Fragments, counters: dict[str, Any], experiment: dict[str, Any]) -> Path:
    """Write checkpoint `step` under `folder`; collective. Ranks share the files between them.

    Returns its path. Where a rank fails (a full disk), nothing stays behind and every rank raises OSError.
    """
    final, work = folder / f"step_{step:08d}", folder / f".step_{step:08d}.tmp"
    # A step that is saved already has the same bits: a run that resumed from it and was stopped at once saves it again.
    if on_first_rank(lambda: final in complete(folder)):
        return final
    on_first_rank(lambda: _make_room(final, work))
    try:
        files: dict[str, File] = {}
        # Ranks take turns as writers, so that several disks or network links work at once.
        for index, kind in enumerate(fragments.kinds):
            files |= _write(work / f"{kind}.safetensors", kind, fragments, writer=index % dist.get_world_size())
        manifest = CheckpointManifest(
            step=step,
            counters={**counters, "optimizer_step": fragments.optimizer_step},
            experiment=experiment,
            files=dict(sorted(files.items())),
        )
        # Last the manifest, by which the checkpoint exists.
        on_first_rank(lambda: _publish(work, final, manifest.sealed()))
    except (InputError, OSError):
        on_first_rank(lambda: shutil.rmtree(work, ignore_errors=True))
        raise
    return final


def load(path: Path, fragments: Fragments, moments: bool = True, branch: bool = False) -> dict[str, Any]:
    """Read a checkpoint into the live engine, with or without the optimiser's state; collective. Returns its counters.

    For a `branch`, averages that the checkpoint does not have begin at its weights.
    The caller has checked its files; afterwards it is checked that the forward pass sees the loaded weights.
    """
    # What is there, what is wanted, and whether anything is missing that cannot begin anew.
    manifest = read_manifest(path)
    there = {name.removesuffix(".safetensors") for name in manifest.files}
    wanted = set(fragments.kinds) if moments else {"weights", BUFFERS} & set(fragments.kinds)
    missing = sorted(wanted - there)
    if missing and (not branch or not set(missing) <= set(fragments.averages.kinds)):
        raise InputError(
            f"checkpoint {path} has no {', '.join(missing)}, only {', '.join(sorted(there))}: an optimiser's state and its "
            "averages begin with a run or a branch, not in its midst"
        )
    # Each rank reads the whole tensors, one after another, and keeps its pieces: the file knows no ranks and no stages.
    for kind in ("weights", *sorted(wanted & there - {"weights"})):
        with safe_open(path / f"{kind}.safetensors", framework="pt") as file:
            if kind in fragments.named_state:
                fragments.load_by_name(kind, file.keys(), file.get_tensor)
            elif kind in (BUFFERS, CURVATURE):
                fragments.load_beside(kind, file.get_tensor)
            else:
                fragments.load(kind, file.get_tensor)
    # Averages that a branch asks for and its trunk had not begin here.
    for kind in set(fragments.averages.kinds) - (wanted & there):
        fragments.begin(kind)
        logger.info("%s begins at the weights of %s", kind, path)
    if left := sorted(there - wanted):
        logger.warning("%s: %s of the checkpoint are not used", path, ", ".join(left))
    if moments:
        fragments.optimizer_step = manifest.counters["optimizer_step"]
    # DeepSpeed would go on with its own copies of the old weights: they are made anew, and looked at.
    fragments.refresh()
    with safe_open(path / "weights.safetensors", framework="pt") as file:
        fragments.check_forward(file.get_tensor)
    return manifest.counters


def check(path: Path) -> None:
    """Compare every file with its hash, the ranks sharing them; collective. InputError on all ranks if one differs."""
    files = sorted(on_first_rank(lambda: read_manifest(path)).files.items())
    on_every_rank(lambda: check_files(path, dict(files[dist.get_rank() :: dist.get_world_size()])))


def newest(folder: Path) -> Path | None:
    """The newest complete and sound checkpoint under `folder`, the same for all ranks; None if there is none. Collective.

    A damaged one loses its manifest (to manifest.damaged.json), so that its step can be saved again; that is logged, and so
    is every folder of a later step that is no checkpoint.
    """
    # The first sound one from the end; rank 0 alone says which are there, for folders may look different elsewhere.
    while True:
        path = on_first_rank(lambda: max(complete(folder), key=step_of, default=None))
        if path is None:
            break
        try:
            check(path)
        except InputError as error:
            logger.warning("%s; it is set aside for the one before it", error)
            on_first_rank(lambda found=path: os.replace(found / MANIFEST, found / DAMAGED))
            continue
        break
    for other, why in on_first_rank(lambda: incomplete_after(folder, path)):
        logger.warning("%s %s: %s", other, why, f"{path.name} is used" if path else "no checkpoint is used")
    return path


def set_aside_after(folder: Path, step: int) -> None:
    """A run that goes back to `step` has no later checkpoints: their manifests are renamed, and a later save replaces them."""
    for path in complete(folder):
        if step_of(path) > step:
            logger.warning("%s lies after step %d and is set aside", path, step)
            os.replace(path / MANIFEST, path / SUPERSEDED)


def delete_old(folder: Path, config: CheckpointConfig, spared: int | None = None) -> None:
    """Delete what configs/cadence.py does not keep, manifests first; a failure is logged, no more. Rank 0 only. `spared`: a step
    that is kept for now."""
    for path in complete(folder)[: -(config.keep_last or 1)]:
        if is_kept(config, step_of(path)) or step_of(path) == spared:
            continue
        try:
            _remove(path)
        except OSError as error:
            logger.warning("%s could not be deleted: %s", path, error)


def _remove(path: Path) -> None:
    """Delete a checkpoint, its manifest first; of a link into another folder, the link alone."""
    if path.is_symlink():
        path.unlink()
        return
    (path / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(path)


def delete_unfinished(folder: Path) -> None:
    """Remove what a save that was killed left behind. For the folder's only writer."""
    for path in folder.glob(".step_*.tmp"):
        shutil.rmtree(path)


def _make_room(final: Path, work: Path) -> None:
    """Remove an unfinished save of the same step, and a checkpoint that is damaged or set aside, its manifest first."""
    if final.exists():
        logger.warning("%s %s, and is written again", final, why_incomplete(final) or "lies in the way")
        _remove(final)
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
        return _describe_on_disk(path)

    entries: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(entries, on_every_rank(write))
    return {path.name: entries[writer]}


def _publish(work: Path, final: Path, manifest: CheckpointManifest) -> None:
    write_text(work / MANIFEST, manifest.model_dump_json(indent=2) + "\n")
    os.replace(work, final)
    sync_folder(final.parent)


def _describe_on_disk(path: Path) -> File:
    """Size and hash of a file, which is on disk when this returns."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    return describe(path)
