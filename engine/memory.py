"""Memory of this rank: its peak, of the device on CUDA, of the process on a CPU (libraries and mapped files included)."""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path

import torch

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # malloc.h


def keep_freed_memory() -> bool:
    """Let glibc's malloc keep what is freed, unless the environment says when it is to map (MALLOC_MMAP_…).

    By default it maps every large tensor anew and gives it back, and the kernel zeroes its pages each time (docs/speed.md).
    False where there is nothing to set: other C libraries have no mallopt.
    """
    if any(name.startswith("MALLOC_MMAP_") for name in os.environ):
        return True
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    wanted = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1, M_TOP_PAD: 1 << 28}  # nothing mapped, nothing given back
    return mallopt is not None and all(mallopt(option, value) for option, value in wanted.items())


def forget_peak(device: torch.device) -> None:
    """Start measuring anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to what is resident now


def peak_bytes(device: torch.device) -> int:
    """The peak since forget_peak."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024
