"""A precision label made real, and read back off the live engine."""

from __future__ import annotations

import torch

from configs.errors import InputError
from configs.precision import TABLE


def autocast_dtype(precision: str) -> torch.dtype | None:
    """The dtype of autocast inside the model's forward pass; None without autocast. Only bf16-mixed uses it.

    The other bfloat16 precisions cast the weights themselves, which DeepSpeed does.
    """
    return torch.bfloat16 if precision == "bf16-mixed" else None


def set_matmul_precision(precision: str, device: torch.device) -> None:
    """Switch TF32 on for `tf32` and off for every other precision. Raises InputError for `tf32` on a CPU, which has none."""
    if precision == "tf32" and device.type != "cuda":
        raise InputError(f"precision tf32 needs a CUDA device, this run is on {device.type}; use fp32 or bf16-mixed")
    # torch has older switches for the same thing (allow_tf32). Where both kinds are used it raises.
    torch.backends.fp32_precision = "tf32" if precision == "tf32" else "ieee"


def check_dtypes(precision: str, seen: dict[str, str]) -> None:
    """Compare dtypes read off the live engine with the table. RuntimeError lists every one that differs.

    It is no InputError: the user asked for a precision that exists, and DeepSpeed does something else.
    """
    expected = TABLE[precision].as_dict()
    # All that differ, not the first: together they show which precision it is that DeepSpeed runs in truth.
    wrong = [
        f"{key} is {dtype}, expected {expected[key]}"
        for key, dtype in seen.items()
        if _kind(dtype) != _kind(expected[key])
    ]
    if wrong:
        raise RuntimeError(f"precision {precision} is not what the engine does: {'; '.join(wrong)}")


def dtype_name(dtype: torch.dtype) -> str:
    """`float32`, as in the table, for torch.float32."""
    return str(dtype).removeprefix("torch.")


def _kind(name: str) -> str:
    """The dtype of a tensor: `tensorfloat32` says how float32 operands are multiplied, and the tensors are float32."""
    return "float32" if name == "tensorfloat32" else name
