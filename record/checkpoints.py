"""Checkpoints as records: their manifests, which are complete, which one a reference means. Needs no torch."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from record.run import RunFolder

MANIFEST = "manifest.json"


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
    """The manifest of a checkpoint. ValueError if there is none or it cannot be read."""
    try:
        manifest = CheckpointManifest.model_validate_json((path / MANIFEST).read_bytes())
    except (OSError, ValidationError) as error:
        raise ValueError(f"{path} is not a complete checkpoint: {error}") from None
    if not manifest.intact:
        raise ValueError(f"{path} is not a complete checkpoint: its manifest is damaged")
    return manifest


def step_of(path: Path) -> int:
    """The step that a checkpoint's folder is named for."""
    return int(path.name.removeprefix("step_"))


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


def find(folder: Path, step: int | None) -> Path:
    """The complete checkpoint of `step`, or the newest. ValueError if there is none, naming those there are."""
    found = complete(folder)
    wanted = [path for path in found if step is None or step_of(path) == step]
    if not wanted:
        names = ", ".join(str(step_of(path)) for path in found) or "none"
        asked = "" if step is None else f" of step {step}"
        raise ValueError(f"{folder} has no complete checkpoint{asked}; steps there: {names}")
    return wanted[-1]


def find_reference(text: str) -> Path:
    """The checkpoint that `RUN@STEP`, or `RUN` for its newest, means. ValueError if there is none."""
    run, step = parse_reference(text)
    return find(RunFolder(run).checkpoints, step)


def parse_reference(text: str) -> tuple[Path, int | None]:
    """`RUN@STEP` → (run folder, step); without @STEP the step is None."""
    folder, at, step = text.rpartition("@")
    return (Path(folder), int(step)) if at and step.isdecimal() else (Path(text), None)
