"""What a language model makes of given tokens: the log-likelihood of a continuation, and its own greedy continuation.

Sequences are batched by length, the longest first, and filled up on the right. Attention is causal, so that no real position sees
what fills a row up: a batch changes nothing but the rounding. Shapes: B rows, T positions, V vocabulary, n positions that count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from model.gpt import GPT
from weights.sample import generate

T = TypeVar("T")
Pair = tuple[list[int], list[int]]  # a context and what follows it, as tokens


class Likelihoods:
    """`network` in eval mode; `eot`, its end-of-text token, stands before what has no context. `batch`: rows at once.

    `cut` counts the sequences that were longer than the network's context, and `lost` the tokens that they lost at their left.
    """

    def __init__(self, network: GPT, eot: int, batch: int, device: torch.device) -> None:
        self.network, self.eot, self.batch, self.device = network, eot, batch, device
        self.length = network.config.seq_len
        self.cut = self.lost = 0

    @torch.no_grad()
    def score(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        """Of each pair Σ log p of its second part (nats), and whether each token of that is the likeliest one."""
        # A part that is longer than the context is scored piece by piece, so that every token of it counts once.
        pieces = [(i, *piece) for i, pair in enumerate(pairs) for piece in self._pieces(*pair)]
        sums, greedy = [0.0] * len(pairs), [True] * len(pairs)
        order = sorted(pieces, key=lambda piece: -len(piece[1]))
        for rows in self._batches(order, "sequences"):
            inputs = self._filled([inputs for _, inputs, _ in rows])  # (B, T)
            counted = torch.zeros_like(inputs, dtype=torch.bool)
            for row, (_, tokens, targets) in zip(counted, rows, strict=True):
                row[len(tokens) - len(targets) : len(tokens)] = True
            logits = self.network.logits(inputs, counted)  # (n, V)
            targets = torch.tensor([token for _, _, part in rows for token in part], device=self.device)  # (n,)
            losses = F.cross_entropy(logits.float(), targets, reduction="none").double()
            likeliest = logits.argmax(-1) == targets
            counts = [len(part) for _, _, part in rows]
            for (i, _, _), loss, best in zip(rows, losses.split(counts), likeliest.split(counts), strict=True):
                sums[i] -= loss.sum().item()
                greedy[i] &= bool(best.all())
        return list(zip(sums, greedy, strict=True))

    def _pieces(self, context: list[int], targets: list[int]) -> Iterator[Pair]:
        """(inputs, targets) of one or several forward passes; none where there is no target."""
        before = context or [self.eot]
        if over := max(0, len(before) + min(len(targets), self.length) - self.length - 1):
            self.cut, self.lost = self.cut + 1, self.lost + over
        for start in range(0, len(targets), self.length):
            part = targets[start : start + self.length]
            # the last target is no input; from the left only what fits
            yield (before + part)[-self.length - 1 : -1], part
            before = before + part

    @torch.no_grad()
    def continued(
        self,
        prompts: Sequence[list[int]],
        most: Sequence[int],
        vocabulary: int,
        is_ended: Callable[[int, list[int]], bool],
    ) -> list[list[int]]:
        """The likeliest token after each prompt, and so on, up to `most` tokens, without the end-of-text token that ends it.

        `vocabulary`: ids from there on only fill up the embedding, and are never taken. `is_ended` of a prompt's number and its new
        tokens says whether they are enough. Where prompt and tokens fit into the context, keys and values are kept; else each token
        is one forward pass over the last tokens that fit.
        """
        begun = [prompt or [self.eot] for prompt in prompts]
        # the last token that is made is not read
        fits = [0 < count <= self.length + 1 - len(start) for start, count in zip(begun, most, strict=True)]
        made: list[list[int]] = [[] for _ in prompts]
        kept = [i for i, fit in enumerate(fits) if fit]
        for i in tqdm(kept, desc="prompts", disable=len(kept) < 20, leave=False, mininterval=2):
            for (token,) in generate(self.network, begun[i], most[i], 1, vocabulary, self.eot, _likeliest):
                made[i] += [] if token is None else [token]
                if token is None or is_ended(i, made[i]):
                    break
        order = sorted((i for i, fit in enumerate(fits) if not fit), key=lambda i: -len(begun[i]))
        for rows in self._batches(order, "prompts"):
            left = [i for i in rows if most[i] > 0]
            while left:
                windows = [(begun[i] + made[i])[-self.length :] for i in left]
                inputs = self._filled(windows)  # (B, T)
                last = torch.zeros_like(inputs, dtype=torch.bool)
                for row, window in zip(last, windows, strict=True):
                    row[len(window) - 1] = True
                tokens = _likeliest(self.network.logits(inputs, last)[:, :vocabulary])
                going = []
                for i, token in zip(left, tokens, strict=True):
                    made[i] += [] if token == self.eot else [token]
                    if token != self.eot and len(made[i]) < most[i] and not is_ended(i, made[i]):
                        going.append(i)
                left = going
            for i in rows:
                if over := max(0, len(begun[i]) + len(made[i]) - 1 - self.length):
                    self.cut, self.lost = self.cut + 1, self.lost + over
        return made

    def _filled(self, rows: list[list[int]]) -> Tensor:
        """(B, T), filled up on the right. By which token does not matter: nothing that counts sees it."""
        longest = max(map(len, rows))
        return torch.tensor([row + [self.eot] * (longest - len(row)) for row in rows], device=self.device)

    def _batches(self, items: Sequence[T], unit: str) -> Iterator[Sequence[T]]:
        starts = range(0, len(items), self.batch)
        for start in tqdm(starts, desc=unit, unit=" batches", disable=len(starts) < 20, leave=False, mininterval=2):
            yield items[start : start + self.batch]


def _likeliest(logits: Tensor) -> list[int]:
    return logits.argmax(-1).tolist()
