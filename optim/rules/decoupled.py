"""Decoupled weight decay, AdamW's: w ← (1 − η_t λ_t)·w beside the gradient's step (Loshchilov and Hutter, 1711.05101)."""

from __future__ import annotations

ABOUT = "w ← (1 − η_t λ_t)·w, beside the gradient's step (1711.05101)"
INSIDE = "decoupled"
