"""Independent weight decay: w ← w − s_t·(η·u + λ_t·w), s_t the schedule's shape from 0 to 1 and η its peak.

Decoupled decay with its product η·λ held fixed while η varies (Loshchilov and Hutter, 1711.05101, write it so; Wortsman et al.,
2309.14322, name it). At one peak η it is AdamW with λ/η; what it changes is what a sweep over η compares.
"""

from __future__ import annotations

from configs.schedule import decay_factor
from configs.schema import RunConfig

ABOUT = "w ← w − s_t·(η·u + λ_t·w), s_t = η_t/η: decoupled decay whose strength does not change with η (2309.14322)"
INSIDE = "decoupled"


def factor(config: RunConfig, t: int, part: str) -> float:
    """λ_t such that η_t·λ_t = s_t·λ: that over the peak η. `decay_factor` knows it, since the plan sums it."""
    return decay_factor(config, t)
