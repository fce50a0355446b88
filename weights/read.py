"""Weights of a run, read outside of it: which checkpoint an address means, its tensors, and the model that they make.

Every file is compared with its hash before a tensor of it is used. One process, no DeepSpeed: checkpoints hold whole
tensors by name (engine/checkpoint.py), whatever the ZeRO stage and the number of ranks of the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from configs.errors import InputError
from configs.load import read_json, validate, with_absolute_data
from configs.precision import TABLE
from configs.schema import RunConfig
from data.any_manifest import AnyManifest, manifest_of
from engine.dtypes import set_matmul_precision
from engine.network import build_network
from model.classifier import Classifier
from model.gpt import GPT
from record.checkpoint_manifest import BUFFERS, SUFFIX, verify
from record.checkpoint_manifest import read_manifest as read_checkpoint
from record.checkpoints import find, find_sound, parse_address, step_of
from record.run import RunFolder


@dataclass(frozen=True)
class Chosen:
    """One checkpoint of a run, or several whose mean is meant. Their files have been compared with their hashes.

    `left_out`: newer checkpoints that are no sound ones, each with the reason.
    """

    run: RunFolder
    paths: list[Path]
    left_out: list[tuple[Path, str]]

    @property
    def steps(self) -> list[int]:
        return [step_of(path) for path in self.paths]

    def tensors(self, kind: str = "weights") -> dict[str, Tensor]:
        """As `mean_tensors` of these checkpoints. InputError if one lacks this kind."""
        return mean_tensors(self.paths, kind, verified=True)

    def buffers(self) -> dict[str, Tensor]:
        """What the network has beside its weights; of several checkpoints that of the last. Empty where there is nothing."""
        has_some = BUFFERS in read_checkpoint(self.paths[-1]).kinds
        return load_file(self.paths[-1] / f"{BUFFERS}{SUFFIX}") if has_some else {}


def choose(address: str, steps: Sequence[int] = ()) -> Chosen:
    """The checkpoint that `RUN@STEP` means; of `RUN` its newest sound one, or those of `steps`. InputError if there is none."""
    run, step = parse_address(address)
    return choose_in(RunFolder(run), step, steps)


def choose_in(run: RunFolder, step: int | None, steps: Sequence[int] = ()) -> Chosen:
    """As `choose`, of a run folder and a step (None: the newest sound one)."""
    if steps:
        paths = [find(run.checkpoints, each) for each in steps]
        for path in paths:
            verify(path)
        return Chosen(run, paths, [])
    path, left_out = find_sound(run.checkpoints, step)
    return Chosen(run, [path], left_out)


def read_tensors(path: Path, kind: str = "weights", verified: bool = False) -> dict[str, Tensor]:
    """Whole tensors by name, float32, of a checkpoint's `weights` or of an average (`ema_0.99`). InputError if absent or damaged.

    `verified`: the files have just been compared with their hashes, which takes as long as reading them.
    """
    kinds = [name for name in read_checkpoint(path).kinds if name.startswith(("weights", "ema_"))]
    if kind not in kinds:
        raise InputError(f"{path} has no {kind}; there are {', '.join(kinds)}")
    if not verified:
        verify(path)
    return {name: tensor.float() for name, tensor in load_file(path / f"{kind}{SUFFIX}").items()}


def mean_tensors(paths: Sequence[Path], kind: str = "weights", verified: bool = False) -> dict[str, Tensor]:
    """The mean of one kind over checkpoints: summed in float64, returned in float32. Raises and `verified` as `read_tensors`."""
    if len(paths) == 1:  # the same numbers, without a copy in float64
        return read_tensors(paths[0], kind, verified)
    total: dict[str, Tensor] = {}
    for path in paths:
        for name, tensor in read_tensors(path, kind, verified).items():
            total[name] = total.get(name, 0) + tensor.double()
    return {name: (tensor / len(paths)).float() for name, tensor in total.items()}


def config_with_data(folder: RunFolder, data: Path | None = None) -> tuple[RunConfig, AnyManifest]:
    """A run's configuration, over its data where that lies now (`data`; None: where the run says), and the data's manifest.

    InputError if no prepared data lies there, or other data than the run was trained on.
    """
    config = validate(read_json(folder.config), str(folder.config))
    if data is not None:
        config = config.model_copy(update={"data": config.data.model_copy(update={"path": str(data)})})
    config = with_absolute_data(config)
    manifest = manifest_of(config)
    if manifest is None:
        named_by = "" if data is not None else f", which {folder.config} names"
        raise InputError(f"no prepared data in {config.data.path}{named_by}; say with --data DIR where it lies now")
    folder.check_data(manifest.digest, config.data.path)
    return config, manifest


def build_loaded(
    config: RunConfig, manifest: AnyManifest, weights: dict[str, Tensor], device: torch.device
) -> GPT | Classifier:
    """The run's model with these weights, in the run's precision, ready to evaluate. InputError if they are those of another.

    `manifest`: of its data. `weights`: of a network for images the buffers too. They are cast to the dtype that the forward pass
    uses; what the precision says of matrix products is set for the whole process.
    """
    set_matmul_precision(config.precision, device)
    model = build_network(config, manifest, device).eval()
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(f"the weights are not those of the run's model: {error}") from None
    return model.to(device, getattr(torch, TABLE[config.precision].weights))


def choose_device() -> torch.device:
    """The device on which weights are looked at: the first CUDA device, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
