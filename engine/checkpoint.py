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
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from engine.fragments import Fragments
from optim.adamw import MOMENTS
from record.files import sync_folder, write_json

KINDS = ("weights", *MOMENTS)
MANIFEST = "manifest.json"


def save(folder: Path, step: int, fragments: Fragments, counters: dict[str, Any], experiment: dict[str, Any]) -> Path:
    """Write checkpoint `step` under `folder`; collective. Ranks share the files between them.

    Returns its path. Where a rank fails (a full disk), nothing stays behind and every rank raises OSError.
    """
    final, work = folder / f"step_{step:08d}", folder / f".step_{step:08d}.tmp"
    if _on_first_rank(lambda: (final / MANIFEST).exists()):
        return final
    _on_first_rank(lambda: (shutil.rmtree(final, True), shutil.rmtree(work, True), work.mkdir(parents=True)))
    files: dict[str, Any] = {}
    problem = ""
    for index, kind in enumerate(KINDS):
        writer = index % dist.get_world_size()
        tensors = fragments.gather(kind, to=writer)
        if tensors is not None:
            try:
                path = work / f"{kind}.safetensors"
                save_file(tensors, path)
                files[path.name] = _describe(path)
            except (OSError, SafetensorError) as error:
                problem = f"rank {dist.get_rank()} cannot write {path}: {error}"
    shares: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(shares, (files, problem))
    problems = [found for _, found in shares if found]
    if problems:
        _on_first_rank(lambda: shutil.rmtree(work, True))
        raise OSError("; ".join(problems))
    manifest = {
        "format": 1,
        "step": step,
        "counters": {**counters, "optimizer_step": fragments.optimizer_step},
        "experiment": experiment,
        "files": dict(sorted(entry for share, _ in shares for entry in share.items())),
    }
    _on_first_rank(lambda: _publish(work, final, manifest))
    return final


def load(path: Path, fragments: Fragments) -> dict[str, Any]:
    """Read a checkpoint into the live engine; collective. Returns its manifest's counters.

    Every file's hash is checked, and afterwards that the forward pass sees the loaded weights.
    """
    manifest = read_manifest(path)
    ranks, rank = dist.get_world_size(), dist.get_rank()
    mine = [name for index, name in enumerate(sorted(manifest["files"])) if index % ranks == rank]
    damaged = [name for name in mine if _describe(path / name) != manifest["files"][name]]
    shares: list[Any] = [None] * ranks
    dist.all_gather_object(shares, damaged)
    if any(shares):
        names = ", ".join(name for share in shares for name in share)
        raise ValueError(
            f"checkpoint {path} is damaged: {names} differs from its manifest; delete it to resume from an older one"
        )
    for kind in KINDS:
        with safe_open(path / f"{kind}.safetensors", framework="pt") as file:
            fragments.load(kind, file.get_tensor)
    fragments.optimizer_step = manifest["counters"]["optimizer_step"]
    fragments.refresh()
    with safe_open(path / "weights.safetensors", framework="pt") as file:
        fragments.check_forward(file.get_tensor)
    return dict(manifest["counters"])


def newest(folder: Path) -> Path | None:
    """The newest complete checkpoint under `folder`, chosen by rank 0 for all; None if there is none."""
    chosen: Path | None = _on_first_rank(lambda: max(complete(folder), default=None))
    return chosen


def complete(folder: Path) -> list[Path]:
    """Checkpoints whose manifest and files are there at their full size, oldest first."""
    found = []
    for path in sorted(folder.glob("step_*")):
        try:
            files = read_manifest(path)["files"]
        except ValueError:
            continue
        if all(
            (path / name).is_file() and (path / name).stat().st_size == entry["bytes"] for name, entry in files.items()
        ):
            found.append(path)
    return found


def delete_old(folder: Path, keep_last: int | None) -> None:
    """Delete all but the newest `keep_last` checkpoints: their manifest first. Rank 0 only."""
    if keep_last is not None:
        for path in complete(folder)[:-keep_last]:
            (path / MANIFEST).unlink()
            shutil.rmtree(path)


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint. ValueError if there is none or it cannot be read."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        manifest["files"], manifest["counters"], manifest["step"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a complete checkpoint: {error}") from None
    return dict(manifest)


def _publish(work: Path, final: Path, manifest: dict[str, Any]) -> None:
    write_json(work / MANIFEST, manifest)
    os.replace(work, final)
    sync_folder(final.parent)


def _describe(path: Path) -> dict[str, Any]:
    """Size and hash of a file, which is on disk when this returns."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _on_first_rank(act: Callable[[], Any]) -> Any:
    """Run `act` on rank 0 and give its result to every rank; an error is raised on every rank."""
    outcome: list[Any] = [None, ""]
    if dist.get_rank() == 0:
        try:
            outcome[0] = act()
        except (OSError, ValueError) as error:
            outcome[1] = str(error)
    dist.broadcast_object_list(outcome, src=0)
    if outcome[1]:
        raise OSError(outcome[1])
    return outcome[0]
