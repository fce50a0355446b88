"""A precision label made real, and read back off the live engine."""

from __future__ import annotations

import torch

from configs.errors import InputError
from configs.precision import TABLE


def autocast_dtype(precision: str) -> torch.dtype | None:
    """The dtype for autocast inside the model's forward: bf16-mixed only."""
    return torch.bfloat16 if precision == "bf16-mixed" else None


def set_matmul_precision(precision: str, device: torch.device) -> None:
    """TF32 on for `tf32`, off for everything else, through torch's one newer switch.

    Raises InputError for tf32 off CUDA, where it would be a label without a meaning.
    """
    if precision == "tf32" and device.type != "cuda":
        raise InputError(f"precision tf32 needs a CUDA device, this run is on {device.type}; use fp32 or bf16-mixed")
    torch.backends.fp32_precision = "tf32" if precision == "tf32" else "ieee"


def check_dtypes(precision: str, seen: dict[str, str]) -> None:
    """Compare dtypes read off the engine with the table. RuntimeError lists every one that differs."""
    expected = TABLE[precision].as_dict()
    wrong = [
        f"{key} is {dtype}, expected {expected[key]}"
        for key, dtype in seen.items()
        if _kind(dtype) != _kind(expected[key])
    ]
    if wrong:
        raise RuntimeError(f"precision {precision} is not what the engine does: {'; '.join(wrong)}")


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _kind(name: str) -> str:
    """tensorfloat32 is how float32 operands are multiplied: the tensors themselves are float32."""
    return "float32" if name == "tensorfloat32" else name
