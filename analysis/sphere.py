"""P1's own mechanism, simulated: decay keeps the effective learning rate of a scale-invariant loss high.

A loss of the direction w/‖w‖ alone, descended by the sign of noisy gradients. Every step lengthens w, so without decay the
effective learning rate η/‖w‖ falls by itself (P1, arXiv 2310.04415, section 4). With decay it stays higher: the loss is higher
in mid-run, where noise rules, and lower after the schedule's decay, where what was learned counts.

This is one regime and no law: where η is large, or all directions are alike, λ = 0 ends lowest here too. The setting below is
one in which the progress along flat directions is slow.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.figures import SEQUENCE, Figure, Line, Panel
from analysis.statistics import FINAL, MIDRUN, interval

SIZE, STEPS, SEEDS = 100, 2000, 8
RATE, NOISE, POWER = 0.003, 3.0, 2.0  # peak η; noise of a gradient; curvatures fall as 1/i^POWER
WARMUP, FLOOR = 0.05, 0.05  # of the steps; the cosine's end over its peak
SUMS = (0.0, 0.5, 1.65, 4.95)  # λ·Ση, as in the study of small runs


def rates(eta: float, steps: int) -> np.ndarray:
    """η of every step: linear warm-up, then a cosine to FLOOR."""
    t = np.arange(steps)
    return (
        eta * np.minimum(1, (t + 1) / (WARMUP * steps)) * (FLOOR + (1 - FLOOR) * 0.5 * (1 + np.cos(np.pi * t / steps)))
    )


def simulate(lam: float, eta: float = RATE, power: float = POWER, steps: int = STEPS) -> tuple[np.ndarray, np.ndarray]:
    """Losses and norms before each step, (SEEDS, steps) each. Loss ½Σh(u − t)², u = w/‖w‖, t a fixed direction of each seed."""
    h = np.arange(1, SIZE + 1) ** -power
    h /= h.mean()
    dice = [np.random.default_rng(seed) for seed in range(SEEDS)]
    # target and start of each seed, both of length 1; the noise of all λ is the same, so that they are paired
    target, w = (np.stack([d.standard_normal(SIZE) for d in dice]) for _ in range(2))
    target, w = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (target, w))
    losses, norms = np.empty((SEEDS, steps)), np.empty((SEEDS, steps))
    for t, rate in enumerate(rates(eta, steps)):
        norm = np.linalg.norm(w, axis=1, keepdims=True)
        u = w / norm
        losses[:, t], norms[:, t] = 0.5 * (h * (u - target) ** 2).sum(axis=1), norm[:, 0]
        noise = np.stack([d.standard_normal(SIZE) for d in dice])
        g = h * (u - target) + NOISE * np.sqrt(h / SIZE) * noise
        # the loss knows no length: its gradient lies across w
        g -= (g * u).sum(axis=1, keepdims=True) * u
        w = (1 - rate * lam) * w - rate * np.sign(g)
    return losses, norms


def mechanism(eta: float = RATE, power: float = POWER) -> tuple[Figure, pd.DataFrame]:
    """Curves by λ, and a row a λ: loss in mid-run and at the end, each minus that of λ = 0, over the seeds."""
    total = float(rates(eta, STEPS).sum())
    panels = [Panel("step t", "loss", [], ylog=True), Panel("step t", "effective LR η/‖w‖", [], ylog=True)]
    middle = slice(int(STEPS * (MIDRUN - FINAL)), int(STEPS * (MIDRUN + FINAL)))
    rows, base = [], None
    for sigma, colour in zip(SUMS, SEQUENCE, strict=True):
        losses, norms = simulate(sigma / total, eta, power)
        ends = losses[:, middle].mean(axis=1), losses[:, -int(STEPS * FINAL) :].mean(axis=1)
        base = ends if base is None else base
        differences = [interval(one - zero).text() for one, zero in zip(ends, base, strict=True)]
        rows.append(
            {"λ·Ση": sigma, "λ": round(sigma / total, 3)}
            | {"loss in mid-run": round(float(ends[0].mean()), 4), "loss at the end": round(float(ends[1].mean()), 4)}
            | ({"mid-run, minus λ = 0": differences[0], "end, minus λ = 0": differences[1]} if sigma else {})
        )
        name, keys = f"λ·Ση = {sigma:g}", {"λ": f"{sigma / total:.3g}"}
        # a mean over neighbours: single steps are mostly noise
        t, window = np.arange(STEPS), int(STEPS * FINAL)
        smooth = pd.Series(losses.mean(axis=0)).rolling(window, center=True, min_periods=1).mean().to_numpy()
        panels[0].lines.append(Line(t, smooth, name, colour, keys=keys))
        panels[1].lines.append(Line(t, rates(eta, STEPS) / norms.mean(axis=0), name, colour, keys=keys))
    caption = (
        f"P1's mechanism: sign descent on a scale-invariant loss, mean over {SEEDS} seeds. Decay keeps the effective learning rate "
        "up: more loss in mid-run, less at the end, and too much decay ends higher again. One regime, no law: with a larger η "
        "λ = 0 ends lowest here as well."
    )
    return Figure("mechanism", caption, panels), pd.DataFrame(rows)
