"""Whether documents are kept apart by FlexAttention's blocks on this machine, or by a dense mask."""

from __future__ import annotations

import logging

import torch

from configs.precision import TABLE
from configs.schema import RunConfig
from engine.dtypes import autocast_dtype
from model.attention import Attention, Rotary
from model.within_documents import document_blocks, document_mask

logger = logging.getLogger(__name__)

CLOSE = 0.02  # as a share of the gradient's norm: above what bfloat16 rounds, far below what another mask would change


def takes_blocks(config: RunConfig, compiled: bool, device: torch.device) -> bool:
    """Whether FlexAttention keeps documents apart: of compiled blocks on CUDA, by torch's choice of kernel (model.attention sdpa).

    And only if it gives here what the dense mask gives, since it depends on compiler, driver and GPU. If not, the log says why.
    """
    wanted = config.gpt.attention == "sdpa" and not config.text.cross_document_attention and not config.gpt.dropout
    if not wanted or not compiled or device.type != "cuda":
        return False
    try:
        apart = difference(config, device)
    except Exception as error:
        why = f"FlexAttention does not run here ({type(error).__name__}: {str(error).strip().partition(chr(10))[0]})"
    else:
        if apart <= CLOSE:
            return True
        why = f"FlexAttention's gradients are {apart:.1%} from those of the dense mask here, more than {CLOSE:.0%}"
    logger.warning("%s; documents are kept apart by a dense mask, which takes longer", why)
    return False


def difference(config: RunConfig, device: torch.device) -> float:
    """The largest difference of an output or gradient by blocks, compiled, from that by the dense mask, as a share of its norm."""
    length, width = config.gpt.seq_len, config.gpt.n_embd
    dtype = torch.bfloat16 if TABLE[config.precision].weights == "bfloat16" else torch.float32
    autocast = autocast_dtype(config.precision)
    # The run's own generators must not notice.
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        attention = Attention(config.gpt).to(device, dtype)
        x = torch.randn(2, length, width, device=device, dtype=dtype, requires_grad=True)
        into = torch.randn(2, length, width, device=device, dtype=dtype)
        tokens = torch.randint(0, max(2, length // 4), (2, length), device=device)  # some four documents a window
    rotation = Rotary(config.gpt).at(length, device) if config.gpt.position == "rotary" else None
    by_blocks = torch.compile(attention.forward, fullgraph=True, dynamic=False)
    found = []
    for forward, mask in ((attention.forward, document_mask(tokens, 0)), (by_blocks, document_blocks(tokens, 0))):
        with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
            y = forward(x, mask, rotation)
        found.append([y.detach(), *torch.autograd.grad(y, [x, *attention.parameters()], into.to(y.dtype))])
    return max(float((two - one).norm() / one.norm()) for one, two in zip(*found, strict=True) if one.norm() > 0)
