"""One checkpoint: its manifest, and whether its files are those that were saved. Needs no torch.

A checkpoint is a folder. It counts as one when its manifest is there, is intact, and every file has its full size
(`state_of`). That takes no time. Whether the bytes are those that were saved is seen by hashing them (`verify`), which
takes about as long as reading the files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError, field_validator
from safetensors import SafetensorError, safe_open

from configs.errors import InputError
from record.files import plain_name, read_regular

MANIFEST = "manifest.json"
# What a manifest is renamed to, so that its checkpoint is none any more, though its files stay.
DAMAGED, SUPERSEDED = "manifest.damaged.json", "manifest.superseded.json"
SUFFIX = ".safetensors"  # of the file that holds one kind of tensor: weights, exp_avg, ema_0.99, …
# A kind of what is no parameter: running statistics of batch normalisation, a head that is not trained.
BUFFERS = "buffers"
CURVATURE = "curvature"  # K-FAC's factors and their inverses, by layer

CheckpointState = Literal["complete", "incomplete", "damaged", "set aside"]


class File(BaseModel):
    """What a manifest says of one file."""

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
        content = self.model_dump(
            mode="json", exclude={"experiment": True, "checksum": True, "counters": {"evaluated", "watch"}}
        )
        content["files"] = {name: file for name, file in content["files"].items() if not name.startswith("ema_")}
        text = json.dumps(content, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def kinds(self) -> list[str]:
        """The kinds of tensor that it has a file of: weights, the optimiser's moments, averages."""
        return [name.removesuffix(SUFFIX) for name in self.files if name.endswith(SUFFIX)]


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
    """Why the manifest was renamed, so that the folder is no checkpoint any more; empty if it was not."""
    if (path / MANIFEST).exists():
        return ""
    if (path / SUPERSEDED).exists():
        return "was set aside when the run went back to an earlier step (--resume must --step)"
    return "was found damaged and set aside" if (path / DAMAGED).exists() else ""


def state_of(path: Path) -> tuple[CheckpointState, str]:
    """How far a folder is a checkpoint; and if it is not complete, why, after the words "it" or its path.

    Complete: there is a manifest, and every file has its full size. That the bytes are those that were saved is a longer
    look (`verify`).
    """
    if not (path / MANIFEST).exists():
        why = _set_aside(path)
        state: CheckpointState = "set aside" if (path / SUPERSEDED).exists() else "damaged"
        return (state, why) if why else ("incomplete", f"is incomplete: it has no {MANIFEST}")
    try:
        manifest = read_manifest(path)
    except InputError as error:
        return "damaged", f"is damaged: {str(error).removeprefix(f'{path} is not a complete checkpoint: ')}"
    for name, file in manifest.files.items():
        if not (path / name).exists():
            return "damaged", f"is damaged: {name} is missing"
        if not (path / name).is_file():
            return "damaged", f"is damaged: {name} is not a file"
        if (size := (path / name).stat().st_size) != file.bytes:
            return "damaged", f"is damaged: {name} has {size} bytes, not {file.bytes}"
    return "complete", ""


def why_incomplete(path: Path) -> str:
    """What keeps a folder from being a complete checkpoint, as in `state_of`; empty for one that is complete."""
    return state_of(path)[1]


def describe(path: Path) -> File:
    """Size and hash of a file, as a manifest says them."""
    with open(path, "rb") as file:
        return File(bytes=path.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())


def check_files(path: Path, files: Mapping[str, File]) -> None:
    """Compare these files of the checkpoint in `path` with their hashes. InputError for the first that differs."""
    for name, file in files.items():
        if describe(path / name) != file:
            raise InputError(f"checkpoint {path} is damaged: {name} differs from its manifest")
        try:
            with safe_open(path / name, framework="numpy"):  # reads the header alone; torch is not needed for it
                pass
        except (SafetensorError, OSError) as error:  # its hash fits, so it was never one
            raise InputError(f"checkpoint {path} is damaged: {name} is no safetensors file ({error})") from None


def verify(path: Path) -> None:
    """Compare every file of a checkpoint with its hash. InputError if it is not complete, or a file differs."""
    check_files(path, read_manifest(path).files)


def why_unsound(path: Path) -> str:
    """What keeps a folder from being a sound checkpoint, its files' bytes included, as in `state_of`; empty for a sound one."""
    if why := why_incomplete(path):
        return why
    try:
        verify(path)
    except (InputError, OSError) as error:
        return str(error).removeprefix(f"checkpoint {path} ")
    return ""
