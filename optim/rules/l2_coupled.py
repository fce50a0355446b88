"""L2 regularisation as torch's Adam and SGD have it: λ_t·w is added to the gradient after it is clipped."""

from __future__ import annotations

ABOUT = "g ← g + λ_t·w after clipping: torch's own weight_decay of Adam and SGD"
INSIDE = "coupled"
