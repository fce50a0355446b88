"""Which kernel attention takes in a run: of a bfloat16 study it is a factor, since each rounds in its own way (2510.04212)."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from configs.precision import TABLE
from configs.schema import RunConfig
from engine.precision import autocast_dtype
from model.gpt import Attention, document_mask

# The operators that torch's scaled_dot_product_attention hands over to; without one of them it multiplies and takes softmax.
KERNELS = {
    "aten::_scaled_dot_product_flash_attention": "flash",
    "aten::_scaled_dot_product_flash_attention_for_cpu": "flash_cpu",
    "aten::_scaled_dot_product_efficient_attention": "efficient",
    "aten::_scaled_dot_product_cudnn_attention": "cudnn",
}
SOFTMAX = {"aten::_softmax", "aten::_safe_softmax"}


def attention_kernel(config: RunConfig, micro_batch: int, device: torch.device) -> str:
    """flash, flash_cpu, efficient, cudnn or math; "unknown" where what ran is none of them.

    Read off one call of the model's own attention, with the shapes, dtypes, mask and dropout of a micro-step: torch chooses by
    them, by the device and by what was switched off in this process. Compiled blocks were seen to take the same kernel, on a CPU.
    """
    dtype = torch.bfloat16 if TABLE[config.precision].weights == "bfloat16" else torch.float32
    length = config.model.seq_len
    with torch.random.fork_rng([device] if device.type == "cuda" else []):  # dropout draws, and so do new weights
        attention = Attention(config.model).to(device, dtype)
        x = torch.zeros(micro_batch, length, config.model.n_embd, device=device, dtype=dtype, requires_grad=True)
        tokens = torch.zeros(micro_batch, length, device=device, dtype=torch.long)
        mask = None if config.data.cross_document_attention else document_mask(tokens, 0)
        autocast = autocast_dtype(config.precision)
        with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None), _Operators() as seen:
            attention(x, mask)
    return name_kernel(seen.names)


def name_kernel(operators: set[str]) -> str:
    """The kernel's name, from the names of all operators that an attention ran."""
    fused = {name for name in operators if "_scaled_dot_product_" in name and not name.endswith("_attention_math")}
    if len(fused) == 1:
        return KERNELS.get(fused.pop(), "unknown")
    return "math" if not fused and operators & SOFTMAX else "unknown"


class _Operators(TorchDispatchMode):
    """Notes the name of every operator that runs."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func._schema.name)
        return func(*args, **(kwargs or {}))
