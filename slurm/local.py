"""The cells of a sweep on this machine, a few at a time, in the order of their stages."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tqdm import tqdm

from configs.sweep import Cell
from record.run import EXIT_CODES
from slurm.cells import FINISHED, blocked, config_path, note_refusal, standings
from slurm.status import render_counts

ROOT = Path(__file__).resolve().parent.parent
LOOK_S = 5.0  # between looks at every run's log, which takes time that the runs could use


@dataclass
class Job:
    cell: Cell
    slot: int
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    started: float


def run_local(root: Path, cells: list[Cell], jobs: int) -> int:
    """Run `cells`, at most `jobs` at once, a cell once what it starts from is there. Returns the exit code.

    A signal to stop is handed to the runs, which save; 75 then, 1 if a run failed, else 0.
    """
    waiting, running, stopped, looked = list(cells), list[Job](), list[int](), 0.0
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda found, _: stopped.append(found))
    steps = sum(cell.config.schedule.steps for cell in cells)
    with tqdm(total=steps, unit=" steps", desc=root.name, mininterval=0.5 if sys.stderr.isatty() else 30) as bar:
        while running or (waiting and not stopped):
            for job in [job for job in running if job.process.poll() is not None]:
                job.log.close()
                note_refusal(job.cell.folder, job.started, Path(job.log.name))
                running.remove(job)
                known = standings([job.cell])[job.cell.folder]
                tqdm.write(
                    f"{job.cell.folder}: {known.state} at step {known.step}{': ' + known.why if known.why else ''}"
                )
            if stopped:
                for job in running:
                    job.process.send_signal(signal.SIGTERM)
            free = set(range(jobs)) - {job.slot for job in running}
            for cell in [cell for cell in waiting if not blocked(cell)][: 0 if stopped else len(free)]:
                waiting.remove(cell)
                running.append(_start(root, cell, free.pop(), jobs))
            if not running and waiting and all(blocked(cell) for cell in waiting):
                break
            if time.monotonic() > looked + LOOK_S:
                found, looked = standings(cells), time.monotonic()
                bar.set_postfix_str(render_counts(found), refresh=False)
                bar.update(sum(known.step for known in found.values()) - bar.n)
            time.sleep(0.5)
    found = standings(cells)
    print(render_counts(found))
    for cell in waiting if not stopped else []:
        print(f"{cell.folder}: blocked: {blocked(cell)}")
    if stopped:
        return EXIT_CODES["preempted"]
    return 0 if all(found[cell.folder].state in FINISHED for cell in cells) else 1


def _start(root: Path, cell: Cell, slot: int, jobs: int) -> Job:
    """Its share of cores, and of GPUs where there are any; output in the run folder's logs/."""
    threads = max(1, len(os.sched_getaffinity(0)) // jobs)
    env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    if (devices := _devices()) and jobs > 1:
        env["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]
    logs = cell.folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    log = open(logs / "local.log", "ab")  # noqa: SIM115 (closed when the run has ended)
    command = [sys.executable, "train.py", "--config", str(config_path(root, cell).resolve())]
    command += ["--run-dir", str(cell.folder.resolve()), "--set", f"parallel.threads_per_rank={threads}"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
    )
    return Job(cell, slot, process, log, time.time())


def _devices() -> list[str]:
    """The GPUs this process may use, by number; none without an NVIDIA driver."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    return [str(index) for index, line in enumerate(listed.splitlines()) if line.startswith("GPU ")]
