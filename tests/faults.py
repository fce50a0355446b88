"""What can befall a run at a random moment, and the run under attack; tests/soak.py applies the faults."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from record.checkpoints import complete
from record.metrics import read_metrics
from record.run import RunFolder
from tests.processes import processes_with, start

STEPS = 240
LEFT_S = 60.0  # within which a run ends after a fault, every process of it
WHOLE_S = 300.0  # how long an undisturbed run may take


@dataclass
class Run:
    """One run under attack."""

    case: tuple[str, int]
    path: Path
    config: Path
    data: Path
    dice: random.Random
    process: subprocess.Popen[str] | None = None
    faults: list[str] = field(default_factory=list)
    since_resume: list[str] = field(default_factory=list)  # faults since the run last got as far as resuming

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.path)

    @property
    def reached(self) -> int:
        return max((row["step"] for row in read_metrics(self.folder.metrics)[0]), default=0)

    def launch(self) -> None:
        self.process = start(self.config, self.path, ranks=2)

    def running(self) -> bool:
        assert self.process is not None
        return self.process.poll() is None

    def wait_for_moment(self) -> bool:
        """Sleep to a random moment: one in six in the start, the others within the steps. False if the run ended before."""
        if self.dice.random() < 1 / 6:
            deadline = time.monotonic() + self.dice.uniform(0.2, 5)
            while self.running() and time.monotonic() < deadline:
                time.sleep(0.01)
        else:
            step = self.reached + 1 + self.dice.randrange(60)
            while self.running() and self.reached < min(step, STEPS - 2):
                time.sleep(0.01)
            time.sleep(self.dice.uniform(0, 0.05))
        return self.running()

    def wait_for_save(self) -> bool:
        step = self.reached + self.dice.randrange(60)
        while self.running():
            if list(self.folder.checkpoints.glob(".step_*.tmp")) and self.reached >= step:
                return True
            time.sleep(0.002)
        return False

    def kill(self, victim: str = "") -> None:
        """Every process of this run, or only those with `victim` in their command line."""
        for pid, command in processes_with(str(self.path)).items():
            if victim in command:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def settle(self, limit_s: float = LEFT_S) -> str:
        """Wait for the end of every process, at most `limit_s`; returns what was printed, once."""
        assert self.process is not None
        deadline = time.monotonic() + limit_s
        while left := processes_with(str(self.path)):
            assert time.monotonic() < deadline, f"left after {limit_s} s: {left}"
            time.sleep(0.05)
        assert self.process.stdout is not None
        return "" if self.process.stdout.closed else self.process.communicate(timeout=120)[0]

    def state(self) -> str:
        status = self.folder.read_status()
        return str(status["state"]) if status else "none"


# Each fault disturbs a launched run and returns whether it could; afterwards nothing of the launch may be left.


def killed(victim: str, in_a_save: bool = False) -> Callable[[Run], bool]:
    """The fault that kills the run's processes with `victim` in their command line; all of them if it is empty."""

    def fault(run: Run) -> bool:
        chosen = victim.format(rank=run.dice.randrange(2))
        happened = run.wait_for_save() if in_a_save else run.wait_for_moment()
        run.kill(chosen)
        run.settle()
        return happened

    return fault


def terminated(run: Run) -> bool:
    happened = run.wait_for_moment()
    assert run.process is not None
    run.process.send_signal(signal.SIGTERM)
    run.settle()
    return happened


def disk_full(run: Run) -> bool:
    """To its last few pages, so that a save, a status or a row of metrics tears."""
    happened = run.wait_for_moment()
    ballast = run.path.parent / "ballast"
    with open(ballast, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError:
            pass
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    keep = run.dice.randrange(60) * 4096
    os.truncate(ballast, max(0, ballast.stat().st_size - keep))
    run.settle()
    ballast.unlink()
    return happened


def _damage(run: Run, how: Callable[[Path], None]) -> bool:
    happened = run.wait_for_moment()
    run.kill()
    run.settle()
    if not (found := complete(run.folder.checkpoints)):
        return False
    how(run.dice.choice(sorted(found[-1].iterdir())))
    return happened


def checkpoint_file_truncated(run: Run) -> bool:
    return _damage(run, lambda file: os.truncate(file, run.dice.randrange(file.stat().st_size)))


def checkpoint_file_flipped(run: Run) -> bool:
    return _damage(run, lambda file: _flip(run, file))


def checkpoint_file_deleted(run: Run) -> bool:
    return _damage(run, lambda file: file.unlink())


def token_shard_flipped(run: Run) -> bool:
    """Must be refused, by its file's name; then the shard is mended."""
    happened = run.wait_for_moment()
    run.kill()
    run.settle()
    shard = run.dice.choice(sorted(run.data.glob("train_0*.bin")))
    place = _flip(run, shard)
    before = run.state()
    run.launch()
    output = run.settle()
    assert f"{shard.name} differs from its hash in the manifest" in output, output
    assert run.state() == before, "a refusal changed the status"
    _flip(run, shard, place)
    return happened


def second_process(run: Run) -> bool:
    """Whichever comes second is told who holds the folder; the other goes on to its end."""
    time.sleep(run.dice.uniform(0, 2))  # later, the first would often be done before the second has started
    happened = run.running()
    other = start(run.config, run.path, ranks=2)
    theirs, _ = other.communicate(timeout=120)
    ours = run.settle(WHOLE_S)
    refused = ("is writing" in ours) + ("is writing" in theirs)
    assert run.state() == "done", ours + theirs
    assert refused < 2, "both were refused"
    return happened and refused == 1


def _flip(run: Run, path: Path, place: tuple[int, int] | None = None) -> tuple[int, int]:
    byte, bit = place or (run.dice.randrange(path.stat().st_size), run.dice.randrange(8))
    with open(path, "r+b") as file:
        file.seek(byte)
        value = file.read(1)[0]
        file.seek(byte)
        file.write(bytes([value ^ 1 << bit]))
    return byte, bit


FAULTS: dict[str, Callable[[Run], bool]] = {
    "rank killed": killed("--local_rank={rank}"),
    "rank killed in a save": killed("--local_rank={rank}", in_a_save=True),
    "launcher killed": killed("deepspeed.launcher.launch"),
    "all killed": killed(""),
    "all killed in a save": killed("", in_a_save=True),
    "SIGTERM": terminated,
    "disk full": disk_full,
    "checkpoint file truncated": checkpoint_file_truncated,
    "checkpoint file bit-flipped": checkpoint_file_flipped,
    "checkpoint file deleted": checkpoint_file_deleted,
    "token shard bit-flipped": token_shard_flipped,
    "second process": second_process,
}
