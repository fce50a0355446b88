"""How long a report of many long runs takes, and how much memory: `python -m benchmarks.analysis --out FILE`.

Makes up run folders (λ × seeds) of 50,000 steps as train.py records them, then times `python -m analysis report` on them as
a process of its own.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.outcome import write_result
from record.metrics import MetricsLog
from record.run import RunFolder

LIMIT_S, LIMIT_BYTES = 60, 2 << 30


def make(folder: Path, runs: int, steps: int) -> int:
    """Run folders of 20 seeds or fewer a λ, whose losses fall and, by λ, differ a little; returns their bytes."""
    step = np.arange(steps + 1)
    columns = {
        "optim/lr": 6e-4 * np.cos(step / steps * 1.4),
        "optim/decay_sum": 1e-5 * step,
        "optim/grad_norm": 0.3 + 1e-6 * step,
        "weights/norm": 100 + 1e-3 * step,
        "weights/norm_decayed": 99 + 1e-3 * step,
        "time/step_s": 0.31 + 1e-7 * step,
        "perf/tokens_per_s": 47_064.14 + 1e-3 * step,
    }
    for i in range(runs):
        decay, seed = (0.0, 0.1, 0.2, 0.3, 0.6)[i % 5], i // 5
        noise = 0.02 * np.random.default_rng(seed).standard_normal(steps + 1)
        curve = 3 + 4 * np.exp(-step / 3000) + 0.01 * decay * (1 - step / steps)
        write_run(RunFolder(folder / f"run{i}"), decay, seed, curve, columns | {"train/loss": curve + noise})
    return sum(path.stat().st_size for path in folder.rglob("*.jsonl"))


def write_run(run: RunFolder, decay: float, seed: int, curve: NDArray[np.float64], columns: dict[str, Any]) -> None:
    """A finished run of these columns by step, with a validation of `curve` every 500 updates."""
    steps = len(curve) - 1
    experiment = {
        "optim": {"weight_decay": decay, "lr": 0.1},
        "seeds": {"init": seed, "data": seed},
        "schedule": {"steps": steps},
        "batch": {"tokens_per_step": 64},
    }
    config = experiment | {"name": run.path.name, "precision": "fp32"}
    run.create(config, config, experiment, {"n_parameters": 1000})
    lists = {name: values.tolist() for name, values in columns.items()}
    rows = []
    for step in range(steps + 1):
        row = {"step": step, "tokens": 64 * step} | {name: values[step] for name, values in lists.items()}
        if step % 500 == 0 or step == steps:
            row["val/loss"] = float(curve[step])
        rows.append(row)
    log = MetricsLog(run.metrics)
    log.write(rows)
    log.close()
    run.write_status("done", steps, steps)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.analysis", description=__doc__)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--steps", type=int, default=50_000)
    parser.add_argument("--out", type=Path, help="results file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        size = make(Path(work) / "runs", args.runs, args.steps)
        begun = time.monotonic()
        command = [sys.executable, "-m", "analysis", "report", f"{work}/runs", "--out", f"{work}/report"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.monotonic() - begun
        page = (Path(work) / "report" / "index.html").stat().st_size
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    row = {
        "log_bytes": size,
        "page_bytes": page,
        "seconds": round(seconds, 1),
        "peak_bytes": peak,
        "within": bool(seconds < LIMIT_S and peak < LIMIT_BYTES),
    }
    print(row)
    if args.out:
        write_result(args.out, "analysis", row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
