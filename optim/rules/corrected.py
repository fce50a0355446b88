"""AdamC: the decay of normalised layers is corrected for the schedule (Defazio, 2506.02285).

A layer whose output is normalised has an effective learning rate that depends on its norm. Where η_t falls, decoupled decay lets
the gradient's norm rise at the end of a run. A decay of η_t²/η·λ, η the peak, keeps the ratio of gradient and weight steady. The
output layer is not normalised, and decays by η_t·λ.
"""

from __future__ import annotations

from configs.schedule import decay_factor, plain_decay_factor
from configs.schema import RunConfig
from configs.tensors import TensorSpec, is_normalised

ABOUT = "w ← (1 − λ_t η_t²/η)·w for normalised layers, (1 − η_t λ_t)·w for others (AdamC, 2506.02285)"
INSIDE = "decoupled"


def part(tensor: TensorSpec) -> str:
    return "normalised" if is_normalised(tensor) else "plain"


# The sum that a plan shows is that of the normalised layers, which are most of the weights.
def factor(config: RunConfig, t: int, part: str) -> float:
    return decay_factor(config, t) if part == "normalised" else plain_decay_factor(config, t)
