"""Verdicts before their time: what is said of claims while planned seeds still run.

A plan says how many seeds a verdict is over. Looked at after each seed, a difference of nothing passes for an effect far more often
than once in twenty. So until its seeds are finished a comparison is shown with its interval, and its verdict is called one so far.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from analysis.claims import Claim
from analysis.command import Result
from analysis.runs import Run, seeds_text
from configs.load import validate
from configs.prepared import read_summary
from configs.sweep import all_cells, expand
from configs.sweep_cell import UNKNOWN
from record.files import read_dict
from record.run import FINISHED, RunFolder
from record.sweep_runs import is_sweep_file

CELLS = "cells"  # the folder, in a sweep's own, with the configuration of each of its runs (slurm/cells.py)


@dataclass(frozen=True)
class Due:
    """Of one RUN: so many of its planned seeds are finished, all their runs."""

    what: str
    finished: int
    planned: int

    @property
    def sentence(self) -> str:
        return (
            f"{self.what}: {self.finished} of {self.planned} seeds finished; the plan's verdict is due at {self.planned}. "
            "What is said below of comparisons over fewer is how they stand, and no verdict."
        )


def dues(patterns: list[str], root: Path, runs: list[Run]) -> list[Due]:
    """Of every sweep file, and folder of runs, that has a planned seed which is not finished; `runs`: all that were loaded."""
    found, ended = [], _ended(runs)
    for pattern in patterns:
        planned = _planned(pattern, root, runs)
        # a seed is finished when every run of it is: half a seed has no pairs
        open_seeds = {seeds for name, seeds in planned if name not in ended}
        every = {seeds for _, seeds in planned}
        if open_seeds:
            found.append(Due(pattern, len(every) - len(open_seeds), len(every)))
    return found


def _planned(pattern: str, root: Path, runs: list[Run]) -> list[tuple[str, str]]:
    """(folder's name, seeds) of every run that this RUN is to have; none for a glob, or a run by itself, which plan nothing."""
    path = Path(pattern)
    if is_sweep_file(pattern):
        cells = all_cells(expand(pattern, root, read_summary)[1])
        return [(cell.folder.name, seeds_text(cell.config.seeds.model_dump())) for cell in cells]
    if not path.is_dir() or RunFolder(path).config.is_file():
        return []
    # what lies there, and what the sweep that made the folder wrote down of runs that have not begun
    planned = {run.path.name: run.seeds for run in runs if run.path.parent.resolve() == path.resolve()}
    for file in sorted((path / CELLS).glob("*.json")):
        try:
            planned.setdefault(file.stem, seeds_text(validate(read_dict(file), str(file)).seeds.model_dump()))
        except (ValueError, RecursionError):  # of another version: what it planned is not known
            continue
    return list(planned.items())


def _ended(runs: list[Run]) -> set[str]:
    """Folder names of the runs that have ended, each also as a cell without an id is called, whose data is not here."""
    names = {run.path.name for run in runs if run.state in FINISHED}
    return names | {re.sub("-[0-9a-f]{10}$", f"-{UNKNOWN}", name) for name in names}


def provisional(result: Result, due: Iterable[Due]) -> Result:
    """The result with the sentences before its findings, and verdicts over fewer seeds than planned called what they are."""
    due = list(due)
    if not due:
        return result
    sentences, planned = [one.sentence for one in due], max(one.planned for one in due)
    claims = [_so_far(claim, planned) for claim in result.claims]
    # a finding that is a claim's sentence stays one
    told = {old.sentence: new.sentence for old, new in zip(result.claims, claims, strict=True)}
    return replace(
        result,
        findings=sentences + [told.get(text, text) for text in result.findings],
        claims=claims,
        cautions=sentences + result.cautions,
        tables={title: table.rename(columns={"verdict": "verdict so far"}) for title, table in result.tables.items()},
    )


def _so_far(claim: Claim, planned: int) -> Claim:
    if claim.interval.n >= planned:
        return claim
    verdict = f"no verdict before {planned} seeds; so far: {claim.verdict}"
    return replace(claim, verdict=verdict, decided=False, seeds_needed=None, after="")
