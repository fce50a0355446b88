"""Which windows an update reads: a pure function of (data seed, update, global batch).

The token stream is cut on a grid of stride seq_len; window i holds tokens [i·T, i·T + T], so neighbours share one
token and each target is predicted once per epoch. The global batch of update t takes positions [t·B, (t+1)·B) of
the run's sequence of windows; a position is (epoch, rank within the epoch), and the epoch's order maps the rank to
a window. Nothing here knows of ranks, micro-batches or accumulation, so they cannot change it.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from configs.errors import InputError

Ids = NDArray[np.int64]

FEISTEL_ROUNDS = 6
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
BLOCK = 1024  # windows whose places are computed at once


class Permutation:
    """A keyed bijection of 0 … n−1 in O(1) memory: a Feistel network on the next even power of two, cycle-walked.

    The domain is at most 4n, so an image falls outside 0 … n−1 with probability below ¾ and is mapped again.
    """

    def __init__(self, n: int, key: str) -> None:
        if not 1 <= n <= 1 << 62:
            raise InputError(f"a permutation of {n} elements; 1 to 2^62 are possible")
        self.n = n
        self._half_bits = max(1, ((n - 1).bit_length() + 1) // 2)
        digest = hashlib.sha256(key.encode()).digest()
        digest += hashlib.sha256(digest).digest()
        self._keys = np.frombuffer(digest, dtype="<u8")[:FEISTEL_ROUNDS]

    def __call__(self, ranks: Ids) -> Ids:
        """The images of an int64 array of ranks."""
        values = self._network(ranks.astype(np.uint64))
        # The network permutes more than n values. Those that it sends outside go round again until they come in: each
        # value stays in its own cycle, so no two meet.
        while (outside := values >= self.n).any():
            values[outside] = self._network(values[outside])
        return values.astype(np.int64)

    def _network(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        bits = np.uint64(self._half_bits)
        mask = np.uint64((1 << self._half_bits) - 1)
        left, right = values >> bits, values & mask
        # Each round is undone by the same round, whatever `mix` does: this is why the network is a bijection.
        for key in self._keys:
            left, right = right, left ^ (mix(right + key) & mask)
        return (left << bits) | right


def mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele, Lea, Flood 2014): every input bit reaches every output bit."""
    x = x ^ (x >> np.uint64(30))
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def shuffled(n: int, key: str) -> Ids:
    """0 … n−1 in an order that the key decides, in O(n) memory: the ranks of SplitMix64's outputs.

    Each index is carried in the low bits of its output, since numpy sorts far faster than it sorts indices.
    """
    start = np.frombuffer(hashlib.sha256(key.encode()).digest()[:8], dtype="<u8")
    low = np.uint64((1 << n.bit_length()) - 1)
    index = np.arange(n, dtype=np.uint64)
    return (np.sort(mix(start + index * GOLDEN) & ~low | index) & low).astype(np.int64)


class WindowOrder:
    """The sequence of windows of a run: `epochs` passes over `windows` windows, each in its own order."""

    def __init__(self, windows: int, epochs: int, seed: int, permuted: bool, first: int = 0) -> None:
        """`first`: the position of the run's first window, beyond 0 for a branch that reads on."""
        self.windows, self.first = windows, first
        self.total = windows * epochs
        self._epoch_orders = [
            Permutation(windows, f"windows/{seed}/{epoch}") if permuted else None for epoch in range(epochs)
        ]
        # What was computed last: the positions from the first number on are these epochs and windows.
        self._block: tuple[int, Ids, Ids] = (0, np.empty(0, np.int64), np.empty(0, np.int64))

    def step_windows(self, t: int, batch: int) -> tuple[Ids, Ids]:
        """(epoch, window) of the `batch` sequences of update t, in the global batch's order.

        Raises InputError past the last window.
        """
        begin, end = self.first + t * batch, self.first + (t + 1) * batch
        if end > self.total:
            raise InputError(f"update {t} needs window {end - 1}, the run has {self.total}")
        start, epochs, windows = self._block
        # Updates come one after another, and a permutation of many windows takes little longer than one of a few.
        if not start <= begin < end <= start + len(windows):
            start, (epochs, windows) = begin, self._windows(begin, min(max(end, begin + BLOCK), self.total))
            self._block = start, epochs, windows
        here = slice(begin - start, end - start)
        return epochs[here], windows[here]

    def _windows(self, begin: int, end: int) -> tuple[Ids, Ids]:
        """(epoch, window) of the positions begin … end − 1."""
        epochs, ranks = np.divmod(np.arange(begin, end, dtype=np.int64), self.windows)
        windows = ranks.copy()
        for epoch in np.unique(epochs):
            order = self._epoch_orders[int(epoch)]
            if order is not None:
                windows[epochs == epoch] = order(ranks[epochs == epoch])
        return epochs, windows


class DocumentOrder:
    """Shuffled documents read through: stream position p of an epoch → position in the split.

    `ends` are the split's document ends. Memory: 16 bytes a document, and as much again while it is made.
    """

    def __init__(self, ends: NDArray[np.uint64], seed: int, epoch: int) -> None:
        starts = ends.astype(np.int64)  # until the lengths are taken off, below: one array less in memory
        lengths = np.diff(starts, prepend=0)
        shuffle = shuffled(len(ends), f"documents/{seed}/{epoch}")
        starts -= lengths
        self._starts = starts[shuffle]
        self._ends = lengths[shuffle].cumsum()

    def pieces(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The ranges of the split that make up stream positions [start, stop)."""
        ranges, index = [], int(np.searchsorted(self._ends, start, side="right"))
        # Where a document of the shuffle ends, the stream goes on with the beginning of the next.
        while start < stop:
            end = int(self._ends[index])
            begin = int(self._starts[index]) + start - (int(self._ends[index - 1]) if index else 0)
            length = min(end, stop) - start
            ranges.append((begin, begin + length))
            start, index = start + length, index + 1
        return ranges
