"""The checkpoints of a run: which there are, and which one an address means. Needs no torch.

    python -m record.checkpoints list RUN…            each with its state, size, time, kinds, and the rules that keep it
    python -m record.checkpoints verify RUN[@STEP]…   compare every file with its hash; exit code 1 if one is not sound

Both print one line per checkpoint, or one JSON array with --json.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from configs.cadence import why_kept
from configs.errors import InputError
from configs.schema import Checkpoint
from record.checkpoint_manifest import (
    DAMAGED,
    MANIFEST,
    SUFFIX,
    SUPERSEDED,
    CheckpointState,
    state_of,
    verify,
    why_incomplete,
    why_unsound,
)
from record.files import read_dict
from record.run import RunFolder

logger = logging.getLogger(__name__)

STEP = re.compile(r"step_[0-9]{1,15}")
UNFINISHED = re.compile(r"\.step_([0-9]{1,15})\.tmp")  # a save that is going on, or was killed


def step_of(path: Path) -> int:
    """The step that a checkpoint's folder is named for."""
    return int(path.name.removeprefix("step_"))


def numbered(folder: Path) -> list[Path]:
    """The folders named for a step, by step, whatever is in them."""
    named = [path for path in folder.glob("step_*") if path.is_dir() and STEP.fullmatch(path.name)]
    return sorted(named, key=step_of)


def complete(folder: Path) -> list[Path]:
    """Checkpoints whose manifest and files are there at their full size, oldest first."""
    return [path for path in numbered(folder) if not why_incomplete(path)]


def incomplete_after(folder: Path, path: Path | None) -> list[tuple[Path, str]]:
    """Folders of later steps than that of `path` (None: all) that are no checkpoints, and why: what the newest was taken for."""
    later = [other for other in numbered(folder) if path is None or step_of(other) > step_of(path)]
    return [(other, why) for other in later if (why := why_incomplete(other))]


def find(folder: Path, step: int | None) -> Path:
    """The complete checkpoint of `step`, or the newest. InputError if there is none, naming those there are."""
    paths = complete(folder)
    matching = [path for path in paths if step is None or step_of(path) == step]
    if not matching:
        names = ", ".join(str(step_of(path)) for path in paths) or "none"
        of_step = "" if step is None else f" of step {step}"
        others = [path for path in numbered(folder) if step is None or step_of(path) == step]
        why = "".join(f"; {path.name} {why_incomplete(path)}" for path in others[-1:])
        raise InputError(f"{folder} has no complete checkpoint{of_step}; steps there: {names}{why}")
    return matching[-1]


def find_sound(folder: Path, step: int | None) -> tuple[Path, list[tuple[Path, str]]]:
    """The checkpoint of `step`, or the newest sound one with those newer that were left out, and why. Its files are verified.

    What is left out is logged too: an older checkpoint is never used without a word. InputError if there is none.
    """
    if step is not None:
        path = find(folder, step)
        verify(path)
        return path, []
    left_out: list[tuple[Path, str]] = []
    for path in reversed(numbered(folder)):
        if why := why_unsound(path):
            left_out.append((path, why))
            continue
        for newer, why in left_out:
            logger.warning("%s %s: it is left out, and %s is used", newer, why, path.name)
        return path, left_out
    reasons = "; ".join(f"{path.name} {why}" for path, why in left_out[:3]) or "there is none at all"
    raise InputError(f"{folder} has no sound checkpoint: {reasons}")


def find_address(address: str) -> Path:
    """The checkpoint that `RUN@STEP`, or `RUN` for its newest, means. InputError if there is none."""
    run, step = parse_address(address)
    return find(RunFolder(run).checkpoints, step)


def parse_address(address: str) -> tuple[Path, int | None]:
    """As `split_address`, of what somebody has typed. InputError if what follows the @ is neither a step nor part of a name."""
    folder, step = split_address(address)
    if step is None and "@" in address and not folder.exists():
        after = address.rpartition("@")[2]
        raise InputError(
            f"{address}: expected a number after @ (found {after[:40]!r}), or a run folder of that whole name"
        )
    return folder, step


def split_address(address: str) -> tuple[Path, int | None]:
    """`RUN@STEP` → (run folder, step); without @STEP the step is None."""
    folder, at, step = address.rpartition("@")
    return (Path(folder), int(step)) if at and step.isdecimal() and len(step) < 16 else (Path(address), None)


@dataclass(frozen=True)
class Listed:
    """A row of `list`. `why` is empty for a complete checkpoint; `kept_by` is None where the run's rules cannot be read."""

    run: str
    step: int
    state: CheckpointState
    why: str
    bytes: int
    saved: str
    kinds: list[str]
    kept_by: list[str] | None

    def line(self) -> str:
        """The row as text: its address, and what is known of it."""
        columns = [f"{self.run}@{self.step}", f"{self.state:<10}", f"{self.bytes / (1 << 20):10.1f} MiB", self.saved]
        rules = "rules unknown" if self.kept_by is None else f"kept by {', '.join(self.kept_by) or 'no rule'}"
        return "  ".join([*columns, " ".join(self.kinds) or "no tensors", self.why or rules])


