"""What theory predicts, against simulation: bias and variance of SGD, sign descent, equilibrium, the effective learning rate.

    python -m analysis.theory --out runs/theory

All with decoupled decay, w ← (1 − ηλ)w − η·step, and Gaussian gradient noise of variance s². No training run is needed.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.command import Result, parser_of, show
from analysis.figures import Figure, Line, Panel

COLOURS = ("#440154", "#31688e", "#35b779", "#b5a000")


@dataclass(frozen=True)
class Check:
    law: str
    setting: str
    prediction: float
    simulation: float
    tolerance: float

    @property
    def holds(self) -> bool:
        return abs(self.simulation / self.prediction - 1) <= self.tolerance


def quadratic(
    eta: float, lam: float, h: float, s: float, start: float, target: float, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Bias and variance parts of E[(h/2)(w_t − w*)²] under SGD, t = 0 … steps; exact.

    With a = 1 − η(h + λ): the mean goes to h·w*/(h + λ) as aᵗ, the variance is η²s²(1 − a²ᵗ)/(1 − a²). λ = 0 is P1's case.
    """
    t, a = np.arange(steps + 1), 1 - eta * (h + lam)
    rest = h * target / (h + lam)
    mean = rest + a**t * (start - rest)
    return h / 2 * (mean - target) ** 2, h / 2 * eta**2 * s**2 * (1 - a ** (2 * t)) / (1 - a**2)


def simulate_quadratic(
    eta: float, lam: float, h: float, s: float, start: float, target: float, steps: int, copies: int
) -> tuple[np.ndarray, np.ndarray]:
    dice, w = np.random.default_rng(0), np.full(copies, start)
    bias, variance = np.empty(steps + 1), np.empty(steps + 1)
    for t in range(steps + 1):
        bias[t], variance[t] = h / 2 * (w.mean() - target) ** 2, h / 2 * w.var()
        w = (1 - eta * lam) * w - eta * (h * (w - target) + s * dice.standard_normal(copies))
    return bias, variance


