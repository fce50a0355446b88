"""Finished runs, one small file each: python -m record.archive RUN… --out DIR

RUN is a run folder, a folder of runs, or a sweep file; each run becomes DIR/<folder name>.parquet (record/archive_file.py). Every
analysis takes such files, and folders of them, wherever it takes run folders, and gives the same tables. Checkpoints are not in
them. A run that is being written is refused: while it is read its writer lock is held.

With --every N a file holds every Nth update alone, as for runs of which only the end is asked, and with --probe-every N every Nth
probe: see `thinned`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from configs.errors import InputError
from record.archive_file import SUFFIX, Archive, is_archive, pack
from record.blocks import read_blocks
from record.contents import read_probes, read_record
from record.evaluations import read_evaluations
from record.files import read_object, write_bytes
from record.lock import LOCK, NOTE, hold, holder
from record.metrics import UNITS, Log
from record.run import FINISHED, LARGEST, RunFolder
from record.sweep_runs import is_sweep_file, runs_of_sweep

SECONDS = "time/step_s"
FOLLOWS = {f"perf/{unit}_per_s" for unit in UNITS}  # from SECONDS and the batch (record/metrics.py): in no archive
EVERY_UPDATE = ("train/", "optim/", "weights/", "norm/", "perf/", SECONDS)  # what the row of any update has


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m record.archive", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="run folder, folder of runs, or sweep file")
    parser.add_argument("--runs-root", type=Path, help="where the runs of sweep files lie; default runs")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for the files; made if missing")
    parser.add_argument("--unfinished", action="store_true", help="also runs that have not ended, as far as they are")
    parser.add_argument(
        "--every",
        type=int,
        default=1,
        metavar="N",
        help="only every Nth update, those evaluated, and two probes: small files of runs of which the end alone is asked",
    )
    parser.add_argument("--probe-every", type=int, metavar="N", help="only every Nth probe, and the last")
    args = parser.parse_args(arguments)
    try:
        for option, number in (("--every", args.every), ("--probe-every", args.probe_every)):
            if number is not None and number < 1:
                raise InputError(f"{option} {number} keeps nothing; give 1 for all, or more")
        if args.every > 1 and args.probe_every:
            raise InputError("--every keeps the first and the last probe alone; give --probe-every without it")
        if args.out.exists() and not args.out.is_dir():
            raise InputError(f"--out {args.out} is a file; give a folder, new or not")
        if args.runs_root is not None and not any(map(is_sweep_file, args.runs)):
            raise InputError(f"--runs-root {args.runs_root} says where the runs of a sweep file lie, and no RUN is one")
        folders, notes = run_folders(args.runs, args.runs_root or Path("runs"))
        # every run is read before the first is written: a refusal leaves no half of a study behind
        contents = {
            f"{path.name}{SUFFIX}": pack(thinned(read_folder(path, args.unfinished), args.every, args.probe_every))
            for path in folders
        }
        for name, content in contents.items():
            check_target(args.out / name, content)
        args.out.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            write_bytes(args.out / name, content)
            print(f"{args.out / name}: {len(content):,} bytes")
        for note in notes:
            print(f"note: {note}", file=sys.stderr)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run_folders(paths: list[Path], root: Path = Path("runs")) -> tuple[list[Path], list[str]]:
    """The run folders that `paths` are, hold, or, as sweep files, stand for in `root`, each once; and notes on what is missing.

    InputError for a path without one, for what is an archive already, and for two runs of one name.
    """
    folders: list[Path] = []
    notes: list[str] = []
    for path in paths:
        if is_sweep_file(path):
            inner, lacking = runs_of_sweep(path, root)
            notes += lacking
        else:
            inner = [path] if _is_one(path) else [c.parent for c in sorted(path.glob("*/config.json"))]
        if done := [place for place in inner if is_archive(place)]:
            raise InputError(f"{done[0]} is an archive already; its run's folder is what is archived, or copy the file")
        if not inner:
            raise InputError(
                f"{path} is no run folder (a folder with config.json), nor a folder of them, nor a sweep file with runs in {root}"
            )
        folders += [Path(os.path.abspath(folder)) for folder in inner]
    folders = list(dict.fromkeys(folders))
    names: dict[str, Path] = {}
    for folder in folders:
        if names.setdefault(folder.name, folder) != folder:
            raise InputError(f"{names[folder.name]} and {folder} have one name; archive them into two folders")
    return folders, notes


def _is_one(path: Path) -> bool:
    return is_archive(path) or RunFolder(path).config.is_file()


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Keep writers off a run folder while it is read. InputError, naming the writer, where one is at work.

    A folder without a lock's file was copied, and has had no writer: nothing is left in it.
    """
    if not (path / LOCK).exists():
        yield
        return
    with ExitStack() as stack:
        try:
            stack.enter_context(hold(path, instead="wait until it has ended, or stop it, and archive the run then"))
        except OSError as error:
            # of a folder that may not be written the lock cannot be taken; who writes in it has left a note there
            if (path / NOTE).exists():
                raise InputError(
                    f"{holder(path)} may be writing {path}, whose lock cannot be taken ({error}); copy the folder"
                ) from None
        yield


