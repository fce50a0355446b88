"""One job of a sweep: its script, the site's file, what a rank learns from SLURM, how its end is judged."""

from __future__ import annotations

import re
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from record.run import RunFolder
from slurm import task
from slurm.site import load_site
from tests.processes import ROOT


def test_batch_script() -> None:
    """Breaks if the script stops being valid bash, reaches for ssh, or lets the shell expand a name."""
    script = (ROOT / "slurm" / "train.sbatch").read_text()
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    code = "\n".join(line for line in script.splitlines() if not line.startswith("#"))
    assert not re.search(r"\b(ssh|pdsh|eval|mpirun|CUDA_VISIBLE_DEVICES)\b", code)
    assert re.search(r"^srun .*slurm.task rank", code, re.MULTILINE)
    assert "scontrol requeue" in code
    unquoted = re.findall(r'(?<!["\[{=\d])\$(?!\(|@|\!|\?)\w+', code)
    assert unquoted == [], "every expansion is quoted"


def test_site(tmp_path: Path) -> None:
    """Breaks if the example is not a site, or a mistake in one is not named."""
    assert load_site(ROOT / "slurm" / "site.example.json")[0].ranks == 4
    (tmp_path / "site.json").write_text('{"gpus_per_node": 8}')
    with pytest.raises(ValueError, match="one rank per GPU, so set them equal"):
        load_site(tmp_path / "site.json")
    (tmp_path / "site.json").write_text('{"acount": "x"}')
    with pytest.raises(ValueError, match="did you mean 'account'"):
        load_site(tmp_path / "site.json")


def test_rank_variables() -> None:
    """Breaks if a rank is told another place than SLURM's."""
    assert [task.tasks_here("2(x2),1", node) for node in range(3)] == [2, 2, 1]
    env = {
        "SLURM_PROCID": "3",
        "SLURM_NTASKS": "5",
        "SLURM_LOCALID": "1",
        "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
        "SLURM_NODEID": "1",
    }
    place = {"RANK": "3", "WORLD_SIZE": "5", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    assert task.rank_variables(env) == place
    assert task.rank_variables(env | {"SLURM_CPUS_PER_TASK": "8"}) == place | {"OMP_NUM_THREADS": "8"}
    assert task.free_port("12") != task.free_port("13")


def test_outcomes(tmp_path: Path) -> None:
    """Breaks if a job is requeued that was cancelled, stopped by its user or is getting nowhere, or is not when it should be."""
    folder = RunFolder(tmp_path)
    now = time.time() - 1
    assert task.outcome(folder, now) == (1, "failed: the run did not start; it ended without a word")
    folder.record_start({"step": 5, "time": datetime.now(UTC).isoformat()})
    cases = {
        ("preempted", 9, "SIGUSR1"): 75,
        ("preempted", 5, "SIGUSR1"): 1,
        ("preempted", 9, "SIGTERM"): 0,
        ("preempted", 9, "stop file x"): 0,
        ("done", 10, ""): 0,
        ("diverged", 7, "loss nan"): 0,
        ("running", 7, ""): 1,
        ("failed", 7, "OSError"): 1,
    }
    for (state, step, reason), code in cases.items():
        folder.write_status(state, step, 10, reason)  # type: ignore[arg-type]
        assert task.outcome(folder, now)[0] == code, state
    assert task.outcome(folder, time.time() + 60)[0] == 1, "an older attempt's status"
    folder.record_start({"step": 5, "time": "2020-01-01T00:00:00+00:00"})
    folder.write_status("preempted", 9, 10, "SIGUSR1")
    assert task.outcome(folder, now)[0] == 1, "stopped while it started, at the step of an earlier attempt: no progress"
