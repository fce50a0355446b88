"""The peak memory of this rank: of the device on CUDA, of the whole process on a CPU.

On a CPU that includes libraries and mapped files, such as the token shards.
"""

from __future__ import annotations

import ctypes
import logging
import os
import re
import resource
import sys
from functools import lru_cache
from pathlib import Path

import torch

logger = logging.getLogger(__name__)
CLEAR_REFS, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")  # Linux; a container may forbid the first
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # malloc.h


def keep_freed_memory() -> bool:
    """Let glibc's malloc keep the memory that is freed, and use it again. Returns False where there is nothing to set.

    By default glibc maps every large tensor anew and gives it back, and the kernel zeroes its pages each time (docs/speed.md).
    Other C libraries have no mallopt.
    """
    # Who set these variables has chosen, and malloc has read them already.
    if any(name.startswith("MALLOC_MMAP_") for name in os.environ):
        return True
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    settings = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1, M_TOP_PAD: 1 << 28}  # nothing mapped, nothing given back
    return mallopt is not None and all(mallopt(option, value) for option, value in settings.items())


def forget_peak(device: torch.device) -> None:
    """Start measuring anew, where the system allows it; where it does not, that is said once."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        try:
            CLEAR_REFS.write_text("5")  # sets VmHWM back to what is resident now
        except OSError as error:
            _say_once(f"the peak of memory cannot be set back here ({error}): it counts from the process's start")


def peak_bytes(device: torch.device) -> int:
    """The peak since forget_peak, or since the process began where that could not set it back."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # The largest resident size so far, which Linux alone can set back.
    peak = re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text()) if STATUS.exists() else None
    if peak is not None:
        return int(peak[1]) * 1024
    # Every other Unix: kilobytes, on macOS bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@lru_cache
def _say_once(text: str) -> None:
    logger.info(text)
