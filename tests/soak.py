"""The fault bench: a small two-rank run, disturbed at random moments again and again, must end as the undisturbed one.

    python -m tests.soak --faults 200 --seed 0 --out benchmarks/results/soak.json

Every launch is hit by one fault and the next one resumes by itself, until the run ends; then its final weights, moments
and order digest are compared, bit for bit, with those of a run nothing happened to. A fault is survived if no process
is left after it, the status never says done before the end, the run ends, and ends the same; a damaged token shard must
be refused. The full disk is a small tmpfs, which needs root: without it that fault is left out, and the table says so.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.load import merge
from data.prepare import Options, prepare
from data.sources import Source
from record.checkpoints import complete
from record.environment import environment
from record.files import write_json
from record.metrics import read_metrics
from tests.conftest import TINY
from tests.faults import FAULTS, STEPS, WHOLE_S, Run

CASES = [("fp32", 0), ("bf16-mixed", 2), ("bf16-master", 1), ("fp32", 3)]
SETTINGS: dict[str, Any] = {
    "schedule": {"steps": STEPS},
    "checkpoint": {"every": 8, "keep_last": 3},
    "eval": {"every": 50},
    "log": {"every": 1},
    "data": {"verify": "before"},  # so that no step is taken on a shard that must be refused
}


@dataclass
class Row:
    count: int = 0
    survived: int = 0
    lost_steps: int = 0


def soak(
    faults: int, seed: int, work: Path, cases: list[tuple[str, int]], say: Callable[[str], None]
) -> dict[str, Row]:
    """Apply `faults` faults; returns what became of them, by kind."""
    dice, table = random.Random(seed), {name: Row() for name in FAULTS}
    root = Path(sysconfig.get_paths()["stdlib"])
    prepare(
        Source.local("text", sorted(root.glob("[act]*.py"))),
        work / "data",
        Options(vocab_size=512, val_fraction=0.2, seed=0),
    )
    with small_disk(work / "disk") as limited:
        if not limited:
            del table["disk full"]
            say("no root: the full disk is left out")
        reference = {
            case: final(_finish(new_run(case, work, f"reference-{case[0]}-{case[1]}", dice))) for case in cases
        }
        waiting: list[str] = []
        number = 0
        while sum(row.count for row in table.values()) < faults:
            number += 1
            run = new_run(cases[number % len(cases)], work, f"run{number}", dice)
            while run.state() != "done":
                if not waiting:
                    waiting = dice.sample(list(table), len(table))
                enough = sum(row.count for row in table.values()) + len(run.faults) >= faults
                problem = attack(run, None if enough else waiting, table)
                if problem:
                    break
            if not problem:
                problem = "" if final(run) == reference[run.case] else "it ended with other weights or another order"
            for name in run.faults:
                table[name].count += 1
                table[name].survived += not problem
            say(f"{run.path.name} {run.case}: {len(run.faults)} faults, {problem or 'the same to the last bit'}")
            if run.path.exists():  # one that never came so far as to make it has its problem said
                if problem:
                    shutil.copytree(run.path, work / f"kept-{run.path.name}")
                shutil.rmtree(run.path)
    return table


def attack(run: Run, waiting: list[str] | None, table: dict[str, Row]) -> str:
    """One launch and the next fault in `waiting`, if any; returns what went wrong, and counts the steps taken twice."""
    before, resumes = run.reached, len(_resumes(run))
    name = waiting[-1] if waiting else ""
    run.launch()
    try:
        happened = bool(name) and FAULTS[name](run)
        output = run.settle(WHOLE_S)
        assert name or run.state() == "done", f"it did not go on: {output[-2000:]}"
        assert run.state() != "done" or run.reached == STEPS, f"done at step {run.reached}"
    except (AssertionError, subprocess.TimeoutExpired) as error:
        run.faults += [name] if name else []
        run.kill()
        return f"{name}: {error}"
    if run.since_resume and len(_resumes(run)) > resumes:
        table[run.since_resume[0]].lost_steps += max(0, before - _resumes(run)[resumes])
        run.since_resume = []
    if happened and (run.state() != "done" or name == "second process"):
        run.faults.append(name)
        run.since_resume.append(name)
        waiting.pop()  # type: ignore[union-attr]
    return ""


def _resumes(run: Run) -> list[int]:
    found = []
    for line in run.folder.metrics.read_text().splitlines() if run.folder.metrics.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if row.get("event") == "resume":
            found.append(row["step"])
    return found


def new_run(case: tuple[str, int], work: Path, name: str, dice: random.Random) -> Run:
    precision, stage = case
    overrides = {"precision": precision, "parallel": {"zero_stage": stage}, "data": {"path": str(work / "data")}}
    config = work / f"{precision}-{stage}.json"
    config.write_text(json.dumps(merge(merge(TINY, SETTINGS), overrides)))
    return Run(case, work / "disk" / name, config, work / "data", dice)


def _finish(run: Run) -> Run:
    run.launch()
    output = run.settle(WHOLE_S)
    assert run.state() == "done", output
    return run


def final(run: Run) -> dict[str, Any]:
    """What a run has come to: hashes of its last checkpoint's files, its counters, its losses, in training and validation.

    Not when it was last evaluated before that checkpoint: a stop at the last step saves first and evaluates on resuming.
    """
    manifest = json.loads((complete(run.folder.checkpoints)[-1] / "manifest.json").read_text())
    losses = [(row.get("train/loss"), row.get("val/loss")) for row in read_metrics(run.folder.metrics)[0]]
    counters = {name: value for name, value in manifest["counters"].items() if name != "evaluated"}
    return {"files": manifest["files"], "counters": counters, "losses": losses}


@contextmanager
def small_disk(path: Path) -> Iterator[bool]:
    """A folder on a disk of its own of a few megabytes; False where that needs root."""
    path.mkdir()
    limited = (
        os.geteuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=12m", "none", str(path)], capture_output=True
        ).returncode
    )
    try:
        yield limited
    finally:
        if limited:
            subprocess.run(["umount", "-l", str(path)], check=True)


def render(table: dict[str, Row]) -> str:
    lines = [f"{'fault':<28} {'count':>6} {'survived':>9} {'lost steps':>11}"]
    rows = [*table.items(), ("all", Row(*(sum(getattr(r, k) for r in table.values()) for k in Row.__annotations__)))]
    return "\n".join(lines + [f"{n:<28} {r.count:>6} {r.survived:>9} {r.lost_steps:>11}" for n, r in rows])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description="Disturb a run again and again.")
    parser.add_argument("--faults", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=len(CASES), help="of the precisions and ZeRO stages, the first n")
    parser.add_argument("--out", type=Path, help="also write the table as JSON")
    args = parser.parse_args(argv)
    begun = time.monotonic()
    work = Path(tempfile.mkdtemp(prefix="soak-"))
    table = soak(args.faults, args.seed, work, CASES[: args.cases], lambda text: print(text, flush=True))
    print(render(table))
    survived = all(row.survived == row.count for row in table.values())
    if survived:
        shutil.rmtree(work)
    else:
        print(f"kept: {work}")
    if args.out:
        command = f"python -m tests.soak --faults {args.faults} --seed {args.seed}"
        cases = [f"{precision}, ZeRO {stage}" for precision, stage in CASES[: args.cases]]
        row = {"command": command, "cases": cases, "minutes": round((time.monotonic() - begun) / 60, 1)}
        machine = {"cpu": platform.processor() or platform.machine(), **environment()}
        rows = {name: vars(r) for name, r in table.items()}
        write_json(
            args.out,
            row | {"checkpoint_every": SETTINGS["checkpoint"]["every"], "faults": rows, "environment": machine},
        )
    return 0 if survived else 1


if __name__ == "__main__":
    sys.exit(main())
