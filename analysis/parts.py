"""A declared claim on runs on images: its parts, what must hold of them, and the words for what does.

A claim holds if every part of it does, each at 5 %: that all hold is made no easier by their number. It holds in part if some do
after Holm's correction over the parts. Of several comparisons in one part, as one for each λ, any does, after Holm's correction
over them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from analysis.hypotheses import LEVEL, holm
from analysis.image_cells import Cell, Cells
from analysis.verdict import Comparison

ReadParts = Callable[[Cells, tuple[Cell, ...]], list["Part"]]


@dataclass(frozen=True)
class Part:
    """`words`: what must be. `comparisons`: any of them does. `why_not`: why no verdict is given whatever they say. `key`: without
    it no claim holds in part."""

    words: str
    comparisons: dict[str, Comparison]
    why_not: str = ""
    key: bool = False

    @property
    def ps(self) -> list[float]:
        """Of each comparison, after Holm's correction over them."""
        return holm([1.0 if self.why_not else one.p for one in self.comparisons.values()])

    def verdict(self, p: float) -> str:
        """`p`: of the part. It does not hold where none of its comparisons does."""
        if self.why_not:
            return f"no claim: {self.why_not}"
        if p < LEVEL:
            return "holds"
        told = [one.verdict(1.0) for one in self.comparisons.values()]
        return told[0] if len(set(told)) == 1 else "undecided"


@dataclass(frozen=True)
class Declared:
    """A claim: the sweep that it is judged on, with its cells and seeds, the updates that branches begin at, and how its parts are
    read of them."""

    words: str
    sweep: str
    cells: tuple[Cell, ...]
    seeds: int
    read: ReadParts
    branched: tuple[int, ...] = ()

    def rows(self, cells: Cells) -> list[dict[str, object]]:
        """A row a comparison, with the verdicts of its part and of the claim."""
        parts = self.read(cells, self.cells)
        ps = [min(part.ps) for part in parts]
        over_parts = holm(ps)
        verdicts = [part.verdict(p) for part, p in zip(parts, ps, strict=True)]
        whole = _of_all(parts, verdicts, ps, over_parts)
        # runs that are still to come may turn it
        finished, planned = self._finished(cells), self.seeds * len(self.cells) * (1 + len(self.branched))
        if finished < planned:
            whole = f"not all have run; so far: {whole}"
        start = {"claim": self.words, "sweep": self.sweep, "runs": f"{finished} of {planned}"}
        return [
            start
            | {"part": part.words, "comparison": name, "n": one.n}
            | {"difference": "; ".join(d.text() for d, _ in one.differences) + _margin(one)}
            | {"p": f"{own:.2g}", "p over the parts": f"{p:.2g}", "verdict of the part": verdict, "verdict": whole}
            for part, p, verdict in zip(parts, over_parts, verdicts, strict=True)
            for (name, one), own in zip(part.comparisons.items(), part.ps, strict=True)
        ]

    def _finished(self, cells: Cells) -> int:
        """Runs and branches that have ended, however they did."""
        return sum(cells.finished(cell, step) for cell in self.cells for step in (None, *self.branched))


def _of_all(parts: Sequence[Part], verdicts: Sequence[str], ps: Sequence[float], over_parts: Sequence[float]) -> str:
    """The claim's verdict, of the parts' own p values and of those after Holm's correction over the parts."""
    # that all hold is not made easier by their number; that some do is
    if all(p < LEVEL for p in ps):
        return "holds"
    held = [part.words for part, p in zip(parts, over_parts, strict=True) if p < LEVEL]
    keys = [(verdict, p) for part, verdict, p in zip(parts, verdicts, over_parts, strict=True) if part.key]
    if held and all(p < LEVEL for _, p in keys):
        return f"holds in part: {'; '.join(held)}"
    # the key part alone says what becomes of a claim that lacks it
    left = [verdict for verdict, _ in keys] or list(verdicts)
    return "does not hold" if "does not hold" in left else "undecided"


def _margin(one: Comparison) -> str:
    return f", margin {one.margin:g}" if one.margin is not None else ""
