"""What a task of a job array does, on its node: `python -m slurm.task ACT …`, called by slurm/train.sbatch.

    ready SUBMISSION              may the cell start? prints why not; exit code 3 where it is blocked, or has finished
    container SUBMISSION          the words before the training command, NUL-terminated
    port                          a free port for the rendezvous, on this host
    rank SUBMISSION               become one rank of train.py, its output in the run folder's logs/
    outcome SUBMISSION STARTED CODE    exit code of the job, 75 to requeue it; STARTED in seconds since the epoch, CODE srun's

The submission is the file slurm/submit.py wrote; SLURM_ARRAY_TASK_ID says which of its cells this is.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from configs.errors import InputError
from record.environment import slurm_job
from record.run import EXIT_CODES, FINISHED, RunFolder
from slurm.cells import aftermath, unready
from slurm.refusals import headline, how_it_ended

NOTHING_TO_DO = 3
FIRST_PORT, PORTS = 10_000, 20_000  # below the range from which the kernel gives out ports by itself


def main(argv: list[str] | None = None) -> int:
    act, *rest = sys.argv[1:] if argv is None else argv
    if act == "port":
        print(free_port(os.environ.get("SLURM_JOB_ID", "0")))
        return 0
    submission = json.loads(Path(rest[0]).read_text(encoding="utf-8"))
    cell = submission["cells"][int(os.environ["SLURM_ARRAY_TASK_ID"])]
    match act:
        case "ready":
            print(headline(attempt()), end="")
            code, line = readiness(cell)
        case "container":
            sys.stdout.write("".join(word + "\0" for word in submission["site"]["container"]))
            return 0
        case "rank":
            become_rank(cell, os.environ)
        case "outcome":
            log = Path(rest[0]).parent.parent / "slurm" / f"{slurm_job()}.log"
            code, line = outcome(RunFolder(cell["folder"]), float(rest[1]), log, how_it_ended(int(rest[2])))
        case _:
            raise SystemExit(f"unknown act {act!r}")
    print(f"{cell['folder']}: {line}")
    return code


def readiness(cell: dict[str, Any]) -> tuple[int, str]:
    """0 if a cell may start, else NOTHING_TO_DO; and why not."""
    status = RunFolder(cell["folder"]).read_status()
    if status is not None and status["state"] in FINISHED:
        return NOTHING_TO_DO, f"{status['state']} already"
    why = unready(cell["parent"], cell["step"]) if cell["parent"] else ""
    return (NOTHING_TO_DO, f"blocked: {why}") if why else (0, "ready")


def become_rank(cell: dict[str, Any], env: Any) -> NoReturn:
    """Replace this process by train.py, as the rank that SLURM's variables say. Does not return."""
    logs = Path(cell["folder"]) / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    log = os.open(logs / f"rank_{int(env['SLURM_PROCID']):04d}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.write(log, headline(attempt()).encode())
    os.dup2(log, 1)
    os.dup2(log, 2)
    command = [sys.executable, "train.py", "--config", cell["config"], "--run-dir", cell["folder"]]
    os.execve(sys.executable, command, {**env, **rank_variables(env), "PYTHONUNBUFFERED": "1"})


def attempt() -> str:
    return f"job {slurm_job()}, restart {os.environ.get('SLURM_RESTART_COUNT', '0')}"


def rank_variables(env: Any) -> dict[str, str]:
    """What train.py wants to know of its place, from SLURM's variables of the step."""
    return {
        "RANK": env["SLURM_PROCID"],
        "WORLD_SIZE": env["SLURM_NTASKS"],
        "LOCAL_RANK": env["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(tasks_here(env["SLURM_STEP_TASKS_PER_NODE"], int(env["SLURM_NODEID"]))),
        **({"OMP_NUM_THREADS": cpus} if (cpus := env.get("SLURM_CPUS_PER_TASK")) else {}),
    }


def tasks_here(text: str, node: int) -> int:
    """`2(x3),1` → [2, 2, 2, 1][node]."""
    counts: list[int] = []
    for part in text.split(","):
        count, _, times = part.partition("(x")
        counts += [int(count)] * int(times.rstrip(")") or 1)
    return counts[node]


def free_port(job: str) -> int:
    """A port that is free on this host; which one is tried first follows from the job, so that neighbours do not collide."""
    first = int.from_bytes(hashlib.sha256(job.encode()).digest()[:4], "big")
    for offset in range(PORTS):
        port = FIRST_PORT + (first + offset) % PORTS
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
        return port
    raise InputError(f"no free port from {FIRST_PORT} to {FIRST_PORT + PORTS} on {socket.gethostname()}")


def outcome(folder: RunFolder, started: float, log: Path | None = None, ended: str = "") -> tuple[int, str]:
    """The job's exit code and why: 0 the run has ended, was asked to stop or is somebody else's, 75 requeue it, 1 it failed.

    `log` is the job's own, where SLURM says what it has to say.
    """
    word, why = aftermath(folder.path, started, sorted((folder.path / "logs").glob("rank_*.log")), log, ended)
    if word == "held":
        return 0, f"not run here: {why}"
    if word == "refused":
        return 1, f"failed: the run did not start; {why}"
    status = folder.read_status() or {}
    state, reason, step = status["state"], status["reason"], status["step"]
    if state == "preempted" and reason == "SIGUSR1":
        if step <= begun_at(folder, started, step):
            return 1, f"failed: no step between the start and the time limit, at step {step}; set a longer time"
        if (word := shown_job().get("JobState", "RUNNING")) != "RUNNING":  # cancelled while it saved: it stays so
            return 0, f"saved at step {step}; its job is {word}, so it is not requeued"
        return EXIT_CODES["preempted"], f"saved at step {step} before the time limit; requeued"
    if state == "preempted" and reason == "SIGTERM" and preempted_by_slurm():
        return EXIT_CODES["preempted"], f"saved at step {step}, preempted; requeued"
    if state in ("done", "diverged", "preempted"):
        return 0, f"{state} at step {step}{': ' + reason if reason else ''}"
    return 1, f"failed at step {step}: {reason or 'its process was killed'}"


def begun_at(folder: RunFolder, started: float, step: int) -> int:
    """The step at which the attempt that began at `started` went on; `step`, the present one, where it came to no training."""
    row = folder.last_start() or {}
    begun = datetime.fromisoformat(row["time"]).timestamp() if "time" in row else 0.0
    return int(row["step"]) if begun >= int(started) else step


def preempted_by_slurm() -> bool:
    """Whether SLURM is preempting this job, and nobody has cancelled it: one that ends in its grace time is not requeued."""
    job = shown_job()
    return job.get("JobState") == "RUNNING" and job.get("PreemptTime", "None") not in ("None", "Unknown", "N/A")


def shown_job() -> dict[str, str]:
    """What SLURM says of this job, by its names for it; empty where it does not answer."""
    command = ["scontrol", "show", "job", "-o", slurm_job() or ""]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return dict(word.split("=", 1) for word in shown.split() if "=" in word)


if __name__ == "__main__":
    sys.exit(main())
