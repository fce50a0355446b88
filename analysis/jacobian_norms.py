"""P2's lemmas on the Jacobian, for networks small enough to write out: ReLU and deep linear, without biases.

P2 (arXiv 1810.12281), of L hidden layers, θ all weights, E over inputs:

    Lemma 1    f(x) = J_x·x = J_θ·θ/(L + 1)
    Lemma 2    ‖θ‖²_G = E‖J_θ·θ‖² = (L + 1)²·E‖f‖²; K-FAC's form Σ_l tr(W A Wᵀ S), of deep linear nets, (L + 1)·E‖f‖²
    Theorem 1  deep linear, E[x] = 0 and E[xxᵀ] = I: ‖θ‖²_G = (L + 1)²·‖J_x‖_F²

Both sides are computed apart: the left by derivatives along θ, layer after layer, the right by the outputs or by J_x. Lemma 1 is
Euler's theorem: the outputs are of degree 1 in x and in every layer's weights. weights/gauss_newton.py measures the same of trained
networks.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from analysis.figures import SEQUENCE, Figure, Line, Panel

INPUTS, WIDTH, OUTPUTS, EXAMPLES = 6, 12, 4, 200
DEPTHS = (1, 2, 3, 5, 8)  # hidden layers
TOLERANCE = 1e-6  # relative, of numbers of 53 bits; about 1e-13 is what rounding leaves


@dataclass(frozen=True)
class Net:
    """`weights`: one matrix (outputs, inputs) a layer; with `relu` a ReLU stands between them."""

    weights: list[np.ndarray]
    relu: bool

    def passes(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
        """Over examples x (n, d): f (n, K), J_θ·θ (n, K), J_x (n, K, d), and a layer's inputs (n, in) and ∂f/∂s (n, K, out)."""
        h, along, by_x = x, np.zeros_like(x), np.broadcast_to(np.eye(x.shape[1]), (len(x), x.shape[1], x.shape[1]))
        inputs, open_ = [], []
        for i, w in enumerate(self.weights):
            inputs.append(h)
            # the product rule: the layer's own weights move by themselves, its inputs by all weights before
            s, along, by_x = h @ w.T, h @ w.T + along @ w.T, w @ by_x
            # where a ReLU is shut, neither the value nor a derivative passes; behind the last layer there is none
            passed = s > 0 if self.relu and i < len(self.weights) - 1 else np.ones_like(s, dtype=bool)
            h, along, by_x = s * passed, along * passed, by_x * passed[:, :, None]
            open_.append(passed)
        # backwards from the outputs, whose derivative by themselves is I
        g = np.broadcast_to(np.eye(h.shape[1]), (len(x), h.shape[1], h.shape[1]))
        grads = [g]
        for w, passed in zip(self.weights[:0:-1], open_[-2::-1], strict=True):
            g = (g @ w) * passed[:, None, :]
            grads.append(g)
        return h, along, by_x, list(zip(inputs, grads[::-1], strict=True))

    def kronecker(self, factors: list[tuple[np.ndarray, np.ndarray]]) -> float:
        """Σ over layers of tr(W A Wᵀ S), A = E[aaᵀ], S = E[Σ_k g_k g_kᵀ]: each expectation by itself."""
        total = 0.0
        for w, (a, g) in zip(self.weights, factors, strict=True):
            # E[a aᵀ]·E[g gᵀ] and not E[(a ⊗ g)(a ⊗ g)ᵀ]: this is the approximation
            second, sensitivity = a.T @ a / len(a), np.einsum("nkd,nke->de", g, g) / len(g)
            total += float(np.trace(w @ second @ w.T @ sensitivity))
        return total


