"""What is kept of tokens that a transformer has read, so that the next token costs one position: every block's keys and values.

    cache = Cache(network.config, room=prompt_length + new_tokens)
    logits = network.logits(prompt, cache=cache)     # (B, T, V) of the prompt
    logits = network.logits(tokens, cache=cache)     # of (B, 1) more tokens, which see all that are kept

The logits are those of a forward pass over all tokens at once. Only the order of adding differs: in float32 they agree to 1e-5
(tests/test_sample.py), in bfloat16 as bfloat16 rounds.

Shapes: B sequences, T new tokens, S tokens with those before them, G heads of keys and values, D their width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from configs.transformer import Model


class Kept:
    """Keys and values of one block, as its scores are made of them: normalised, and turned by their positions."""

    def __init__(self, room: int) -> None:
        self.room, self.length = room, 0
        self.keys = self.values = torch.empty(0)

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keep k and v (B, G, T, D) behind those before; returns all, (B, G, S, D) each."""
        if not self.length:  # only now are dtype, device and number of sequences known
            self.keys, self.values = (one.new_empty(*one.shape[:2], self.room, one.shape[3]) for one in (k, v))
        start, self.length = self.length, self.length + k.shape[2]
        # Into room that is there: joining two tensors would copy everything for every token.
        self.keys[:, :, start : self.length], self.values[:, :, start : self.length] = k, v
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]


class Cache:
    """Of one network and some sequences of equal length; empty at first. `room`: tokens of a sequence, at most model.seq_len."""

    def __init__(self, config: Model, room: int) -> None:
        assert 0 < room <= config.seq_len, "positions end with the context"
        self.room, self.blocks = room, [Kept(room) for _ in range(config.n_layer)]
        self.tokens: Tensor | None = None  # (B, S); a mask by documents needs them

    def append(self, inputs: Tensor) -> tuple[int, Tensor]:
        """How many tokens were there before `inputs` (B, T), and all with them, (B, S)."""
        # The room is written in place, which no backward pass could follow.
        assert not torch.is_grad_enabled(), "a cache is for sampling, under torch.no_grad"
        start = 0 if self.tokens is None else self.tokens.shape[1]
        self.tokens = inputs if self.tokens is None else torch.cat((self.tokens, inputs), 1)
        assert self.tokens.shape[1] <= self.room, f"{self.tokens.shape[1]} tokens, room for {self.room}"
        return start, self.tokens

    def repeat(self, count: int) -> None:
        """`count` copies of the one sequence that was read, to be continued each in its own way."""
        assert self.tokens is not None
        self.tokens = self.tokens.repeat(count, 1)
        for block in self.blocks:
            block.keys, block.values = (one.repeat(count, 1, 1, 1) for one in (block.keys, block.values))
