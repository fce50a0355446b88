"""What is recorded of a run, from its folder or from its archive: whoever reads runs need not know which of the two it is.

`place` is a run folder or a file of record/archive.py. The readers of what may be large or is seldom asked for (probes, starts,
blocks) are functions of their own. Errors are those of the files: OSError, InputError, ValueError, RecursionError.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from record.archive_file import SUFFIX, Archive, is_archive, read_archive
from record.blocks import ValidationBlocks, parse_blocks, read_blocks
from record.evaluations import Evaluation, parse_evaluation, read_evaluations
from record.files import read_object
from record.metrics import Log, read_log
from record.run import LARGEST, RunFolder
from record.shortfall import shortfalls


@dataclass(frozen=True)
class Description:
    """What the run was: its resolved configuration, and the fields of it that make the experiment."""

    config: dict[str, Any]
    experiment: dict[str, Any]


@dataclass(frozen=True)
class Record:
    """What the run did: its status, empty before it began; its plan; its rows; and sentences on what is damaged or lost of them.
    `every`: 1, or of an archive by so many updates that number."""

    status: dict[str, Any]
    plan: dict[str, Any]
    log: Log
    problems: list[str]
    every: int = 1


@lru_cache(maxsize=4)
def _read(place: Path, changed: int, size: int) -> Archive:
    return read_archive(place)


def _archive(place: Path) -> Archive:
    """An archive, read and hashed once while it stays as it is: several of the readers below are asked in turn."""
    now = place.stat()
    return _read(place, now.st_mtime_ns, now.st_size)


def read_description(place: Path) -> Description:
    if is_archive(place):
        documents = _archive(place).documents
        return Description(documents["config"], documents["experiment"] or {})
    folder = RunFolder(place)
    return Description(read_object(folder.config), folder.read_experiment() or {})


def read_record(place: Path, last: int, probe_every: int | None) -> Record:
    """The record of a run of `last` steps, which was to be probed every `probe_every`."""
    if is_archive(place):
        archive = _archive(place)
        log = _upto(archive.log, last, place)
        documents = archive.documents
        return Record(documents["status"] or {}, documents["plan"], log, log.problems, documents.get("every", 1))
    folder = RunFolder(place)
    status = folder.read_status() or {}  # before the rows: a live run writes them first
    log = read_log(folder.metrics, last)
    problems = log.problems + (shortfalls(folder, status, log, probe_every) if status else [])
    return Record(status, folder.read_plan(), log, problems)


def read_probes(place: Path, last: int = LARGEST) -> Log:
    return _upto(_archive(place).probes, last, place) if is_archive(place) else read_log(RunFolder(place).probes, last)


def _upto(log: Log, last: int, place: Path) -> Log:
    """Without rows of steps that a run of `last` steps has not, as read_log leaves them out."""
    rows = [row for row in log.rows if row["step"] <= last]
    if len(rows) == len(log.rows):
        return log
    beyond = (
        f"{place}: {len(log.rows) - len(rows)} rows are of steps beyond the run's last, {last:,}, and no rows of it"
    )
    return replace(log, rows=rows, problems=[*log.problems, beyond])


def read_starts(place: Path) -> list[dict[str, Any]]:
    """As RunFolder.read_starts."""
    if is_archive(place):
        starts: list[dict[str, Any]] = _archive(place).documents["starts"]
        return starts
    return RunFolder(place).read_starts()


def read_final_blocks(place: Path) -> ValidationBlocks | None:
    """The last validation, block by block; None of a run without."""
    if not is_archive(place):
        return read_blocks(RunFolder(place).blocks)
    blocks = _archive(place).documents["val_blocks"]
    return None if blocks is None else parse_blocks(blocks, str(place))


def read_scores(place: Path) -> tuple[list[Evaluation], list[str]]:
    """What tasks of lm-evaluation-harness were asked of the run's checkpoints, and a sentence on each file that was damaged."""
    if not is_archive(place):
        evaluations, problems = read_evaluations(RunFolder(place))
        return list(evaluations.values()), problems
    kept = _archive(place).documents.get("lm_eval", {})  # a run without any has no such document
    return [parse_evaluation(value, f"{place}: lm_eval/{name}") for name, value in kept.items()], []


def find_place(name: Path) -> Path | None:
    """The folder or, where there is none, the archive of the run that is named as a folder; None where it has neither."""
    if RunFolder(name).config.is_file():
        return name
    archive = name.with_name(f"{name.name}{SUFFIX}")
    return archive if archive.is_file() else None
