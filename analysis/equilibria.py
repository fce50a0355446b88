"""Where decay takes weights under noise, by algorithm, as lines of advice; the laws are those of configs/equilibrium.py."""

from __future__ import annotations

import math

from configs import equilibrium
from configs.noise_steps import steps_of
from configs.plan import Plan
from configs.schema import RunConfig
from configs.tensors import is_hidden_matrix, tensor_table

Row = tuple[str, str, str]  # what, value, source
PAPER = "2305.17212"
SOURCES = {
    "lion": f"after {PAPER}, all correlations of signs (docs/rules.md)",
    "muon": "own derivation (docs/rules.md)",
}


def has_law(config: RunConfig) -> bool:
    """Whether the algorithm's equilibrium is known beforehand, all or but for the gradients' size."""
    return config.optim.algorithm in equilibrium.LR_POWERS


def equilibrium_rows(config: RunConfig, decay: float, plan: Plan) -> tuple[list[Row], list[str]]:
    """(lines, a sentence where no law is known). `decay`: λ as it multiplies η; under SGD's l2_coupled as it is added to g."""
    optim = config.optim
    eta, algorithm = optim.lr, optim.algorithm
    if not has_law(config):
        return [], [f"No equilibrium is given: none is known of {algorithm}, whose steps under noise have no law here."]
    if algorithm == "adam":
        rms = equilibrium.rms(eta, decay)
        decayed = sum(g.parameters for g in plan.groups.values() if g.weight_decay == optim.weight_decay)
        size = f"{rms:.4g}, {rms * math.sqrt(decayed):.4g}"
        rows = [("RMS, norm of decayed weights under noise √(η/2λ)", size, PAPER)]
        angle = equilibrium.rotation(eta, decay, optim.betas[0])
        return [*rows, ("rotation a step √(2ηλ(1−β₁)/(1+β₁))", f"{angle:.4g} radians", PAPER)], []
    if algorithm == "muon":
        return _of_muon(config, decay), []
    # Lion's coupled decay is not converted to decoupled decay's, and does not come here
    law = equilibrium.settled_coupled if optim.decay_rule == "l2_coupled" else equilibrium.settled
    rms, angle = law(steps_of(algorithm, optim.betas, optim.momentum), eta, decay)
    # SGD's steps are as large as the gradients are, so its size is told in their noise; signs have a size of their own
    size = f"{rms:.4g}·σ, σ the gradients' noise an element" if algorithm == "sgd" else f"{rms:.4g}"
    source = SOURCES.get(algorithm, PAPER)
    return [
        (f"RMS of decayed weights under noise, {algorithm}", size, source),
        (f"rotation a step, {algorithm}", f"{angle:.4g} radians", source),
    ], []


def _of_muon(config: RunConfig, decay: float) -> list[Row]:
    """A line each kind of hidden matrix, by its shape; then the other tensors, which take AdamW's step."""
    optim = config.optim
    # the law knows no difference between a matrix and its transpose
    kinds: dict[tuple[int, ...], dict[str, None]] = {}
    for tensor in tensor_table(config.model).values():
        if is_hidden_matrix(tensor):
            kinds.setdefault(tuple(sorted(tensor.shape)), {})[tensor.kind] = None
    told: dict[str, tuple[int, ...] | None] = {
        f"{', '.join(names)}, {' × '.join(map(str, shape))}": shape for shape, names in kinds.items()
    }
    rows: list[Row] = []
    for words, shape in [*told.items(), ("other tensors, as AdamW", None)]:
        law = equilibrium.predictions("muon", "decoupled", optim.betas, optim.momentum, optim.lr, decay, shape)
        value = f"{law['rms']:.4g}, {law['rotation']:.4g} radians"
        rows.append((f"RMS, rotation a step under noise: {words}", value, SOURCES["muon"] if shape else PAPER))
    return rows
