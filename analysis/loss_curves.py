"""Loss curves: `python -m analysis.loss_curves RUN… --out FILE.png`.

Left: training loss (smoothed) and validation loss against step. Right, for several runs: validation loss minus that
of the run with the smallest weight decay, where the curves cross becomes visible.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import matplotlib
import pandas as pd

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from analysis.runs import Run, differing_fields, find_runs, label, load_run

SMOOTHING = 0.02  # the window of the running mean, as a fraction of the run


def draw(runs: list[Run], out: Path) -> None:
    """Draw the figure for runs ordered by weight decay. The format follows the suffix of `out`."""
    fields = differing_fields(runs)
    colours = plt.get_cmap("viridis")([0.85 * i / max(1, len(runs) - 1) for i in range(len(runs))])
    figure, axes = plt.subplots(1, 2 if len(runs) > 1 else 1, figsize=(11 if len(runs) > 1 else 6, 4.2), squeeze=False)
    for run, colour in zip(runs, colours, strict=True):
        _draw_losses(axes[0, 0], run, colour, label(run, fields))
    _finish(axes[0, 0], "loss (nats per token)", _loss_limits(runs))
    axes[0, 0].legend(title="line: training, dots: validation", frameon=False)
    if len(runs) > 1:
        axis, base = axes[0, 1], validation(runs[0])
        for run, colour in zip(runs, colours, strict=True):
            difference = (validation(run) - base).dropna()
            axis.plot(difference.index, difference, "o-", color=colour, markersize=3, label=label(run, fields))
        middle = pd.concat([(validation(run) - base).iloc[2:] for run in runs]).abs().max()
        limit = 1.2 * middle if middle > 0 else 1.0
        _finish(axis, f"validation loss minus that of {label(runs[0], fields)} (nats)", (-limit, limit))
        axis.legend(frameon=False)
    figure.tight_layout()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=150)
    plt.close(figure)


def validation(run: Run) -> pd.Series:
    """Validation loss by step."""
    return run.metrics["val/loss"].dropna() if "val/loss" in run.metrics else pd.Series(dtype=float)


def smoothed_training(run: Run) -> pd.Series:
    """Training loss by step, as a centred running mean."""
    if "train/loss" not in run.metrics:
        return pd.Series(dtype=float)
    loss = run.metrics["train/loss"].dropna()
    return loss.rolling(max(1, round(len(loss) * SMOOTHING)), center=True, min_periods=1).mean()


def crossing(run: Run, base: Run) -> int | None:
    """The first evaluated step from which `run`'s validation loss stays below `base`'s to the end; None if it never does."""
    difference = (validation(run) - validation(base)).dropna()
    above = difference.index[difference >= 0]
    below = difference.index[difference.index > above[-1]] if len(above) else difference.index
    return int(below[0]) if len(below) else None


def summary(runs: list[Run]) -> str:
    """Validation loss at mid-run and at the end, one line a run, and where the first run is overtaken."""
    fields, lines = differing_fields(runs), []
    for run in runs:
        values = validation(run)
        if values.empty:
            lines.append(f"{label(run, fields)}: no validation yet ({run.state})")
            continue
        middle = values.index[(values.index - values.index[-1] / 2).to_series().abs().argmin()]
        line = f"{label(run, fields)}: validation {values[middle]:.4f} at step {middle}, "
        line += f"{values.iloc[-1]:.4f} at step {values.index[-1]}"
        if run is not runs[0]:
            step = crossing(run, runs[0])
            line += (
                f"; below {label(runs[0], fields)} from step {step} on"
                if step is not None
                else f"; not below {label(runs[0], fields)}"
            )
        lines.append(line + (f" ({run.state})" if run.state != "done" else ""))
        lines += run.problems
    return "\n".join(lines)


def _draw_losses(axis: Axes, run: Run, colour: object, name: str) -> None:
    training, val = smoothed_training(run), validation(run)
    axis.plot(training.index, training, color=colour, linewidth=1.3, label=name)
    axis.plot(val.index, val, "o", color=colour, markersize=3.5)


def _loss_limits(runs: list[Run]) -> tuple[float, float] | None:
    """From the lowest loss to that a tenth into the run: the first steps would flatten everything else."""
    curves = [curve for run in runs if len(curve := smoothed_training(run)) > 20]
    if not curves:
        return None
    low, high = min(c.min() for c in curves), max(c.iloc[len(c) // 20] for c in curves)
    return low - 0.05 * (high - low), high


def _finish(axis: Axes, ylabel: str, limits: tuple[float, float] | None) -> None:
    axis.set_xlabel("step (updates)")
    axis.set_ylabel(ylabel)
    if limits is not None and limits[0] < limits[1]:
        axis.set_ylim(*limits)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m analysis.loss_curves", description="Draw the loss curves of runs.")
    parser.add_argument("runs", nargs="+", help="run folders or globs")
    parser.add_argument("--out", type=Path, default=Path("loss_curves.png"), help=".png, .svg or .pdf")
    args = parser.parse_args(argv)
    try:
        runs = [load_run(path) for path in find_runs(args.runs)]
        runs.sort(key=lambda run: run.fields.get("optim.weight_decay", 0.0))
        draw(runs, args.out)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{summary(runs)}\n{args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
