"""Attention that stays within a document (data.cross_document_attention false): which position may see which.

Two forms of one relation: a dense mask, which every kernel of attention takes, and blocks for FlexAttention, which leaves out whole
blocks of pairs that do not see each other. FlexAttention has no backward pass on a CPU and no dropout (torch 2.13).

Shapes: B sequences, T tokens.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask


def document_mask(inputs: Tensor, eot: int, start: int = 0) -> Tensor:
    """(B, 1, T, T) bool: a position sees earlier ones of its own document; eot belongs to what it ends.

    `start`: of the positions from there on alone, (B, 1, T − start, T).
    """
    document = _documents(inputs, eot)
    same = document[:, start:, None] == document[:, None, :]  # (B, T − start, T)
    return same.tril(start)[:, None]


def document_blocks(inputs: Tensor, eot: int) -> BlockMask:
    """The relation of document_mask, for FlexAttention; the same for all heads."""
    document = _documents(inputs, eot)

    def sees(b: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (document[b, query] == document[b, key])

    B, T = inputs.shape
    return create_block_mask(sees, B, None, T, T, device=str(inputs.device))


def _documents(inputs: Tensor, eot: int) -> Tensor:
    """(B, T): of each position the number of its document in the window."""
    is_end = inputs == eot
    return is_end.cumsum(1) - is_end.long()