def net(hidden: int, relu: bool, seed: int = 0) -> Net:
    dice, sizes = np.random.default_rng([seed, hidden]), [INPUTS, *[WIDTH] * hidden, OUTPUTS]
    # variances that keep the size of the activations, so that depths share an axis
    return Net(
        [
            dice.standard_normal((b, a)) * ((2 if relu and i < hidden else 1) / a) ** 0.5
            for i, (a, b) in enumerate(itertools.pairwise(sizes))
        ],
        relu,
    )


def white(seed: int = 0) -> np.ndarray:
    """(EXAMPLES, INPUTS) with mean 0 and second moment I, to rounding: of a sample that is only drawn so, both err by 1/√n."""
    x = np.random.default_rng(seed).standard_normal((EXAMPLES, INPUTS))
    q, _ = np.linalg.qr(x - x.mean(axis=0))
    return np.asarray(q * EXAMPLES**0.5)


def verified() -> tuple[Figure, list[tuple[str, str, float, float]]]:
    """The figure, and of each law and depth: law, setting, what the law says, what was computed. Lemma 1, of every example,
    has the example and output that part most."""
    x, rows = white(), []
    panels = [Panel("hidden layers L", text, [], xlog=False, ylog=True) for text in (NORM, FORM, THEOREM)]
    for relu, colour, name in ((True, SEQUENCE[0], "ReLU"), (False, SEQUENCE[2], "deep linear")):
        ratios = []
        for hidden in DEPTHS:
            one, setting = net(hidden, relu), f"{name}, L {hidden}"
            f, along, by_x, factors = one.passes(x)
            square = float((f**2).sum(axis=1).mean())
            # both sides from other sums, so that an error in one does not hide in the other
            norm, form = float((along**2).sum(axis=1).mean()), one.kronecker(factors)
            jacobian = float((by_x**2).sum(axis=(1, 2)).mean())
            rows.append(_farthest("Lemma 1: J_x x = f", setting, f, np.einsum("nkd,nd->nk", by_x, x)))
            rows.append(_farthest("Lemma 1: J_θ θ = (L + 1) f", setting, (hidden + 1) * f, along))
            rows.append(("Lemma 2: ‖θ‖²_G = (L + 1)² E‖f‖²", setting, (hidden + 1) ** 2 * square, norm))
            # of ReLU networks these two hold for no depth: they are drawn, and not checked
            if not relu:
                rows.append(("Lemma 2, K-FAC's form: (L + 1) E‖f‖²", setting, (hidden + 1) * square, form))
                rows.append(("Theorem 1: ‖θ‖²_G = (L + 1)² ‖J_x‖²", setting, (hidden + 1) ** 2 * jacobian, norm))
            ratios.append((norm / square, form / square, norm / jacobian))
        for panel, values in zip(panels, np.array(ratios).T, strict=True):
            panel.lines.append(Line(np.array(DEPTHS), values, name, colour, points=True))
    depths = np.array(DEPTHS)
    for panel, law in zip(panels, ((depths + 1) ** 2, depths + 1, (depths + 1) ** 2), strict=True):
        panel.lines.append(Line(depths, law.astype(float), "law", SEQUENCE[-1]))
    caption = (
        "P2's lemmas over depth. ‖θ‖²_G is (L + 1)² E‖f‖² for both kinds of networks; K-FAC's form of it, and the Jacobian by the "
        "inputs, follow the lines in deep linear ones alone (Theorem 1, white inputs)."
    )
    return Figure("jacobian_norms", caption, panels), rows


NORM, FORM, THEOREM = "‖θ‖²_G / E‖f‖²", "K-FAC's form / E‖f‖²", "‖θ‖²_G / E‖J_x‖²"


def _farthest(law: str, setting: str, predicted: np.ndarray, computed: np.ndarray) -> tuple[str, str, float, float]:
    """Where they part most, both sides raised by the largest size there is: an output near 0 has no relative error."""
    i = np.unravel_index(np.abs(predicted - computed).argmax(), predicted.shape)
    top = float(np.abs(predicted).max())
    return law, setting, top, top + float(computed[i] - predicted[i])
