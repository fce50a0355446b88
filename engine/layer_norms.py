"""The leader's layer norms: each layer is scaled to the norm that the leader's had after the same update (P2, mechanism 1).

w ← w·R/‖w‖, at the end of an epoch or every n updates (schedule.match.take norms). What a layer computes goes through its batch
normalisation, so that only η/‖w‖² changes, the effective learning rate. The running statistics are those of the outputs as they
were, and are scaled with them: else the network would be evaluated by the statistics of another size.
"""

from __future__ import annotations

import torch

from configs.tensors import tensor_table
from configs.transfer import is_transferred
from engine.training import Training


@torch.no_grad()
def take_norms(training: Training, step: int) -> None:
    """Scale the layers where update `step` (from 1) is one after which that is due. Collective.

    The optimiser's moments stay: they are of the gradients before.
    """
    match, leader = training.config.schedule.match, training.plan.leader
    if match is None or leader is None or not is_transferred(match, step, training.plan.steps_per_epoch):
        return
    # By norms of whole tensors, the same on every rank; a rank scales the pieces that it holds.
    engine = training.engine
    norms, table = engine.weight_norms(), tensor_table(training.config.model)
    # A layer of norm zero has no direction that could be scaled.
    factors = {name: after[step - 1] / norms[name] for name, after in leader.norms.items() if norms[name] > 0}
    for fragment in engine.fragments.local:
        if fragment.name in factors:
            fragment.weight.mul_(factors[fragment.name])
    engine.fragments.refresh()  # the forward pass reads copies of the weights
    engine.statistics.scale({table[name].followed_by: factor for name, factor in factors.items()})
