"""Which kernel attention takes in a run.

Each kernel rounds in its own way, so in a bfloat16 study the kernel is a factor of its own (2510.04212). It is recorded.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from configs.precision import TABLE
from configs.schema import RunConfig
from engine.dtypes import autocast_dtype
from model.attention import Attention, Rotary
from model.within_documents import document_mask

# The operators that torch's scaled_dot_product_attention hands over to. If it uses none of them, it multiplies and takes
# the softmax itself ("math").
KERNELS = {
    "aten::_scaled_dot_product_flash_attention": "flash",
    "aten::_scaled_dot_product_flash_attention_for_cpu": "flash_cpu",
    "aten::_scaled_dot_product_efficient_attention": "efficient",
    "aten::_scaled_dot_product_cudnn_attention": "cudnn",
}
SOFTMAX = {"aten::_softmax", "aten::_safe_softmax"}


def attention_kernel(config: RunConfig, micro_batch: int, device: torch.device, by_blocks: bool = False) -> str | None:
    """The kernel's name: flash, flash_cpu, efficient, cudnn, flex, math or stable; "unknown" if what ran is none of them. Of
    images None. `by_blocks`: documents are kept apart by FlexAttention, which is a kernel of its own.

    It is read off one call of the model's own attention, with the shapes, dtypes, mask and dropout of a micro-step. torch
    chooses by these, by the device, and by what was switched off in this process. On a CPU, compiled blocks were seen to take
    the same kernel.
    """
    if config.unit == "images":
        return None
    if config.gpt.attention != "sdpa":  # written out in model/attention.py
        return config.gpt.attention
    if by_blocks:
        return "flex"
    # The inputs are of the dtype that the weights have in the forward pass; autocast, below, lowers them further.
    dtype = torch.bfloat16 if TABLE[config.precision].weights == "bfloat16" else torch.float32
    length = config.gpt.seq_len
    # New weights and dropout draw random numbers. The run's own generators must not notice.
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        attention = Attention(config.gpt).to(device, dtype)
        x = torch.zeros(micro_batch, length, config.gpt.n_embd, device=device, dtype=dtype, requires_grad=True)
        # With a mask torch chooses another kernel; which document a token is of does not matter for that.
        tokens = torch.zeros(micro_batch, length, device=device, dtype=torch.long)
        mask = None if config.text.cross_document_attention else document_mask(tokens, 0)
        autocast = autocast_dtype(config.precision)
        with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None), _Operators() as seen:
            rotation = Rotary(config.gpt).at(length, device) if config.gpt.position == "rotary" else None
            attention(x, mask, rotation)
    return name_kernel(seen.names)


def name_kernel(operators: set[str]) -> str:
    """The kernel's name, from the names of all operators that an attention ran."""
    # `…_attention_math` is the name of the composite operator, which then runs matmuls and a softmax of its own.
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
