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
from configs.schema import RunConfig
from engine.precision import autocast_dtype
from model.gpt import GPT

logger = logging.getLogger(__name__)


def build_model(config: RunConfig, eot: int | None, device: torch.device) -> GPT:
    """The network of a configuration, over data whose documents end with token `eot` (None: unknown); uninitialised."""
    assert eot is not None or config.data.cross_document_attention, "the plan refuses this"
    separate_at = None if config.data.cross_document_attention else eot
    autocast, compiled = autocast_dtype(config.precision), is_compiled(config, device)
    return GPT(config.model, autocast, separate_at, config.optim.z_loss, compiled, config.parallel.recompute)


def is_compiled(config: RunConfig, device: torch.device) -> bool:
    """Whether torch.compile is used (parallel.compile). InputError where it is asked for and something it needs is missing."""
    asked, compiler = config.parallel.compile, os.environ.get("CXX", "g++")
    missing = []
    if shutil.which(shlex.split(compiler)[0]) is None:
        missing.append(f"a C++ compiler ({compiler} is not on the path; CXX names one)")
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        missing.append("Python's headers (python3-dev)")
    if device.type == "cuda" and find_spec("triton") is None:
        missing.append("triton")
    if asked and missing:
        raise InputError(f"parallel.compile needs {' and '.join(missing)}; install it, or leave parallel.compile out")
    if asked is not None or device.type != "cuda" or config.model.dropout:
        return bool(asked)
    if missing:
        logger.warning("without %s the blocks are not compiled, and the run is slower", " and ".join(missing))
    return not missing
