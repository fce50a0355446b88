"""A small run's λ carried to a wider or longer model: the three rules of width that are published, and that they disagree.

    python -m analysis advise configs/quickstart.json runs/quickstart --to configs/gpt124m_wd0.1.json

None of the rules says anything of the horizon. What is known of it is that the time scale of the decay stays the same part of the
run (2405.13698), so that Σηλ stays: each rule's λ is given with that too, where the horizons differ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd

from configs.errors import InputError
from configs.schedule import decay_sum
from configs.schema import RunConfig

SAME = 1.01  # a factor: horizons closer than this are one horizon


@dataclass(frozen=True)
class Carried:
    """A λ with the peak η that it belongs to. `origin`: in words, where it is from."""

    rate: float
    decay: float
    origin: str


@dataclass(frozen=True)
class WidthRule:
    """λ of the large model is the small one's times width^`decay_power`; η is the small one's times width^`rate_power`, or, where
    that is None, the large configuration's own. `keeps_product`: λ follows from ηλ instead."""

    says: str
    source: str
    decay_power: float = 0.0
    rate_power: float | None = None
    keeps_product: bool = False


RULES = (
    WidthRule("λ ∝ √width, η ∝ 1/width", "2510.15262", 0.5, -1.0),
    WidthRule("ηλ stays", "2510.19093", keeps_product=True),
    WidthRule("λ ∝ 1/width²", "for Muon", -2.0),
)


def carry(small: RunConfig, large: RunConfig, known: Carried) -> tuple[list[str], dict[str, pd.DataFrame]]:
    """(sentences, a table): `known`, a λ of the configuration `small`, by each rule at the width of `large`.

    InputError where one of them has no such λ, or they are not of one algorithm.
    """
    check(small, large)
    # 0 times any power of the width is 0: that is no advice
    if known.decay <= 0:
        raise InputError(
            f"--to {large.name}: there is no λ to carry: {small.name} has λ = 0 ({known.origin}), and every rule leaves that 0; "
            "give finished runs of it at several λ, or set optim.weight_decay"
        )
    # length in updates of the peak rate: warm-up, cool-down and a schedule of λ are in it
    wider, longer = large.gpt.n_embd / small.gpt.n_embd, _updates(large) / _updates(small)
    differs = not 1 / SAME <= longer <= SAME
    rows, decays = [], []
    for rule in RULES:
        # a rule that says what η becomes is shown with that η: its λ belongs to no other
        rate = large.optim.lr if rule.rate_power is None else known.rate * wider**rule.rate_power
        decay = known.rate * known.decay / rate if rule.keeps_product else known.decay * wider**rule.decay_power
        decays.append(decay)
        row = {"rule": rule.says, "η": f"{rate:.3g}", "λ": f"{decay:.3g}", "ηλ": f"{rate * decay:.3g}"}
        row["Σηλ over the run"] = f"{rate * decay * _updates(large):.3g}"
        if differs:
            # Σηλ of the small run: over as many updates of the peak rate as the large one has
            row["λ for its length too"] = f"{decay / longer:.3g}"
        rows.append(row | {"source": rule.source})
    said = [
        f"Carried to {large.name}: λ = {known.decay:.3g} at η = {known.rate:.3g} of {small.name}, {known.origin}; its Σηλ is "
        f"{known.rate * known.decay * _updates(small):.3g}. Width {small.gpt.n_embd} to {large.gpt.n_embd}, × {wider:.3g}.",
        _disagreement(decays, wider),
    ]
    if differs:
        said.append(
            f"Ση/η, the run's length in updates at the peak, is × {longer:.3g} in {large.name}, and no rule of width speaks of "
            "that. Where the decay's time scale shall stay the same part of the run (2405.13698), λ is divided by it: a column of "
            "its own."
        )
    if small.gpt.n_layer != large.gpt.n_layer:
        said.append(
            f"Depth goes from {small.gpt.n_layer} to {large.gpt.n_layer} blocks, which none of the three speaks of."
        )
    return said, {f"λ carried to {large.name}": pd.DataFrame(rows)}


def check(small: RunConfig, large: RunConfig) -> None:
    """InputError where no λ can be carried from one configuration to the other."""
    if large.unit == "images":
        raise InputError(
            f"--to {large.name} is a configuration of images, and the rules of width are of language models in one pass; give one "
            "of tokens"
        )
    for config in (small, large):
        if config.optim.decay_rule != "decoupled":
            raise InputError(
                f"--to: {config.name} has optim.decay_rule {config.optim.decay_rule}, and the rules of width are of decoupled "
                "decay; set it to decoupled in both"
            )
        # a matched rate is known from the run alone, and so is its sum
        if config.schedule.match is not None:
            raise InputError(
                f"--to: the learning rate of {config.name} follows another run, and its sum is known from the run alone; leave "
                "schedule.match out"
            )
    # Lion's λ is some ten times AdamW's: no width makes one the other
    if small.optim.algorithm != large.optim.algorithm:
        raise InputError(
            f"--to: {small.name} is trained by {small.optim.algorithm}, {large.name} by {large.optim.algorithm}, and λ of one says "
            "nothing of the other's; give two of one algorithm"
        )


def _updates(config: RunConfig) -> float:
    """Ση over the peak: as many updates at the peak rate have the run's sum. A schedule of λ counts too."""
    return decay_sum(config, config.schedule.steps, weight_decay=1.0) / config.optim.lr


def _disagreement(decays: list[float], wider: float) -> str:
    # the factor between them says more than any of the three
    values, spread = ", ".join(f"{decay:.3g}" for decay in decays), max(decays) / min(decays)
    if math.isclose(wider, 1.0):
        return f"The width is the same, so rules of width change nothing but by η: λ = {values}."
    if spread < SAME:
        return f"The three rules of width agree here: λ = {values}."
    return (
        f"The three rules of width disagree: λ = {values}, the largest {spread:.3g} times the smallest. None is proved here, and "
        "each is for its own η: try them, or tune λ at the large size."
    )
