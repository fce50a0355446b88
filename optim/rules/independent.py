"""Independent weight decay: w ← w − s_t·(η·u + λ_t·w), s_t the schedule's shape from 0 to 1 and η its peak.

Decoupled decay with its product η·λ held fixed while η varies (Loshchilov and Hutter, 1711.05101, write it so; Wortsman et al.,
2309.14322, name it). At one peak η it is AdamW with λ/η; what it changes is what a sweep over η compares.
λ_t is λ/η: configs/schedule.py divides, since a plan sums it.
"""

from __future__ import annotations

ABOUT = "w ← w − s_t·(η·u + λ_t·w), s_t = η_t/η: decoupled decay whose strength does not change with η (2309.14322)"
INSIDE = "decoupled"
