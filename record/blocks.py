"""val_blocks.json: the validation loss at a run's end, block by block of the validation windows.

The windows, in the order of the file, are cut into at most BLOCKS contiguous blocks of nearly equal numbers of windows.
Neighbouring windows are of the same documents, distant ones are not, so blocks are nearly independent: how much a difference
of two runs varies over blocks tells what other documents would have changed of it.

    {"format": 1, "step": 2000, "seq_len": 128, "windows": 8192, "windows_in_split": 16001,
     "targets": [4096, …],
     "loss_sums": {"weights": [12698.3, …], "ema_0.99": […]}}

`step`: the run's last. Windows are spread evenly over the split, so the numbers of windows, of windows in the split and of
seq_len tell which they are, and two runs on the same data with the same three have the same blocks. `targets`: how many count
in each block. `loss_sums`: of the weights and of each average of them (averages.ema), the summed loss of each block in nats,
added in float64; null where it is not finite. Σ loss_sums / Σ targets is val/final_loss where the run has eval.final_tokens,
else val/loss.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.errors import InputError
from record.files import read_object, write_text
from record.run import LARGEST

FORMAT = 1
WEIGHTS = "weights"  # the kind that is no average
BLOCKS = 256  # so many tell a standard error to 4 %, in 5 kB
COUNTS = ("step", "seq_len", "windows", "windows_in_split")


@dataclass(frozen=True)
class ValidationBlocks:
    """The content of a file; a loss sum that is not finite is NaN."""

    step: int
    seq_len: int
    windows: int
    windows_in_split: int
    targets: list[int]
    loss_sums: dict[str, list[float]]

    @property
    def place(self) -> tuple[int, int, int]:
        """What windows of its split these are: blocks of runs on the same data are comparable where this is the same."""
        return self.seq_len, self.windows, self.windows_in_split

    def loss(self, kind: str = WEIGHTS) -> float:
        """Mean loss over all targets."""
        return math.fsum(self.loss_sums[kind]) / sum(self.targets)


def cut(windows: int) -> list[int]:
    """The first window of each block, and at the end the number of windows."""
    blocks = min(BLOCKS, windows)
    return [block * windows // blocks for block in range(blocks + 1)]


def in_blocks(step: int, seq_len: int, windows_in_split: int, sums: Mapping[str, Sequence[float]]) -> ValidationBlocks:
    """From the summed loss of each window, by kind of weights. Every window has seq_len targets."""
    windows = len(next(iter(sums.values())))
    edges = cut(windows)
    spans = list(itertools.pairwise(edges))
    # fsum rounds once: the order in which ranks met the windows leaves no trace
    added = {kind: [_sum(values[begin:end]) for begin, end in spans] for kind, values in sums.items()}
    return ValidationBlocks(step, seq_len, windows, windows_in_split, [(e - b) * seq_len for b, e in spans], added)


def _sum(values: Sequence[float]) -> float:
    return math.fsum(values) if all(map(math.isfinite, values)) else math.nan


def write_blocks(path: Path, blocks: ValidationBlocks) -> None:
    """Replace the file."""
    sums = {k: [v if math.isfinite(v) else None for v in values] for k, values in blocks.loss_sums.items()}
    content = {"format": FORMAT, **{name: getattr(blocks, name) for name in COUNTS}}
    write_text(path, json.dumps({**content, "targets": blocks.targets, "loss_sums": sums}) + "\n")


def read_blocks(path: Path) -> ValidationBlocks | None:
    """The file's content; None where there is none (older runs). InputError for one that is none of ours."""
    try:
        return parse_blocks(read_object(path), str(path))
    except FileNotFoundError:
        return None


def parse_blocks(content: Mapping[str, Any], place: str) -> ValidationBlocks:
    """From the JSON object that the file holds. InputError, naming `place`, for one that is none of ours."""
    version, targets, sums = content.get("format"), content.get("targets"), content.get("loss_sums")
    if version != FORMAT:
        raise InputError(f"{place} is of format {version!r:.40}; this version reads {FORMAT}")
    counts: dict[str, int] = {}
    for name in COUNTS:
        value = content.get(name)
        if type(value) is not int or not 1 <= value <= LARGEST:
            raise InputError(f"{place}: {name} is {value!r:.40}, not a count")
        counts[name] = value
    if not isinstance(targets, list) or not all(type(n) is int and 1 <= n <= LARGEST for n in targets):
        raise InputError(f"{place}: targets is no list of counts")
    if not targets or len(targets) != min(BLOCKS, counts["windows"]):
        raise InputError(f"{place}: {len(targets)} blocks, where {counts['windows']} windows are cut into others")
    if not isinstance(sums, dict) or WEIGHTS not in sums or not all(map(_are_sums, sums.values())):
        raise InputError(f"{place}: loss_sums are no lists of numbers, of the weights and of averages")
    if {len(values) for values in sums.values()} != {len(targets)}:
        raise InputError(f"{place}: loss_sums has other numbers of blocks than targets, {len(targets)}")
    losses = {str(kind): [math.nan if v is None else float(v) for v in values] for kind, values in sums.items()}
    return ValidationBlocks(**counts, targets=targets, loss_sums=losses)


def _are_sums(values: Any) -> bool:
    return isinstance(values, list) and all(v is None or (type(v) in (int, float) and abs(v) < 1e300) for v in values)
