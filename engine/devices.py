"""Whether a CUDA device can be here, and how large it is, told without the seconds that importing torch takes."""

from __future__ import annotations

import ctypes
import os
from importlib import metadata


def no_cuda() -> str:
    """Why torch cannot find a CUDA device in this process; empty where it may, which only torch itself can tell."""
    # The version's suffix says what torch was built for. A dry run needs no torch.
    try:
        build = metadata.version("torch").partition("+")[2]  # 2.13.0+cpu, 2.13.0+cu130, or 2.13.0 alone
    except metadata.PackageNotFoundError:
        return "torch is not installed here"
    if build == "cpu":
        return "this torch is built for CPUs only"
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return "CUDA_VISIBLE_DEVICES shows none"
    # ROCm's devices are "cuda" to torch, and have another driver.
    if build.startswith("rocm"):
        return ""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "this machine has no NVIDIA driver (libcuda.so.1)"
    return ""


def device_bytes() -> int | None:
    """The memory of the smallest GPU that this process is shown, None where there is none.

    Asked of NVIDIA's driver, which obeys CUDA_VISIBLE_DEVICES. A GPU of another maker counts as none here, and its runs plan
    with batch.memory_gib's number for CPUs, unless one is given.
    """
    if no_cuda():
        return None
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        count, sizes = ctypes.c_int(), list[int]()
        if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
            return None
        for index in range(count.value):
            device, size = ctypes.c_int(), ctypes.c_size_t()
            if driver.cuDeviceGet(ctypes.byref(device), index):
                return None
            if driver.cuDeviceTotalMem_v2(ctypes.byref(size), device):
                return None
            sizes.append(size.value)
    except (OSError, AttributeError):  # no such driver, or one that lacks these calls
        return None
    return min(sizes, default=None)


def not_here(precision: str) -> str:
    """Why this machine cannot run a precision; empty where it may. engine/dtypes.py looks again, at the device itself."""
    reason = no_cuda() if precision == "tf32" else ""
    return f"precision tf32 needs a CUDA device, and {reason}" if reason else ""