def regression(
    eta: float, lam: float, h: np.ndarray, target: np.ndarray, s: float, batch: int, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Bias and variance parts of the excess risk ½E[(w−w*)ᵀH(w−w*)] of one-pass SGD from w = 0.

    Inputs N(0, H = diag h), label noise s². Exact recursions of mean and second moment; the fourth moment of
    Gaussian inputs gives E[ĤMĤ] = HMH + (HMH + tr(HM)·H)/batch.
    """
    big_h, a = np.diag(h), np.diag(1 - eta * lam - eta * h)
    mean, second = -target, np.outer(target, target)
    bias, variance = np.empty(steps + 1), np.empty(steps + 1)
    for t in range(steps + 1):
        bias[t] = 0.5 * mean @ big_h @ mean
        variance[t] = 0.5 * np.trace(big_h @ second) - bias[t]
        pulled = eta * lam * np.outer(a @ mean, target)
        noise = (big_h @ second @ big_h + np.trace(big_h @ second) * big_h + s**2 * big_h) / batch
        second = a @ second @ a + eta**2 * noise - pulled - pulled.T + (eta * lam) ** 2 * np.outer(target, target)
        mean = a @ mean - eta * lam * target
    return bias, variance


def simulate_regression(
    eta: float, lam: float, h: np.ndarray, target: np.ndarray, s: float, batch: int, steps: int, copies: int
) -> tuple[np.ndarray, np.ndarray]:
    dice, w = np.random.default_rng(0), np.zeros((copies, len(h)))
    bias, variance = np.empty(steps + 1), np.empty(steps + 1)
    for t in range(steps + 1):
        bias[t] = 0.5 * (h * (w.mean(axis=0) - target) ** 2).sum()
        variance[t] = 0.5 * (h * w.var(axis=0)).sum()
        x = dice.standard_normal((copies, batch, len(h))) * np.sqrt(h)
        wrong = np.einsum("cbd,cd->cb", x, w - target) + s * dice.standard_normal((copies, batch))
        w = (1 - eta * lam) * w - eta * np.einsum("cb,cbd->cd", wrong, x) / batch
    return bias, variance


def sign_descent(eta: float, lam: float, h: float, s: float) -> float:
    """Stationary E[w²] of sign descent with decay on (h/2)w², for small h·w/s: E[sign] ≈ √(2/π)·h·w/s, its variance ≈ 1."""
    a = 1 - eta * lam - eta * np.sqrt(2 / np.pi) * h / s
    return float(eta**2 / (1 - a**2))


def simulate_sign_descent(eta: float, lam: float, h: float, s: float, steps: int, copies: int) -> float:
    dice, w, seen = np.random.default_rng(0), np.zeros(copies), []
    for t in range(steps):
        w = (1 - eta * lam) * w - eta * np.sign(h * w + s * dice.standard_normal(copies))
        if t >= steps // 2:
            seen.append((w**2).mean())
    return float(np.mean(seen))


def equilibrium_rms(eta: float, lam: float, beta1: float) -> float:
    """RMS of weights under AdamW on pure noise. Updates of variance (1−β₁)/(1+β₁) and autocorrelation β₁ᵏ, summed with a = 1 − ηλ:
    w² = η²/(1−a²)·(1−β₁)(1+aβ₁)/((1+β₁)(1−aβ₁)), which for ηλ ≪ 1 − β₁ is η/2λ (2305.17212)."""
    a = 1 - eta * lam
    return float(np.sqrt(eta**2 / (1 - a**2) * (1 - beta1) * (1 + a * beta1) / ((1 + beta1) * (1 - a * beta1))))


def simulate_adamw(eta: float, lam: float, betas: tuple[float, float], size: int) -> tuple[float, float]:
    """RMS of the weights and rotation a step of AdamW on pure noise, once settled."""
    dice, tau = np.random.default_rng(0), round(1 / (eta * lam))
    w, m, v = dice.standard_normal(size) * np.sqrt(eta / 2 / lam), np.zeros(size), np.zeros(size)
    rms, angles = [], []
    for t in range(1, 8 * tau):
        g = dice.standard_normal(size)
        m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g**2
        new = (1 - eta * lam) * w - eta * (m / (1 - betas[0] ** t)) / np.sqrt(v / (1 - betas[1] ** t))
        if t > 3 * tau:
            rms.append(np.sqrt((new**2).mean()))
            angles.append(np.arccos(min(1.0, w @ new / np.linalg.norm(w) / np.linalg.norm(new))))
        w = new
    return float(np.mean(rms)), float(np.mean(angles))


def matched_directions(eta: float, lam: float, steps: int) -> tuple[float, float]:
    """Sign descent on a scale-invariant loss: how far apart the directions of a decayed and an undecayed run get.

    Returns (with the undecayed run's rate set to η·‖w'‖/((1 − ηλ)‖w‖), with the same rate): largest angles, in radians.
    """
    dice, size = np.random.default_rng(0), 50
    start, target = dice.standard_normal(size), dice.standard_normal(size)
    noises = dice.standard_normal((steps, size))

    def gradient(w: np.ndarray, noise: np.ndarray) -> np.ndarray:  # of −cos(w, target): orthogonal to w, ∝ 1/‖w‖
        size, pull = float(np.linalg.norm(w)), noise + target
        unit = w / size
        return np.asarray(-(pull - (pull @ unit) * unit) / size)

    worst = []
    for matched in (True, False):
        w, other, angle = start.copy(), start.copy(), 0.0
        for noise in noises:
            rate = eta * np.linalg.norm(other) / ((1 - eta * lam) * np.linalg.norm(w)) if matched else eta
            w, other = (
                (1 - eta * lam) * w - eta * np.sign(gradient(w, noise)),
                other - rate * np.sign(gradient(other, noise)),
            )
            apart = w / np.linalg.norm(w) - other / np.linalg.norm(other)
            angle = max(angle, 2 * math.asin(min(1.0, float(np.linalg.norm(apart)) / 2)))
        worst.append(angle)
    return worst[0], worst[1]


def analyse(copies: int = 20_000) -> Result:
    checks: list[Check] = []
    sgd = [_sgd(checks, copies), _regression(checks, copies)]
    sizes = _equilibrium(checks)
    for lam in (0.1, 0.5):
        setting = {"eta": 0.01, "lam": lam, "h": 0.1, "s": 1.0}
        simulated = simulate_sign_descent(**setting, steps=4000, copies=4000)
        checks.append(
            Check(
                "sign descent: stationary E[w²]",
                f"η 0.01, λ {lam:g}, h 0.1, s 1",
                sign_descent(**setting),
                simulated,
                0.05,
            )
        )
    simple = np.sqrt(0.01 / 2 / 3) / equilibrium_rms(0.01, 3, 0.9) - 1
    matched, unmatched = matched_directions(0.02, 0.5, 2000)
    table = pd.DataFrame([{**vars(c), "holds": c.holds} for c in checks])
    failed = [c for c in checks if not c.holds]
    findings = [
        f"{len(checks) - len(failed)} of {len(checks)} predictions lie within their tolerance of the simulation."
        + "".join(f" Not: {c.law}, {c.setting}." for c in failed),
        f"The simple law √(η/2λ) holds while ηλ is far below 1 − β₁; at ηλ = 0.3·(1 − β₁) it is {simple:.0%} too large.",
        f"Sign descent on a scale-invariant loss: an undecayed run at the decayed run's effective learning rate keeps its "
        f"direction to {matched:.1e} radians over 2,000 steps; at the same learning rate the two get {unmatched:.2f} apart.",
    ]
    return Result("theory", "Theory against simulation", findings, [*sgd, sizes], {"Predictions": table})


def _compare(
    name: str, setting: str, predicted: np.ndarray, simulated: np.ndarray, tolerance: float, checks: list[Check]
) -> None:
    """The ends of two curves as a check, the simulation averaged over the last tenth."""
    tail = max(1, len(predicted) // 10)
    checks.append(Check(name, setting, float(predicted[-tail:].mean()), float(simulated[-tail:].mean()), tolerance))


def _panel(ylabel: str) -> Panel:
    return Panel("step t", ylabel, [], xlog=False, ylog=True)


def _add(panel: Panel, colour: str, lam: float, predicted: np.ndarray, simulated: np.ndarray) -> None:
    t, some = np.arange(len(predicted)), slice(5, None, max(1, len(predicted) // 25))
    positive = predicted > 0
    panel.lines.append(Line(t[positive], predicted[positive], f"λ = {lam:g}, formula", colour, keys={"λ": f"{lam:g}"}))
    panel.lines.append(
        Line(t[some], simulated[some], f"λ = {lam:g}, simulation", colour, points=True, keys={"λ": f"{lam:g}"})
    )


def _sgd(checks: list[Check], copies: int) -> Figure:
    panels = [_panel("bias part of the loss"), _panel("variance part of the loss")]
    for colour, lam in zip(COLOURS, (0.0, 0.1, 0.5), strict=False):
        setting = {"eta": 0.05, "lam": lam, "h": 1.0, "s": 1.0, "start": 3.0, "target": 1.0, "steps": 200}
        predicted, simulated = quadratic(**setting), simulate_quadratic(**setting, copies=copies)  # type: ignore[arg-type]
        for panel, p, s in zip(panels, predicted, simulated, strict=True):
            _add(panel, colour, lam, p, s)
        text = f"η 0.05, λ {lam:g}, h 1, s 1, w* 1"
        _compare("SGD, quadratic: variance", text, predicted[1], simulated[1], 0.03, checks)
        if lam:
            _compare("SGD, quadratic: bias", text, predicted[0], simulated[0], 0.1, checks)
    return Figure("quadratic", "SGD with decay on a noisy quadratic: decay trades variance for bias.", panels)


def _regression(checks: list[Check], copies: int) -> Figure:
    panels = [_panel("bias part of the excess risk"), _panel("variance part of the excess risk")]
    h = np.arange(1, 11) ** -1.0
    target = np.ones(10)
    for colour, lam in zip(COLOURS, (0.0, 0.02, 0.1), strict=False):
        setting = {"eta": 0.05, "lam": lam, "h": h, "target": target, "s": 1.0, "batch": 4, "steps": 300}
        predicted, simulated = regression(**setting), simulate_regression(**setting, copies=copies // 10)  # type: ignore[arg-type]
        for panel, p, s in zip(panels, predicted, simulated, strict=True):
            _add(panel, colour, lam, p, s)
        text = f"η 0.05, λ {lam:g}, 10 inputs, batch 4"
        _compare("one-pass linear regression: variance", text, predicted[1], simulated[1], 0.03, checks)
        _compare("one-pass linear regression: bias", text, predicted[0], simulated[0], 0.1, checks)
    return Figure("regression", "One-pass SGD with decay on linear regression.", panels)


def _equilibrium(checks: list[Check]) -> Figure:
    eta, betas, size = 0.01, (0.9, 0.99), 2000
    decays = np.array([0.1, 0.3, 1.0, 3.0])
    found = [simulate_adamw(eta, lam, betas, size) for lam in decays]
    rms, rotation = np.sqrt(eta / 2 / decays), np.sqrt(2 * eta * decays * (1 - betas[0]) / (1 + betas[0]))
    for lam, (size_found, angle), a, b in zip(decays, found, rms, rotation, strict=True):
        text = f"η {eta:g}, λ {lam:g}, β₁ {betas[0]}"
        checks.append(Check("AdamW on noise: rotation √(2ηλ(1−β₁)/(1+β₁))", text, float(b), angle, 0.05))
        checks.append(
            Check(
                "AdamW on noise: RMS, momentum's memory counted",
                text,
                equilibrium_rms(eta, lam, betas[0]),
                size_found,
                0.03,
            )
        )
        if eta * lam <= 0.05 * (1 - betas[0]):  # beyond it the simple law is not meant to hold
            rate = eta / (size_found * np.sqrt(size))
            checks.append(Check("AdamW on noise: RMS √(η/2λ)", text, float(a), size_found, 0.05))
            checks.append(
                Check(
                    "AdamW on noise: effective LR √(2ηλ/n)",
                    text,
                    float(np.sqrt(2 * eta * lam / size)),
                    float(rate),
                    0.05,
                )
            )
    panels = []
    simulated = ([f[0] for f in found], [f[1] for f in found], [eta / f[0] / np.sqrt(size) for f in found])
    labels = ("RMS of the weights", "rotation (radians per step)", "effective LR η/‖w‖")
    for values, predicted, label in zip(
        simulated, (rms, rotation, np.sqrt(2 * eta * decays / size)), labels, strict=True
    ):
        lines = [
            Line(decays, predicted, "formula", COLOURS[0]),
            Line(decays, np.array(values), "simulation", COLOURS[1], points=True),
        ]
        panels.append(Panel("weight decay λ", label, lines, xlog=True, ylog=True))
    return Figure(
        "equilibrium",
        "AdamW under pure noise settles where the formulas say: λ sets the effective learning rate.",
        panels,
    )


def main(argv: list[str] | None = None) -> int:
    parser = parser_of("theory", __doc__)
    parser.add_argument("--copies", type=int, default=20_000, help="simulated runs that are averaged")
    args = parser.parse_args(argv)
    if args.copies < 1000:
        print(f"error: --copies {args.copies} is too few for the stated tolerances; at least 1000", file=sys.stderr)
        return 2
    result = analyse(args.copies)
    show(result, [], args.out)
    return 0 if bool(result.tables["Predictions"]["holds"].all()) else 1


if __name__ == "__main__":
    sys.exit(main())
