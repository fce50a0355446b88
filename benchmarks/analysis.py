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

import numpy as np

from benchmarks.outcome import write_result
from tests.recorded import base_curve, write_run

LIMIT_S, LIMIT_BYTES = 60, 2 << 30


def make(folder: Path, runs: int, steps: int) -> int:
    """Run folders of 20 seeds or fewer a λ; returns their bytes."""
    columns = {
        "optim/lr": lambda s: 6e-4 * np.cos(s / steps * 1.4),
        "optim/decay_sum": lambda s: 1e-5 * s,
        "optim/grad_norm": lambda s: 0.3 + 1e-6 * s,
        "weights/norm": lambda s: 100 + 1e-3 * s,
        "weights/norm_decayed": lambda s: 99 + 1e-3 * s,
        "time/step_s": lambda s: 0.31 + 1e-7 * s,
        "perf/tokens_per_s": lambda s: 47_064.14 + 1e-3 * s,
    }
    for i in range(runs):
        decay, seed = (0.0, 0.1, 0.2, 0.3, 0.6)[i % 5], i // 5
        write_run(
            folder / f"run{i}",
            lambda s, k=decay: base_curve(s / 20) + 0.01 * k * (1 - s / steps),  # type: ignore[misc]
            decay=decay,
            seed=seed,
            steps=steps,
            eval_every=500,
            columns=columns,
        )
    return sum(path.stat().st_size for path in folder.rglob("*.jsonl"))


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
