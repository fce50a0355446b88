"""What theory predicts of decay, beside simulations of it.

    python -m analysis theory --out runs/theory

P1's mechanism on a scale-invariant loss (analysis/sphere.py); bias and variance of SGD and sign descent, the equilibrium of
AdamW, the effective learning rate (formulas in analysis/laws.py); P2's lemmas on the Jacobian, to 1e-6
(analysis/jacobian_norms.py). No training run is needed.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis import jacobian_norms, sphere
from analysis.command import Result, show
from analysis.figures import SEQUENCE, Figure, Line, Panel
from analysis.laws import (
    matched_directions,
    quadratic,
    regression,
    sign_descent,
    simulate_adamw,
    simulate_quadratic,
    simulate_regression,
)
from configs import equilibrium
from configs.errors import InputError


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


def analyse(copies: int = 20_000) -> Result:
    checks: list[Check] = []
    figures = [_sgd(checks, copies), _regression(checks, copies), *_sign(checks, copies)]
    sizes = _equilibrium(checks)
    lemmas, rows = jacobian_norms.verified()
    checks += [Check(*row, jacobian_norms.TOLERANCE) for row in rows]
    mechanism, orders = sphere.mechanism()
    # how wrong the simple law is where it is not meant to hold
    simple = equilibrium.rms(0.01, 3) / equilibrium.rms_with_momentum(0.01, 3, 0.9) - 1
    matched, unmatched = matched_directions(0.02, 0.5, 2000)
    table = pd.DataFrame([{**vars(c), "holds": c.holds} for c in checks])
    # a law that fails is the first sentence, by its setting
    failed = [c for c in checks if not c.holds]
    findings = [
        f"{len(checks) - len(failed)} of {len(checks)} predictions lie within their tolerance of the simulation."
        + "".join(f" Not: {c.law}, {c.setting}." for c in failed),
        f"The simple law √(η/2λ) holds while ηλ is far below 1 − β₁; at ηλ = 0.3·(1 − β₁) it is {simple:.0%} too large.",
        f"Sign descent on a scale-invariant loss: an undecayed run at the decayed run's effective learning rate keeps its "
        f"direction to {matched:.1e} radians over 2,000 steps; at the same learning rate the two get {unmatched:.2f} apart.",
        "P1's mechanism is the first figure. On a quadratic with a fixed η, as in the others, decay does the opposite: it "
        "shrinks the variance and adds bias.",
    ]
    tables = {"P1's mechanism": orders, "Predictions": table}
    return Result("theory", "Theory against simulation", findings, [mechanism, *figures, sizes, lemmas], tables)


def _compare(
    name: str, setting: str, predicted: np.ndarray, simulated: np.ndarray, tolerance: float, checks: list[Check]
) -> None:
    """A check of the ends of two curves: the mean over the last tenth of each."""
    tail = max(1, len(predicted) // 10)
    checks.append(Check(name, setting, float(predicted[-tail:].mean()), float(simulated[-tail:].mean()), tolerance))


def _panel(ylabel: str) -> Panel:
    return Panel("step t", ylabel, [], xlog=False, ylog=True)


def _add(panel: Panel, colour: str, lam: float, predicted: np.ndarray, simulated: np.ndarray) -> None:
    # the formula as a line, the simulation as some of its points
    t, some = np.arange(len(predicted)), slice(5, None, max(1, len(predicted) // 25))
    # the variance part starts at 0, which has no logarithm
    positive = predicted > 0
    panel.lines.append(Line(t[positive], predicted[positive], f"λ = {lam:g}, formula", colour, keys={"λ": f"{lam:g}"}))
    panel.lines.append(
        Line(t[some], simulated[some], f"λ = {lam:g}, simulation", colour, points=True, keys={"λ": f"{lam:g}"})
    )


def _sgd(checks: list[Check], copies: int) -> Figure:
    panels = [_panel("bias part of the loss"), _panel("variance part of the loss")]
    for colour, lam in zip(SEQUENCE, (0.0, 0.1, 0.5), strict=False):
        # w starts beyond w*, so that the bias part is seen to fall
        setting = {"eta": 0.05, "lam": lam, "h": 1.0, "s": 1.0, "start": 3.0, "target": 1.0, "steps": 200}
        predicted, simulated = quadratic(**setting), simulate_quadratic(**setting, copies=copies)  # type: ignore[arg-type]
        for panel, p, s in zip(panels, predicted, simulated, strict=True):
            _add(panel, colour, lam, p, s)
        text = f"η 0.05, λ {lam:g}, h 1, s 1, w* 1"
        _compare("SGD, quadratic: variance", text, predicted[1], simulated[1], 0.03, checks)
        # without decay the bias goes to zero, and a ratio of zeros is no check
        if lam:
            _compare("SGD, quadratic: bias", text, predicted[0], simulated[0], 0.1, checks)
    return Figure(
        "quadratic",
        "SGD with decay on a noisy quadratic, η fixed: decay trades variance for bias, the opposite of P1's mechanism.",
        panels,
    )


def _regression(checks: list[Check], copies: int) -> Figure:
    panels = [_panel("bias part of the excess risk"), _panel("variance part of the excess risk")]
    # a spectrum that falls: one large direction, and many small ones
    h = np.arange(1, 11) ** -1.0
    target = np.ones(10)
    for colour, lam in zip(SEQUENCE, (0.0, 0.02, 0.1), strict=False):
        setting = {"eta": 0.05, "lam": lam, "h": h, "target": target, "s": 1.0, "batch": 4, "steps": 300}
        predicted, simulated = regression(**setting), simulate_regression(**setting, copies=copies // 10)  # type: ignore[arg-type]
        for panel, p, s in zip(panels, predicted, simulated, strict=True):
            _add(panel, colour, lam, p, s)
        text = f"η 0.05, λ {lam:g}, 10 inputs, batch 4"
        _compare("one-pass linear regression: variance", text, predicted[1], simulated[1], 0.03, checks)
        _compare("one-pass linear regression: bias", text, predicted[0], simulated[0], 0.1, checks)
    return Figure("regression", "One-pass SGD with decay on linear regression.", panels)


def _sign(checks: list[Check], copies: int) -> list[Figure]:
    """Sign descent on both problems, with a signal small beside the noise."""
    one, h = np.ones(1), np.arange(1, 6) ** -1.0
    panels = [[_panel("bias part of the loss"), _panel("variance part of the loss")] for _ in range(2)]
    for colour, lam in zip(SEQUENCE, (0.0, 0.1, 0.5), strict=False):
        text = f"η 0.01, λ {lam:g}"
        predicted = sign_descent(0.01, lam, one, one, 0.4 * one, 0.2 * one, 400)
        simulated = simulate_quadratic(0.01, lam, 1.0, 1.0, 0.4, 0.2, 400, copies, sign=True)
        _both(
            panels[0], colour, lam, "sign descent, quadratic", f"{text}, h 1, s 1, w* 0.2", predicted, simulated, checks
        )
        # a signal small beside the noise, which the linearised sign needs
        target, batch = np.full(5, 0.1), 32
        predicted = sign_descent(0.002, lam, h, np.sqrt(h / batch), np.zeros(5), target, 400)
        simulated = simulate_regression(0.002, lam, h, target, 1.0, batch, 400, copies // 20, sign=True)
        text = f"η 0.002, λ {lam:g}, 5 inputs, batch 32"
        _both(panels[1], colour, lam, "sign descent, linear regression", text, predicted, simulated, checks)
    return [
        Figure("sign_quadratic", "Sign descent with decay on a noisy quadratic.", panels[0]),
        Figure("sign_regression", "Sign descent with decay on linear regression.", panels[1]),
    ]


def _both(
    panels: list[Panel],
    colour: str,
    lam: float,
    law: str,
    setting: str,
    predicted: tuple[np.ndarray, np.ndarray],
    simulated: tuple[np.ndarray, np.ndarray],
    checks: list[Check],
) -> None:
    """Draw both parts; check the variance, and where decay leaves one the bias, within 10 % (the sign is linearised)."""
    for panel, part, p, q in zip(panels, ("bias", "variance"), predicted, simulated, strict=True):
        _add(panel, colour, lam, p, q)
        if part == "variance" or lam:
            _compare(f"{law}: {part}", setting, p, q, 0.1, checks)


def _equilibrium(checks: list[Check]) -> Figure:
    eta, betas, size = 0.01, (0.9, 0.99), 2000
    decays = np.array([0.1, 0.3, 1.0, 3.0])
    settled = [simulate_adamw(eta, lam, betas, size) for lam in decays]
    rms = np.array([equilibrium.rms(eta, lam) for lam in decays])
    rotation = np.array([equilibrium.rotation(eta, lam, betas[0]) for lam in decays])
    for lam, (size_settled, angle), a, b in zip(decays, settled, rms, rotation, strict=True):
        text = f"η {eta:g}, λ {lam:g}, β₁ {betas[0]}"
        checks.append(Check("AdamW on noise: rotation √(2ηλ(1−β₁)/(1+β₁))", text, float(b), angle, 0.05))
        checks.append(
            Check(
                "AdamW on noise: RMS, momentum's memory counted",
                text,
                equilibrium.rms_with_momentum(eta, lam, betas[0]),
                size_settled,
                0.03,
            )
        )
        if eta * lam <= 0.05 * (1 - betas[0]):  # beyond it the simple law is not meant to hold
            rate = equilibrium.effective_lr(eta, size_settled * np.sqrt(size), "adam")
            checks.append(Check("AdamW on noise: RMS √(η/2λ)", text, float(a), size_settled, 0.05))
            checks.append(
                Check(
                    "AdamW on noise: effective LR √(2ηλ/n)",
                    text,
                    float(equilibrium.effective_lr(eta, equilibrium.rms(eta, lam) * np.sqrt(size), "adam")),
                    float(rate),
                    0.05,
                )
            )
    # the same settled runs three times: size, rotation, and the rate that follows from the size
    panels = []
    simulated = ([f[0] for f in settled], [f[1] for f in settled], [eta / f[0] / np.sqrt(size) for f in settled])
    labels = ("RMS of the weights", "rotation (radians per step)", "effective LR η/‖w‖")
    rates = [equilibrium.effective_lr(eta, one * size**0.5, "adam") for one in rms]
    for values, predicted, label in zip(simulated, (rms, rotation, np.array(rates)), labels, strict=True):
        lines = [
            Line(decays, predicted, "formula", SEQUENCE[0]),
            Line(decays, np.array(values), "simulation", SEQUENCE[1], points=True),
        ]
        panels.append(Panel("weight decay λ", label, lines, xlog=True, ylog=True))
    return Figure(
        "equilibrium",
        "AdamW under pure noise settles where the formulas say: λ sets the effective learning rate.",
        panels,
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--copies", type=int, default=20_000, help="simulated runs that are averaged")


def act(args: argparse.Namespace) -> int:
    """Exit code 1 where a prediction fails."""
    if args.copies < 1000:
        raise InputError(f"--copies {args.copies} is too few for the stated tolerances; at least 1000")
    result = analyse(args.copies)
    show(result, [], args.out)
    return 0 if bool(result.tables["Predictions"]["holds"].all()) else 1
