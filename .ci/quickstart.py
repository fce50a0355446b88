"""What the quickstart must show: its six runs ended, its report says what the folders hold, mid-run is inverted.

The end is not asserted: whatever its verdict is, it is an outcome and no property of the code.
"""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from statistics import fmean, stdev

ROOT = Path("runs/quickstart")
T_2 = 4.302653  # Student's t, 97.5 %, two degrees of freedom: three seeds
STEPS, MIDRUN = 2000, 900  # 45 % of the run, the declared place


def column(folder: Path, name: str) -> dict[int, float]:
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row[name] for row in rows if name in row}


def interval(values: list[float]) -> tuple[float, float, float]:
    half = T_2 * stdev(values) / math.sqrt(len(values))
    return fmean(values), fmean(values) - half, fmean(values) + half


runs: dict[tuple[float, int], dict[int, float]] = {}
for folder in sorted(ROOT.glob("weight_decay*-seeds*-*")):
    config = json.loads((folder / "config.json").read_text())
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], status["step"]) == ("done", STEPS), (folder, status)
    runs[config["optim"]["weight_decay"], config["seeds"]["init"]] = column(folder, "val/loss")
assert sorted(runs) == [(decay, seed) for decay in (0.0, 0.15) for seed in (0, 1, 2)], sorted(runs)

with open("runs/report/figures/loss_curves_table1.csv", newline="") as file:
    decayed = next(row for row in csv.DictReader(file) if "0.15" in row["run"])
for step, name in ((MIDRUN, "validation difference in mid-run"), (STEPS, "validation difference")):
    mean, low, high = interval([runs[0.15, seed][step] - runs[0.0, seed][step] for seed in (0, 1, 2)])
    ours = f"{mean:+.4f} [{low:+.4f}, {high:+.4f}] (3 seeds)"
    print(f"validation loss at step {step}, λ = 0.15 minus λ = 0: {ours}")
    assert decayed[name] == ours, f"the report has {decayed[name]}"
    if step == MIDRUN:
        assert low > 0, "λ = 0.15 must lie above λ = 0 in mid-run"
levels = [runs[0.0, seed][STEPS] for seed in (0, 1, 2)]
assert max(levels) - min(levels) < 0.1, f"the seeds of λ = 0 end apart: {levels}"
print(f"λ = 0 ends at {fmean(levels):.4f}, seeds {max(levels) - min(levels):.4f} apart")