def read_folder(path: Path, unfinished: bool = False) -> Archive:
    """What an archive keeps of a run folder. InputError if that cannot be read, a writer is at work in it, or the run has not ended
    and not `unfinished`."""
    with held(path):
        return _read(path, unfinished)


def _read(path: Path, unfinished: bool) -> Archive:
    folder = RunFolder(path)
    try:
        config = read_object(folder.config)
        every = config["log"].get("probe_every") if isinstance(config.get("log"), dict) else None
        record = read_record(path, LARGEST, every)
        status = record.status
        ended = status.get("state") in FINISHED
        if not ended and not unfinished:
            state = f"{status['state']} at step {status['step']:,} of {status['steps']:,}" if status else "not started"
            raise InputError(f"its run has not ended ({state}); --unfinished archives it as far as it has come")
        log, probes = record.log, read_probes(path)
        documents = {
            "unfinished": not ended,
            "config": config,
            "given": read_object(folder.given) if folder.given.is_file() else None,
            "experiment": folder.read_experiment(),
            "status": status or None,
            "plan": record.plan,
            "starts": folder.read_starts(),
            # which norms were followed; the numbers are in the rows of the run that they are of, and only a resume needs them
            "norms": {name: value for name, value in folder.read_norms().items() if name in ("digest", "match")},
            "val_blocks": read_object(folder.blocks) if read_blocks(folder.blocks) else None,
        }
        evaluations, damaged = read_evaluations(folder)
        # only where there are some: the file of a run without any stays what it was
        if evaluations:
            documents["lm_eval"] = {name: one.model_dump(mode="json") for name, one in evaluations.items()}
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be archived: {error}") from None

    def told(sentences: list[str]) -> list[str]:
        """By the run's name: where its folder lay is of no use to who gets the file."""
        return [sentence.replace(str(path), path.name) for sentence in sentences]

    rows = [{name: value for name, value in row.items() if name not in FOLLOWS} for row in log.rows]
    return Archive(
        path.name,
        documents,
        Log(rows, told([*record.problems, *damaged]), log.superseded, torn=False),
        Log(probes.rows, told(probes.problems), probes.superseded, torn=False),
    )


def thinned(archive: Archive, every: int = 1, probe_every: int | None = None) -> Archive:
    """The archive with the rows of every `every`th update, of those that were evaluated or tell an event, and of the last; and with
    every `probe_every`th probe from the first on, and the last; where updates are left out, these two alone. Who reads it is told.

    `time/step_s` of a row is then that of all updates since the row before, so that sums over a run stay what they are; how fast
    one update was (`perf/…`) is left out.
    """
    if every > 1:
        rows, last = _every(archive.log.rows, every), len(archive.probes.rows)
        probes = _every_probe(archive.probes, last)
        return replace(
            archive, documents=archive.documents | {"every": every}, log=replace(archive.log, rows=rows), probes=probes
        )
    if probe_every is None or probe_every == 1:
        return archive
    told = f"{archive.name}: of its {len(archive.probes.rows)} probes every {probe_every}th was archived, and the last"
    probes = _every_probe(archive.probes, probe_every)
    return replace(archive, probes=replace(probes, problems=[*probes.problems, told]))


def _every_probe(log: Log, every: int) -> Log:
    """With the first row and every `every`th after it, and the last."""
    last = len(log.rows) - 1
    return replace(log, rows=[row for place, row in enumerate(log.rows) if place == last or place % every == 0])


def _every(given: list[dict[str, Any]], every: int) -> list[dict[str, Any]]:
    """The rows of every `every`th update, those that tell more, and the last, with the seconds of those left out."""
    rows, seconds = [], 0.0
    for place, row in enumerate(given, 1):
        seconds += row.get(SECONDS) or 0.0
        if row["step"] % every and place < len(given) and not _is_told(row):
            continue
        kept = {name: value for name, value in row.items() if not name.startswith("perf/")}
        if SECONDS in row:  # an event's row has no time, and leaves what has gathered to the next
            kept[SECONDS], seconds = seconds, 0.0
        rows.append(kept)
    return rows


def _is_told(row: dict[str, Any]) -> bool:
    """Whether it holds more than what every update records: an evaluation, a measure, a spike, an event."""
    return any(name not in ("step", *UNITS) and not name.startswith(EVERY_UPDATE) for name in row)


def check_target(path: Path, content: bytes) -> None:
    """InputError where a file of this name holds something else than `content`."""
    if os.path.lexists(path) and (not path.is_file() or path.read_bytes() != content):
        raise InputError(
            f"{path} exists and holds something else than this run today; move it away, or give another --out"
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
