"""How many sequences a device takes at once, and the memory that this follows from."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
import torch.distributed as dist

from configs.cost import GIB, activation_bytes, state_bytes
from configs.errors import InputError
from configs.load import load_config
from configs.micro_batch import activation_room
from configs.plan import make_plan
from configs.render import render_plan
from configs.schema import RunConfig
from engine import devices
from record.run import RunFolder
from tests.ranks import run_ranks
from train import join_world

PAPER = Path(__file__).parent.parent / "configs" / "gpt124m_wd0.1.json"
H100 = 85_029_158_912  # bytes that the driver names


def test_follows_the_device() -> None:
    """Breaks if a large GPU is left empty, a small one is overfilled, a given bound does not win, or the plan does not say
    what its choice follows from."""
    config, _ = load_config(PAPER, ["batch.tokens_per_step=1048576"])
    chosen = {size: make_plan(config, 1, None, device_bytes=size) for size in (None, 8 * GIB, 24 * GIB, H100)}
    assert [plan.micro_batch for plan in chosen.values()] == [64, 32, 128, 512]
    for size, plan in chosen.items():
        room, words = activation_room(config, 1, size)
        assert activation_bytes(config, plan.micro_batch) <= room < activation_bytes(config, plan.micro_batch * 2)
        assert words in plan.micro_batch_from
        assert words in render_plan(config, plan)
        assert size is None or state_bytes(config, 1) + room < 0.9 * size
        assert plan.run_id == chosen[None].run_id
    given, _ = load_config(PAPER, ["batch.tokens_per_step=1048576", "batch.memory_gib=8"])
    assert make_plan(given, 1, None, device_bytes=H100).micro_batch == chosen[None].micro_batch


def test_too_small_a_device() -> None:
    """Breaks if a plan that cannot fit a GPU says nothing, or one that fits warns."""
    config, _ = load_config(PAPER)
    small = make_plan(config, 1, None, device_bytes=2 * GIB)
    assert (small.micro_batch, small.micro_batch_from[:21]) == (1, "1, which does not fit")
    assert "run out of memory" in small.cautions[-1]
    large, _ = load_config(PAPER, ["batch.micro_batch=256"])
    assert "run out of memory" in make_plan(large, 1, None, device_bytes=8 * GIB).cautions[-1]
    assert not make_plan(config, 1, None, device_bytes=H100).cautions
    # what is held for a moment beside the activations counts where it is more than they are
    moved, _ = load_config(PAPER, ["optim.decay_rule=hyperball", "optim.weight_decay=0", "batch.micro_batch=1"])
    needed = (plan := make_plan(moved, 1, None, device_bytes=H100)).state_bytes + plan.activation_bytes
    assert plan.activation_bytes > activation_bytes(moved, 1)
    assert make_plan(moved, 1, None, device_bytes=needed).cautions == plan.cautions
    said = make_plan(moved, 1, None, device_bytes=needed - 1).cautions[-1]
    assert "run out of memory; set a higher parallel.zero_stage" in said
    assert "micro_batch" not in said, "a smaller one would change nothing"


def test_noise_scale_leaves_two_micro_batches(tiny_config: Callable[..., RunConfig]) -> None:
    """Breaks if a larger GPU makes an error of a run that measures the noise scale between micro-batches."""
    noisy = tiny_config({"batch": {"micro_batch": None}, "log": {"noise_scale": True}})
    assert make_plan(noisy, 1, None, device_bytes=H100).micro_batch == 4
    assert make_plan(tiny_config({"batch": {"micro_batch": None}}), 1, None, device_bytes=H100).micro_batch == 8


DRIVER = """
int cuInit(unsigned flags) { return flags; }
int cuDeviceGetCount(int *count) { *count = 2; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = 40 + ordinal; return 0; }
int cuDeviceTotalMem_v2(unsigned long *bytes, int device) { *bytes = device == 41 ? 5000000000ul : 85000000000ul; return 0; }
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_memory_as_the_driver_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if the driver's calls are not made as cuda.h declares them, the smallest of several GPUs is not taken, or a
    machine without one ends in an error. (That the real driver says the same as torch is for tests/test_gpu.py.)"""
    (tmp_path / "driver.c").write_text(DRIVER)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / "libcuda.so.1", tmp_path / "driver.c"], check=True)
    monkeypatch.setattr(devices, "no_cuda", lambda: "")
    load, paths = ctypes.CDLL, {"libcuda.so.1": str(tmp_path / "libcuda.so.1")}
    monkeypatch.setattr(devices.ctypes, "CDLL", lambda name: load(paths.get(name, name)))
    assert devices.device_bytes() == 5_000_000_000
    paths["libcuda.so.1"] = str(tmp_path / "none.so")
    assert devices.device_bytes() is None


def test_a_machine_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if a dry run where torch is not installed ends in a traceback."""

    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(devices.metadata, "version", version)
    assert devices.device_bytes() is None
    assert devices.not_here("tf32") == "precision tf32 needs a CUDA device, and torch is not installed here"


def join_differently(config: RunConfig, folder: Path) -> str:
    """What a rank says whose plan has another micro-batch than the other's."""
    plan = replace(make_plan(config, 2, None), micro_batch=1 + int(os.environ["RANK"]))
    try:
        join_world(config, plan, RunFolder(folder))
    except InputError as error:
        return str(error)
    finally:
        dist.destroy_process_group()
    return ""


@pytest.mark.engine
def test_ranks_that_would_differ(tiny_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    """Breaks if ranks on GPUs of different size each take a micro-batch of their own, and wait for each other for ever."""
    for text in run_ranks(2, join_differently, tiny_config(), tmp_path):
        assert "micro-batches of 1 and 2; set batch.micro_batch" in text