@dataclass(frozen=True)
class Verified:
    """A row of `verify`. `sound` is None for a checkpoint that the run itself set aside, unless it was asked for by its step."""

    run: str
    step: int
    sound: bool | None
    why: str

    def line(self) -> str:
        return f"{self.run}@{self.step}  {self.why or 'verified'}"


def list_checkpoints(run: Path) -> Iterator[Listed]:
    """A row for each checkpoint of a run, by step, then for each save that was not finished. InputError if there are none."""
    folder = _checkpoints_of(run)
    rules = _rules(run)
    newest = complete(folder)[-(rules.keep_last or 1) :] if rules else []
    for path in numbered(folder):
        state, why = state_of(path)
        kept_by = why_kept(rules, step_of(path), path in newest) if rules and state == "complete" else None
        yield from _listed(run, path, step_of(path), state, why, kept_by)
    for path in sorted(folder.iterdir()):
        if (match := UNFINISHED.fullmatch(path.name)) and path.is_dir():
            why = f"is a save that is going on or was killed ({path.name})"
            yield from _listed(run, path, int(match[1]), "incomplete", why, None)


def verify_checkpoints(run: Path, step: int | None) -> Iterator[Verified]:
    """A row for each checkpoint of a run (or for that of `step`), once its files are compared with their hashes.

    InputError if there are none.
    """
    folder = _checkpoints_of(run)
    paths = [path for path in numbered(folder) if step is None or step_of(path) == step]
    if not paths:
        steps = ", ".join(str(step_of(path)) for path in numbered(folder)) or "none"
        of_step = "" if step is None else f" of step {step}"
        raise InputError(f"{folder} has no checkpoint{of_step}; steps there: {steps}")
    for path in paths:
        why = why_unsound(path)
        # A run that went back has set its later checkpoints aside. They are no damage, and nobody asked for them.
        aside = step is None and state_of(path)[0] == "set aside"
        if path.exists():  # else the run that goes on here has deleted it in the meantime
            yield Verified(str(run), step_of(path), None if aside else not why, why)


def _checkpoints_of(run: Path) -> Path:
    """The folder of a run's checkpoints. InputError if there are none."""
    folder = RunFolder(run).checkpoints
    if not run.is_dir():
        raise InputError(f"there is no run folder {run}")
    if not folder.is_dir() or not any(folder.iterdir()):
        raise InputError(f"{run} has no checkpoint")
    return folder


def _rules(run: Path) -> Checkpoint | None:
    """The run's section `checkpoint`; None where it cannot be read."""
    try:
        section = json.dumps(read_dict(RunFolder(run).config).get("checkpoint"))
        return Checkpoint.model_validate_json(section)  # as JSON, in which a tuple is a list
    except ValidationError:
        return None


def _listed(
    run: Path, path: Path, step: int, state: CheckpointState, why: str, kept_by: list[str] | None
) -> Iterator[Listed]:
    """The row of one folder; none if the run that goes on here has deleted it in the meantime."""
    manifests = [path / name for name in (MANIFEST, SUPERSEDED, DAMAGED) if (path / name).is_file()]
    try:
        sizes = {file.name: file.stat().st_size for file in path.iterdir() if file.is_file()}
        saved = (manifests or [path])[0].stat().st_mtime
    except FileNotFoundError:
        return
    kinds = sorted(name.removesuffix(SUFFIX) for name in sizes if name.endswith(SUFFIX))
    when = datetime.fromtimestamp(saved, UTC).isoformat(timespec="seconds")
    yield Listed(str(run), step, state, why, sum(sizes.values()), when, kinds, kept_by)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m record.checkpoints", description="Look at the checkpoints of runs; nothing is changed."
    )
    acts = parser.add_subparsers(dest="act", required=True)
    for name, what, operand in (
        ("list", "list them: state, size, time, kinds of tensors, and the rules that keep them", "RUN"),
        ("verify", "compare every file with its hash; exit code 1 if a checkpoint is not sound", "RUN[@STEP]"),
    ):
        act = acts.add_parser(name, help=what, description=what)
        act.add_argument("runs", nargs="+", metavar=operand, help="run folder")
        act.add_argument("--json", action="store_true", help="print one JSON array")
    args = parser.parse_args(argv)
    rows: list[Listed | Verified] = []
    failed = False
    for text in args.runs:
        try:
            run, step = parse_address(text) if args.act == "verify" else (Path(text), None)
            # One by one: to hash a large checkpoint takes minutes, and its line is there as soon as that is done.
            for row in verify_checkpoints(run, step) if args.act == "verify" else list_checkpoints(run):
                rows.append(row)
                if not args.json:
                    print(row.line(), flush=True)
        except (InputError, OSError) as error:  # the other runs are looked at all the same
            print(f"error: {error}", file=sys.stderr)
            failed = True
    if args.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
    unsound = any(isinstance(row, Verified) and row.sound is False for row in rows)
    return 1 if unsound else 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
