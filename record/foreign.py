"""Weights that no run of ours wrote: a folder of Hugging Face, or a checkpoint of nanoGPT. Needs no torch.

Hugging Face: config.json with model.safetensors, or with the pieces that model.safetensors.index.json names. nanoGPT: ckpt.pt, or
a folder that holds it. Tensors are read in engine/foreign_tensors.py.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from configs.errors import InputError
from configs.foreign_shape import Shape, shape_of_hf
from record.files import plain_name, read_object

CONFIG, TENSORS, INDEX, NANOGPT = "config.json", "model.safetensors", "model.safetensors.index.json", "ckpt.pt"


@dataclass(frozen=True)
class Foreign:
    """`kind` is hf or nanogpt; `files` hold the tensors."""

    path: Path
    kind: str
    files: tuple[Path, ...]

    @property
    def digest(self) -> str:
        """SHA-256 over what decides the network: the configuration, and every file of tensors. Reads them whole."""
        whole = hashlib.sha256()
        for path in (self.path / CONFIG, *self.files) if self.kind == "hf" else self.files:
            with path.open("rb") as file:
                whole.update(hashlib.file_digest(file, "sha256").digest())
        return whole.hexdigest()

    @property
    def shape(self) -> Shape | None:
        """Of a folder of Hugging Face, by our fields; None of nanoGPT, whose checkpoint only torch reads."""
        return shape_of_hf(read_object(self.path / CONFIG), str(self.path / CONFIG)) if self.kind == "hf" else None


def find_foreign(address: str | Path) -> Foreign | None:
    """What `address` names, if it is of one of the two kinds; None for everything else, a run folder above all.

    InputError for a folder of a model whose tensors are in no file that is read.
    """
    path = Path(address)
    is_hf = (path / CONFIG).is_file() and "model_type" in read_object(path / CONFIG)
    for checkpoint in (path, path / NANOGPT):
        if checkpoint.suffix == ".pt" and checkpoint.is_file():
            if is_hf:
                raise InputError(
                    f"{path} holds a model of Hugging Face and {NANOGPT} too; name {checkpoint}, or move it away"
                )
            return Foreign(path, "nanogpt", (checkpoint,))
    if not is_hf:
        return None
    return Foreign(path, "hf", _tensor_files(path))


def _tensor_files(path: Path) -> tuple[Path, ...]:
    if (path / TENSORS).is_file():
        return (path / TENSORS,)
    if not (path / INDEX).is_file():
        pickles = sorted(each.name for each in path.glob("*.bin"))
        instead = f"; {pickles[0]} is a pickle, which is not read: save it with safe_serialization" if pickles else ""
        raise InputError(f"{path} has neither {TENSORS} nor {INDEX}{instead}")
    places = read_object(path / INDEX).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(place, str) for place in places.values()):
        raise InputError(f"{path / INDEX} has no weight_map of names to files")
    files = tuple(path / plain_name(place) for place in sorted(set(places.values())))
    if missing := [file.name for file in files if not file.is_file()]:
        raise InputError(f"{path} lacks {', '.join(missing)}, which {INDEX} names")
    return files
