"""Peak memory of this rank: of the device on CUDA, of the process on a CPU (libraries and mapped files included)."""

from __future__ import annotations

import re
from pathlib import Path

import torch


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
