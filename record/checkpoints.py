"""Checkpoints as records: their manifests, which are complete, which one an address (RUN@STEP) means. Needs no torch."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError, field_validator

from configs.errors import InputError
from record.files import plain_name, read_regular
from record.run import RunFolder

MANIFEST = "manifest.json"
# What a manifest is renamed to, so that its checkpoint is none any more, though its files stay.
DAMAGED, SUPERSEDED = "manifest.damaged.json", "manifest.superseded.json"
STEP = re.compile(r"step_[0-9]{1,15}")


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
    checksum: str = ""  # of all the rest, so that a damaged manifest is no manifest

    @field_validator("files")
    @classmethod
    def _stay_inside(cls, files: dict[str, File]) -> dict[str, File]:
        """No file of a checkpoint lies elsewhere than in its folder."""
        for name in files:
            plain_name(name)
        return files

    def sealed(self) -> CheckpointManifest:
        return self.model_copy(update={"checksum": self._sum()})

    def _sum(self) -> str:
        text = json.dumps(self.model_dump(mode="json", exclude={"checksum"}), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def intact(self) -> bool:
        return self.checksum == self._sum()

    @property
    def digest(self) -> str:
        """SHA-256 over step, counters and the files' hashes: what a run that starts from this checkpoint starts from.

        Without the counters of what was merely observed, whose cadence shall not decide who a branch is.
        """
        known = self.model_dump(
            mode="json", exclude={"experiment": True, "checksum": True, "counters": {"evaluated", "watch"}}
        )
        known["files"] = {name: file for name, file in known["files"].items() if not name.startswith("ema_")}
        text = json.dumps(known, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def read_manifest(path: Path) -> CheckpointManifest:
    """The manifest of a checkpoint. InputError if there is none or it cannot be read."""
    if why := _set_aside(path):
        raise InputError(f"{path} is not a complete checkpoint: it {why}")
    try:
        manifest = CheckpointManifest.model_validate_json(read_regular(path / MANIFEST))
    except FileNotFoundError:
        raise InputError(f"{path} is not a complete checkpoint: it has no {MANIFEST}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise InputError(
            f"{path} is not a complete checkpoint: its {MANIFEST} is none ({place} {first['msg']})"
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a complete checkpoint: {error}") from None
    if not manifest.intact:
        raise InputError(f"{path} is not a complete checkpoint: its {MANIFEST} is damaged")
    return manifest


def _set_aside(path: Path) -> str:
    if (path / MANIFEST).exists():
        return ""
    if (path / SUPERSEDED).exists():
        return "was set aside when the run went back to an earlier step (--resume must --step)"
    return "was found damaged and set aside" if (path / DAMAGED).exists() else ""


def step_of(path: Path) -> int:
    """The step that a checkpoint's folder is named for."""
    return int(path.name.removeprefix("step_"))


def numbered(folder: Path) -> list[Path]:
    """The folders named for a step, by step, whatever is in them."""
    named = [path for path in folder.glob("step_*") if path.is_dir() and STEP.fullmatch(path.name)]
    return sorted(named, key=step_of)


def why_incomplete(path: Path) -> str:
    """What keeps a folder from being a checkpoint, after the words "it" or its path; empty for one that is complete.

    Complete: there is a manifest, and every file at its full size. That the bytes are those that were saved is a longer
    look (engine/checkpoint.py).
    """
    if not (path / MANIFEST).exists():
        return _set_aside(path) or f"is incomplete: it has no {MANIFEST}"
    try:
        manifest = read_manifest(path)
    except InputError as error:
        return f"is damaged: {str(error).removeprefix(f'{path} is not a complete checkpoint: ')}"
    for name, file in manifest.files.items():
        if not (path / name).exists():
            return f"is damaged: {name} is missing"
        if not (path / name).is_file():
            return f"is damaged: {name} is not a file"
        if (size := (path / name).stat().st_size) != file.bytes:
            return f"is damaged: {name} has {size} bytes, not {file.bytes}"
    return ""


def complete(folder: Path) -> list[Path]:
    """Checkpoints whose manifest and files are there at their full size, oldest first."""
    return [path for path in numbered(folder) if not why_incomplete(path)]


def incomplete_after(folder: Path, path: Path | None) -> list[tuple[Path, str]]:
    """Folders of later steps than that of `path` (None: all) that are no checkpoints, and why: what the newest was taken for."""
    later = [other for other in numbered(folder) if path is None or step_of(other) > step_of(path)]
    return [(other, why) for other in later if (why := why_incomplete(other))]


def find(folder: Path, step: int | None) -> Path:
    """The complete checkpoint of `step`, or the newest. InputError if there is none, naming those there are."""
    found = complete(folder)
    wanted = [path for path in found if step is None or step_of(path) == step]
    if not wanted:
        names = ", ".join(str(step_of(path)) for path in found) or "none"
        asked = "" if step is None else f" of step {step}"
        others = [path for path in numbered(folder) if step is None or step_of(path) == step]
        why = "".join(f"; {path.name} {why_incomplete(path)}" for path in others[-1:])
        raise InputError(f"{folder} has no complete checkpoint{asked}; steps there: {names}{why}")
    return wanted[-1]


def find_address(address: str) -> Path:
    """The checkpoint that `RUN@STEP`, or `RUN` for its newest, means. InputError if there is none."""
    run, step = parse_address(address)
    return find(RunFolder(run).checkpoints, step)


def parse_address(address: str) -> tuple[Path, int | None]:
    """As `split_address`, of what somebody has typed. InputError if what follows the @ is neither a step nor part of a name."""
    folder, step = split_address(address)
    if step is None and "@" in address and not folder.exists():
        after = address.rpartition("@")[2]
        raise InputError(
            f"{address}: expected a number after @ (found {after[:40]!r}), or a run folder of that whole name"
        )
    return folder, step


def split_address(address: str) -> tuple[Path, int | None]:
    """`RUN@STEP` → (run folder, step); without @STEP the step is None."""
    folder, at, step = address.rpartition("@")
    return (Path(folder), int(step)) if at and step.isdecimal() and len(step) < 16 else (Path(address), None)
