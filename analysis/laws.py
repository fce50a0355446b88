"""Closed forms and simulations of SGD and sign descent with decay, and of AdamW on noise; analysis/theory.py compares them.

All with decoupled decay, w ← (1 − ηλ)w − η·step, and Gaussian gradient noise of variance s².
"""

from __future__ import annotations

import math

import numpy as np

from configs import equilibrium


def quadratic(
    eta: float, lam: float, h: float, s: float, start: float, target: float, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Bias and variance parts of E[(h/2)(w_t − w*)²] under SGD, t = 0 … steps; exact.

    With a = 1 − η(h + λ): the mean goes to h·w*/(h + λ) as aᵗ, the variance is η²s²(1 − a²ᵗ)/(1 − a²). λ = 0 is P1's case.
    """
    t, a = np.arange(steps + 1), 1 - eta * (h + lam)
    # where loss and decay pull equally: short of w*, by the bias that decay costs
    rest = h * target / (h + lam)
    mean = rest + a**t * (start - rest)
    return h / 2 * (mean - target) ** 2, h / 2 * eta**2 * s**2 * (1 - a ** (2 * t)) / (1 - a**2)


def simulate_quadratic(
    eta: float, lam: float, h: float, s: float, start: float, target: float, steps: int, copies: int, sign: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """`quadratic` by simulation, of SGD or, with `sign`, of sign descent."""
    dice, w = np.random.default_rng(0), np.full(copies, start)
    bias, variance = np.empty(steps + 1), np.empty(steps + 1)
    for t in range(steps + 1):
        # over the copies: their mean is the bias part, their spread the variance part
        bias[t], variance[t] = h / 2 * (w.mean() - target) ** 2, h / 2 * w.var()
        gradient = h * (w - target) + s * dice.standard_normal(copies)
        w = (1 - eta * lam) * w - eta * (np.sign(gradient) if sign else gradient)
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
        # decay pulls towards 0 and not towards w*: cross terms with the mean
        pulled = eta * lam * np.outer(a @ mean, target)
        # of a batch: the data's own randomness, and the label noise
        noise = (big_h @ second @ big_h + np.trace(big_h @ second) * big_h + s**2 * big_h) / batch
        second = a @ second @ a + eta**2 * noise - pulled - pulled.T + (eta * lam) ** 2 * np.outer(target, target)
        mean = a @ mean - eta * lam * target
    return bias, variance


def simulate_regression(
    eta: float,
    lam: float,
    h: np.ndarray,
    target: np.ndarray,
    s: float,
    batch: int,
    steps: int,
    copies: int,
    sign: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """`regression` by simulation, of SGD or, with `sign`, of sign descent."""
    dice, w = np.random.default_rng(0), np.zeros((copies, len(h)))
    bias, variance = np.empty(steps + 1), np.empty(steps + 1)
    for t in range(steps + 1):
        bias[t] = 0.5 * (h * (w.mean(axis=0) - target) ** 2).sum()
        variance[t] = 0.5 * (h * w.var(axis=0)).sum()
        # fresh inputs in every step: one pass
        x = dice.standard_normal((copies, batch, len(h))) * np.sqrt(h)
        wrong = np.einsum("cbd,cd->cb", x, w - target) + s * dice.standard_normal((copies, batch))
        gradient = np.einsum("cb,cbd->cd", wrong, x) / batch
        w = (1 - eta * lam) * w - eta * (np.sign(gradient) if sign else gradient)
    return bias, variance


def sign_descent(
    eta: float, lam: float, h: np.ndarray, noise: np.ndarray, start: np.ndarray, target: np.ndarray, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Bias and variance parts of ½Σh·E[(w_t − w*)²] of sign descent, coordinate by coordinate.

    The gradient h·δ + noise of standard deviation σ (δ = w − w*) has E[sign] = erf(hδ/(σ√2)) ≈ κδ, κ = √(2/π)·h/σ, for a signal
    small beside the noise. So the mean m of δ goes to (1 − ηλ − ηκ)m − ηλw*, and, since sign² = 1, its variance v to
    ((1 − ηλ)² − 2ηκ(1 − ηλ))v + η²(1 − (κm)²).
    """
    # κ: how much of a small signal is left in the mean of the sign
    kappa, shrink = np.sqrt(2 / np.pi) * h / noise, 1 - eta * lam
    mean, second = start - target, np.zeros_like(target)
    bias, variance = np.empty(steps + 1), np.empty(steps + 1)
    for t in range(steps + 1):
        bias[t], variance[t] = 0.5 * (h * mean**2).sum(), 0.5 * (h * second).sum()
        second = (shrink**2 - 2 * eta * kappa * shrink) * second + eta**2 * (1 - (kappa * mean) ** 2)
        mean = (shrink - eta * kappa) * mean - eta * lam * target
    return bias, variance


def simulate_adamw(eta: float, lam: float, betas: tuple[float, float], size: int) -> tuple[float, float]:
    """RMS of the weights and rotation a step of AdamW on pure noise, once settled."""
    dice, tau = np.random.default_rng(0), round(1 / (eta * lam))
    w, m, v = dice.standard_normal(size) * equilibrium.rms(eta, lam), np.zeros(size), np.zeros(size)
    rms, angles = [], []
    for t in range(1, 8 * tau):
        g = dice.standard_normal(size)
        m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g**2
        new = (1 - eta * lam) * w - eta * (m / (1 - betas[0] ** t)) / np.sqrt(v / (1 - betas[1] ** t))
        # three time scales to settle, five to average over
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
            # the decayed run's step on the sphere, as a rate for the undecayed one
            rate = eta * np.linalg.norm(other) / ((1 - eta * lam) * np.linalg.norm(w)) if matched else eta
            w, other = (
                (1 - eta * lam) * w - eta * np.sign(gradient(w, noise)),
                other - rate * np.sign(gradient(other, noise)),
            )
            # a chord of the unit sphere, and the angle over it
            apart = w / np.linalg.norm(w) - other / np.linalg.norm(other)
            angle = max(angle, 2 * math.asin(min(1.0, float(np.linalg.norm(apart)) / 2)))
        worst.append(angle)
    return worst[0], worst[1]
