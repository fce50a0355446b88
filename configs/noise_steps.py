"""The steps u of each algorithm where gradients are white noise: how large they are, and how long they remember.

w ← w − ηu. Gradients are normal, independent from update to update, of mean 0 and root mean square σ an element. What the
equilibrium needs of u (configs/equilibrium.py) are its correlations c_k = E[u_t u_(t−k)] an element. In every algorithm here
they are a sum of geometric series: c_k = ΣA·r^(k−1) for k ≥ 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

SERIES = 1e-12  # a series ends where its terms are below this part of the first
NEWTON_SCHULZ, ROUNDS = (3.4445, -4.7750, 2.0315), 5  # torch.optim.Muon's polynomial, a test compares
MUON_RMS = 0.2  # Muon's step has this root mean square, if its singular values are 1 (2502.16982)
NODES, DEGREES = 256, 99  # of muon's integral and series: more change the seventh digit


@dataclass(frozen=True)
class Steps:
    """`power` c_0; `memory` the pairs (A, r); `gain` the mean step that a small steady gradient adds, over that gradient."""

    power: float
    memory: tuple[tuple[float, float], ...]
    gain: float

    def correlated(self, a: float) -> float:
        """Σ a^k c_k over k ≥ 1."""
        return sum(start * a / (1 - a * rate) for start, rate in self.memory)


def adam(beta1: float, noise: float) -> Steps:
    """u = m̂/√v̂. √v̂ is σ as long as β₂ is near 1, so u is a moving average of unit noise: c_k = c_0·β₁^k (2305.17212)."""
    power = (1 - beta1) / (1 + beta1)
    return Steps(power, ((power * beta1, beta1),), 1 / noise)


def sgd(momentum: float, noise: float) -> Steps:
    """u_t = μu_(t−1) + g: c_k = c_0·μ^k, c_0 = σ²/(1 − μ²)."""
    power = noise**2 / (1 - momentum**2)
    return Steps(power, ((power * momentum, momentum),), 1 / (1 - momentum))


def lion(beta1: float, beta2: float, noise: float) -> Steps:
    """u = sign(c), so c_0 = 1. c is normal; its correlations ρ_k are those of `two_rates`.

    Two normal numbers of correlation ρ have one sign with probability ½ + asin(ρ)/π: the arcsine law, E[sign·sign] = (2/π)·asin(ρ).
    asin is a power series, asin(ρ) = Σ s_n·ρⁿ over odd n, and ρ_k = ρ_1·β₂^(k−1): every power is a geometric series in k. A steady
    gradient h shifts c by h, and so the mean of its sign by √(2/π)·h/√(E c²).
    2305.17212 keeps Σρ_k alone: rotation √(πηλ·E c²/σ²). That is the limit ηλ ≪ 1 − β₂ of what follows from here, but for the
    cubes; at ηλ = 0.005 and β₂ = 0.99 its angle is 14 % too small.
    """
    power, first = two_rates(beta1, beta2)
    memory = tuple((2 / math.pi * size, beta2**n) for n, size in _arcsine(first))
    return Steps(1.0, memory, math.sqrt(2 / (math.pi * power)) / noise)


def two_rates(beta1: float, beta2: float) -> tuple[float, float]:
    """(E c²/σ², ρ_1) of c = β₁m + (1−β₁)g, m ← β₂m + (1−β₂)g after it; ρ_k = ρ_1·β₂^(k−1).

    E m² = σ²(1−β₂)/(1+β₂). c_t and c_(t−k) share the older m, faded by β₂^k, and the gradient of t−k, which m took by 1−β₂.
    """
    moment = (1 - beta2) / (1 + beta2)
    power = beta1**2 * moment + (1 - beta1) ** 2
    return power, (beta1**2 * beta2 * moment + beta1 * (1 - beta1) * (1 - beta2)) / power


def _arcsine(x: float) -> Iterator[tuple[int, float]]:
    """(n, s_n·xⁿ) of asin(x), 0 ≤ x < 1."""
    n, factor = 1, x
    while factor / n > SERIES * x:
        yield n, factor / n
        factor *= x * x * n / (n + 1)
        n += 2


@lru_cache(maxsize=64)  # a probe asks for each tensor, and a model has few shapes
def muon(shape: tuple[int, int], momentum: float, noise: float) -> Steps:
    """u = 0.2·√max(shape)·O, O = p(M'/‖M'‖), p torch's Newton–Schulz polynomial, M' = μM + (1−μ)g of a new M = μM_old + (1−μ)g.

    M' is `two_rates` with β₁ = μ² and β₂ = μ. How alike p(X) and p(Y) are, for noise matrices X, Y of correlation ρ, has a law as
    Lion's: p acts on singular values s, p = Σ a_n·P_n(s), P_n orthonormal under their density, and ⟨p(X), p(Y)⟩ = Σ a_n²·ρⁿ over
    odd n. (For scalars P_n are Hermite's polynomials, and for signs the sum is asin's. For large matrices P_n are those of the
    Marchenko–Pastur law: noise that turns X into Y fades a polynomial of degree n by ρⁿ, as in free probability. For exactly
    orthogonal O of a square matrix a_n = (4/π)(n+1)/(n(n+2)).) Own derivation, exact in the limit of large matrices; held
    to simulated matrices by tests/test_noise_laws.py.
    """
    rows, columns = sorted(shape)
    power, first = two_rates(momentum**2, momentum)
    sizes, size = _projections(rows, columns)
    memory = tuple((MUON_RMS**2 * a**2 * first**n, momentum**n) for n, a in enumerate(sizes, 1) if n % 2)
    return Steps(MUON_RMS**2 * size, memory, MUON_RMS * sizes[0] / math.sqrt(power) / noise)


def _projections(rows: int, columns: int) -> tuple[list[float], float]:
    """(a_1, a_2, …; mean p²) of Newton–Schulz over the singular values of a noise matrix, rows ≤ columns.

    Of a matrix with elements of variance 1/columns: s² = 1 + y + 2√y·cos θ, y = rows/columns, with density (2/π)sin²θ/s² in θ. P_n
    follow s·P_n = √b_(n+1)·P_(n+1) + √b_n·P_(n−1), b = 1, y, 1, y, …; its Frobenius norm is √rows.
    """
    y, sizes, size = rows / columns, [0.0] * DEGREES, 0.0
    for node in range(NODES):
        angle = math.pi * (node + 0.5) / NODES
        square = 1 + y + 2 * math.sqrt(y) * math.cos(angle)
        weight, s = 2 / NODES * math.sin(angle) ** 2 / square, math.sqrt(square)
        value = s / math.sqrt(rows)
        for _ in range(ROUNDS):
            value *= NEWTON_SCHULZ[0] + NEWTON_SCHULZ[1] * value**2 + NEWTON_SCHULZ[2] * value**4
        size += weight * value**2
        before, now = 1.0, s
        for n in range(1, DEGREES + 1):
            sizes[n - 1] += weight * value * now
            own, following = (1.0, y) if n % 2 else (y, 1.0)
            before, now = now, (s * now - math.sqrt(own) * before) / math.sqrt(following)
    return sizes, size


def steps_of(
    algorithm: str,
    betas: tuple[float, float],
    momentum: float,
    shape: tuple[int, ...] | None = None,
    noise: float = 1.0,
) -> Steps:
    """The steps of `optim.algorithm`; `shape`: of a hidden matrix, without which muon is AdamW."""
    if algorithm == "muon" and shape is not None:
        return muon((shape[0], shape[1]), momentum, noise)
    if algorithm == "sgd":
        return sgd(momentum, noise)
    return lion(*betas, noise) if algorithm == "lion" else adam(betas[0], noise)
