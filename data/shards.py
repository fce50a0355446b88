"""A split on disk: raw little-endian token shards (`train_00000.bin`, …), read as one stream.

A shard is an array of uint16, or of uint32 where the id space needs it (nanoGPT's format for uint16). Those made here carry
no header; an adopted file may have one, which is skipped. `train_docs.bin` holds the stream position after each document's
end-of-text token, as uint64.
"""

from __future__ import annotations

import hashlib
import mmap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from configs.errors import InputError


@dataclass(frozen=True)
class Shard:
    """A file of tokens, as a manifest says it: `sha256` is of the whole file, `header_bytes` stand before the first token."""

    file: str
    tokens: int
    sha256: str
    header_bytes: int = 0


class TokenStream:
    """Random access to the concatenation of a split's shards, memory-mapped."""

    def __init__(self, folder: Path, shards: list[Shard], dtype: str) -> None:
        """InputError if a shard is missing or has another size than the manifest says."""
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self._paths = [folder / shard.file for shard in shards]
        self._maps: list[NDArray[np.unsignedinteger]] = []
        for path, shard in zip(self._paths, shards, strict=True):
            size = path.stat().st_size if path.exists() else None
            expected = shard.header_bytes + shard.tokens * self.dtype.itemsize
            if size != expected:
                what = "is missing" if size is None else f"has {size} bytes"
                raise InputError(
                    f"token shard {path} {what}; the manifest says {expected} bytes: prepare the data again"
                )
            self._maps.append(self._map(path, shard.header_bytes) if shard.tokens else np.empty(0, self.dtype))
        self._starts = np.cumsum([0] + [shard.tokens for shard in shards])

    def _map(self, path: Path, header_bytes: int) -> NDArray[np.unsignedinteger]:
        """Memory-mapped without read-ahead, which would fetch far more than a window from a cold disk."""
        with open(path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        mapped.madvise(mmap.MADV_RANDOM)
        return np.frombuffer(mapped, dtype=self.dtype, offset=header_bytes)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, start: int, stop: int, out: NDArray[np.int64]) -> None:
        """Copy tokens [start, stop) into out."""
        index, filled = int(np.searchsorted(self._starts, start, side="right")) - 1, 0
        # A window may begin in one shard and end in the next.
        while start < stop:
            offset = start - int(self._starts[index])
            piece = self._maps[index][offset : offset + stop - start]
            out[filled : filled + len(piece)] = piece
            filled, start, index = filled + len(piece), start + len(piece), index + 1

    def read_rows(self, starts: NDArray[np.int64], out: NDArray[np.int64]) -> None:
        """Copy into each row of out (n, T) the tokens from starts (n,) on."""
        # A call for all rows of a shard: a call each takes longer than the copying, where rows are short.
        first, last = (
            np.searchsorted(self._starts, at, side="right") - 1 for at in (starts, starts + out.shape[1] - 1)
        )
        for shard in np.unique(first).tolist():
            rows = np.flatnonzero((first == shard) & (last == shard))
            offsets = starts[rows, None] - self._starts[shard] + np.arange(out.shape[1])
            out[rows] = self._maps[shard][offsets]
        for row in np.flatnonzero(first != last).tolist():
            self.read(int(starts[row]), int(starts[row]) + out.shape[1], out[row])

    def check_ids(self, start: int, stop: int, vocab_size: int) -> None:
        """InputError names the first of tokens [start, stop) that is beyond the vocabulary, and the shard it is in."""
        tokens = np.empty(stop - start, np.int64)
        self.read(start, stop, tokens)
        for offset in np.flatnonzero(tokens >= vocab_size)[:1].tolist():
            index = int(np.searchsorted(self._starts, start + offset, side="right")) - 1
            raise InputError(
                f"{self._paths[index]} holds the token {tokens[offset]} at position {start + offset - int(self._starts[index])}, "
                f"and the vocabulary of the data has {vocab_size} tokens (0 to {vocab_size - 1}): the file is damaged; restore "
                "it, or prepare the data again"
            )


def token_dtype(vocab_size: int) -> str:
    """The smallest dtype that holds the whole id space."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def sha256_of(path: Path) -> str:
    """The hash of a file, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_all(paths: list[Path]) -> str:
    """The hash of files read one after another, as if they were one."""
    whole = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            hashlib.file_digest(file, lambda: whole)
    return whole.hexdigest()
