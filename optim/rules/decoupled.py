"""Decoupled weight decay, AdamW's: w ← (1 − η_t λ_t)·w beside the gradient's step (Loshchilov and Hutter, 1711.05101)."""

from __future__ import annotations

ABOUT = "w ← (1 − η_t λ_t)·w, beside the gradient's step (1711.05101)"
STAGES = (0, 1, 2, 3)


def in_optimizer(decay: float, algorithm: str) -> float:
    """torch's AdamW does it. torch's SGD has no such decay: optim/sgd.py does it inside its own step."""
    # 0 for SGD, or torch would add λw to the gradient as well.
    return decay if algorithm == "adam" else 0.0
