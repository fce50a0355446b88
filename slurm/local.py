"""The cells of a sweep on this machine, a few at a time, in the order of their stages."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from configs.micro_batch import DEFAULT_GIB
from configs.sweep_cell import Cell
from record.environment import usable_cores
from record.lock import holder
from record.run import EXIT_CODES, FINISHED, RunFolder
from slurm.cells import Standing, aftermath, blocked, config_path, is_alive, standings
from slurm.refusals import headline, how_it_ended
from slurm.status import render_counts
from slurm.trainings import Training, trainings_here, writer_here

ROOT = Path(__file__).resolve().parent.parent
LOOK_S = 5.0  # between looks at every run's log, which takes time that the runs could use


@dataclass
class Job:
    """A cell in training: by our `process`, or by `others`, processes of this machine that we found at it.

    `slot` is its place among those that run at once. It is None, and the job is only waited for, where the cell is a SLURM
    job's, or another machine's, of which we know no process.
    """

    cell: Cell
    slot: int | None
    started: float
    process: subprocess.Popen[bytes] | None = None
    others: list[Training] = field(default_factory=list)

    @property
    def runs(self) -> bool:
        if self.process is not None:
            return self.process.poll() is None
        return any(training.lives for training in self.others) if self.others else is_alive(RunFolder(self.cell.folder))

    @property
    def log(self) -> Path:
        return self.cell.folder / "logs" / "local.log"

    def ask_to_stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
        for training in self.others if self.slot is not None else []:
            if training.lives:
                os.kill(training.pid, signal.SIGTERM)


def run_local(root: Path, cells: list[Cell], jobs: int) -> int:
    """Run `cells`, at most `jobs` at once, a cell once what it starts from is there. Returns the exit code.

    Cells that somebody trains already are not started: those of this machine, left by a runner that was killed, take one of
    the `jobs` places until they end. A signal to stop is handed to the runs, which save; 75 then, 1 if a run failed, else 0.
    """
    waiting, running, stopped, looked = list(cells), list[Job](), list[int](), 0.0
    standing_of: dict[Path, Standing] = {}
    _listen(stopped)
    _say(_shares(cells, jobs))
    running += _adopted(waiting, running, jobs)
    steps = sum(cell.config.schedule.steps for cell in cells)
    with tqdm(total=steps, unit=" steps", desc=root.name, mininterval=0.5 if sys.stderr.isatty() else 30) as bar:
        while any(job.slot is not None for job in running) or ((running or waiting) and not stopped):
            for job in [job for job in running if not job.runs]:
                running.remove(job)
                if _is_over(job, bool(stopped)):
                    continue
                waiting.insert(0, job.cell)  # somebody else was faster: found at it below
            if stopped:
                for job in running:
                    job.ask_to_stop()
            elif any(not blocked(cell) for cell in waiting) and (free := _free(running, jobs)):
                running += _adopted(waiting, running, jobs)
                free = _free(running, jobs)
                for cell in [cell for cell in waiting if not blocked(cell)][: len(free)]:
                    waiting.remove(cell)
                    running.append(_start(root, cell, free.pop(0), jobs))
            if not running and waiting and all(blocked(cell) for cell in waiting):
                break
            if time.monotonic() > looked + LOOK_S:
                standing_of, looked = standings(cells, before=standing_of), time.monotonic()
                bar.set_postfix_str(render_counts(standing_of), refresh=False)
                bar.update(sum(standing.step for standing in standing_of.values()) - bar.n)
            time.sleep(0.5)
    standing_of = standings(cells)
    _say(render_counts(standing_of))
    for cell in waiting if not stopped else []:
        _say(f"{cell.folder}: blocked: {blocked(cell)}")
    if stopped:
        return EXIT_CODES["preempted"]
    return 0 if all(standing_of[cell.folder].state in FINISHED for cell in cells) else 1


def _listen(stopped: list[int]) -> None:
    """Note every request to stop; a terminal that closes is one, unless nohup has it ignored."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda received, _: stopped.append(received))


def _say(text: str) -> None:
    """Print over the bar; a terminal that was closed hears nothing, and the runs go on."""
    try:
        tqdm.write(text)
        sys.stdout.flush()
    except OSError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (what is left in the old one would fail again at the end)


def _free(running: list[Job], jobs: int) -> list[int]:
    """The places that nobody has. Where more train than `jobs` allows, some have places beyond."""
    taken = {job.slot for job in running if job.slot is not None}
    return sorted(set(range(jobs)) - taken)[: max(0, jobs - len(taken))]


