"""The network of a configuration, and whether it is compiled."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import torch

from configs.errors import InputError
from configs.images import ImageModel
from configs.schema import RunConfig
from data.any_manifest import AnyManifest
from data.manifest import Manifest
from engine.documents_apart import takes_blocks
from engine.dtypes import autocast_dtype
from model.classifier import Classifier
from model.gpt import GPT

logger = logging.getLogger(__name__)


def build_model(config: RunConfig, eot: int | None, device: torch.device) -> GPT:
    """The network of a configuration, its weights not yet set. `eot`: the token that ends the data's documents (None: unknown)."""
    assert eot is not None or config.text.cross_document_attention, "the plan refuses this"
    # Attention stays within a document only where the configuration says so; the token then marks where one ends.
    separate_at = None if config.text.cross_document_attention else eot
    autocast, compiled = autocast_dtype(config.precision), is_compiled(config, device)
    network = GPT(config.gpt, autocast, separate_at, config.optim.z_loss, compiled, config.parallel.recompute)
    network.by_blocks = takes_blocks(config, compiled, device)
    return network


def build_network(config: RunConfig, manifest: AnyManifest, device: torch.device) -> GPT | Classifier:
    """The network of a run on this data."""
    if isinstance(manifest, Manifest):
        return build_model(config, manifest.eot, device)
    assert isinstance(config.model, ImageModel)
    return Classifier(config.model, manifest.mean, manifest.deviation, autocast_dtype(config.precision))


def is_compiled(config: RunConfig, device: torch.device) -> bool:
    """Whether torch.compile is used (parallel.compile). InputError if the configuration asks for it and its tools are missing."""
    setting, compiler = config.parallel.compile, os.environ.get("CXX", "").strip() or "g++"
    # torch would find out in the first update, after minutes, and say so in a long traceback. So it is looked at here.
    missing = []
    if shutil.which(shlex.split(compiler)[0]) is None:
        missing.append(f"a C++ compiler ({compiler} is not on the path; CXX names one)")
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        missing.append("Python's headers (python3-dev)")
    if device.type == "cuda" and find_spec("triton") is None:
        missing.append("triton")
    if setting and missing:
        raise InputError(f"parallel.compile needs {' and '.join(missing)}; install it, or leave parallel.compile out")
    # What the configuration says counts. Left open (null), it is compiled on CUDA only, and never with dropout: compiled
    # dropout draws other random numbers.
    if setting is not None or device.type != "cuda" or config.gpt.dropout:
        return bool(setting)
    if missing:
        logger.warning("without %s the blocks are not compiled, and the run is slower", " and ".join(missing))
    return not missing