def _adopted(waiting: list[Cell], running: list[Job], jobs: int) -> list[Job]:
    """Take from `waiting` the cells that somebody trains already, and say so of each."""
    here, adopted = trainings_here(), list[Job]()
    for cell in list(waiting):
        others = here.get(cell.folder.resolve(), [])
        held = is_alive(RunFolder(cell.folder))
        if not others and held and (writer := writer_here(cell.folder)):
            others = [writer]
        if not others and not held:
            continue
        waiting.remove(cell)
        began = min((training.began_at for training in others), default=time.time())
        job = Job(cell, None, began, others=others)
        numbers = ", ".join(str(training.pid) for training in others)
        if others and {training.job for training in others} <= {"", os.environ.get("SLURM_JOB_ID", "")}:
            job.slot = _place(others, running + adopted, jobs)
            _say(f"{cell.folder}: in training already, by process {numbers}; it takes a place of the {jobs}")
        else:
            who = holder(cell.folder) if held else f"process {numbers}, a SLURM job's"
            _say(f"{cell.folder}: held by {who}; not run here, waited for")
        adopted.append(job)
    return adopted


def _place(others: list[Training], running: list[Job], jobs: int) -> int:
    """The place whose device they have, where there are devices and it is free; else the first free one, or one beyond."""
    taken, devices = {job.slot for job in running}, _devices() if jobs > 1 else []
    theirs = [place for place in range(jobs) if devices and devices[place % len(devices)] == others[0].devices]
    free: list[int] = [place for place in [*theirs, *range(jobs + len(running) + 1)] if place not in taken]
    return free[0]


def _is_over(job: Job, stopped: bool) -> bool:
    """Say what became of a job that has ended; False where it never began, because somebody else trains its cell."""
    ended = how_it_ended(job.process.returncode) if job.process is not None else ""
    stopped_early = stopped and job.process is not None and job.process.returncode < 0  # before it could leave a status
    if job.slot is not None and not stopped_early:
        word, _ = aftermath(job.cell.folder, job.started, [job.log], None, ended)
        if word == "held":
            return False
    standing = standings([job.cell])[job.cell.folder]
    _say(f"{job.cell.folder}: {standing.state} at step {standing.step}{': ' + standing.why if standing.why else ''}")
    return True


def _shares(cells: list[Cell], jobs: int) -> str:
    """How many threads the runs get, and whether these are more than there are cores."""
    cores = usable_cores()
    given = sorted({int(text) for cell in cells if (text := threads_of(cell, jobs)).isdecimal()})
    line = f"{jobs} run(s) at once on {cores} core(s), threads of a run: {', '.join(map(str, given)) or 'none'}"
    if any(bounded_memory(cell, jobs) for cell in cells):
        line += f"; they share GPUs, so each gets batch.memory_gib {DEFAULT_GIB:g} where it names none"
    if given and given[-1] * jobs > cores:
        line += "; more threads than cores slow each other (parallel.threads_per_rank of the configuration is kept)"
    return line


def threads_of(cell: Cell, jobs: int) -> str:
    """A run's OMP_NUM_THREADS: what its configuration gives, else its share of the cores, or less where the shell's is less."""
    if cell.config.parallel.threads_per_rank is not None:
        return str(cell.config.parallel.threads_per_rank)
    share, text = max(1, usable_cores() // jobs), os.environ.get("OMP_NUM_THREADS", "").strip()
    outermost = text.partition(",")[0].strip()
    if text and not outermost.isdecimal():
        return text  # which the run will refuse, and say why
    return str(min(share, int(outermost)) if text else share)


def _start(root: Path, cell: Cell, slot: int, jobs: int) -> Job:
    """Its share of cores, and of GPUs where there are any; output in the run folder's logs/."""
    env = {**os.environ, "OMP_NUM_THREADS": threads_of(cell, jobs)}
    if (devices := _devices()) and jobs > 1:
        env["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]
    job = Job(cell, slot, time.time())
    job.log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "train.py", "--config", str(config_path(root, cell).resolve())]
    command += ["--run-dir", str(cell.folder.resolve()), *bounded_memory(cell, jobs)]
    with open(job.log, "ab") as log:
        log.write(headline(f"started by process {os.getpid()}").encode())
        log.flush()
        # A session of its own: Ctrl-C and a closed terminal reach this runner, which tells the runs.
        job.process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
        )
    return job


def bounded_memory(cell: Cell, jobs: int) -> list[str]:
    """Options that keep a run from taking a whole GPU for its activations, where several share one."""
    batch, devices = cell.config.batch, _devices()
    if jobs <= len(devices) or not devices or batch.micro_batch is not None or batch.memory_gib is not None:
        return []
    return ["--set", f"batch.memory_gib={DEFAULT_GIB:g}"]


def _devices() -> list[str]:
    """The GPUs this process may use, by number; none without an NVIDIA driver."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    return [str(index) for index, line in enumerate(listed.splitlines()) if line.startswith("GPU ")]
