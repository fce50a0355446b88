"""What is legal in a configuration and hardly meant: sentences with the numbers, shown by the plan and by `advise`.

Nothing here refuses a run: what cannot be right is an error in configs/schema.py or configs/plan.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from configs.cost import n_parameters
from configs.schema import P1_WIDTH, RunConfig

if TYPE_CHECKING:
    from configs.plan import DataSummary

P1_RATIO = 0.03  # P1's η over the standard deviation of its initial weights: 6e-4 over 0.02
# Below and above these η/init_std is far from there: at 0.25 with a short warm-up seeds lay 0.1 nats apart.
RATIO = (P1_RATIO / 10, 0.2)

# A vocabulary may be padded to a round number (P1: 50,304 over 50,257), but not by more than both of these.
PADDING, PADDING_ROWS = 0.1, 64


def cautions(config: RunConfig, data: DataSummary | None) -> tuple[str, ...]:
    """Everything worth a second look before the first step; empty for a configuration without surprises."""
    return (*_start(config), *_vocabulary(config, data))


def _start(config: RunConfig) -> list[str]:
    """Adam moves each weight by about η a step, so η over init_std says how soon the random start is overwritten."""
    if config.branch is not None or config.optim.algorithm != "adam":
        return []
    assert config.model.init_std is not None  # validation has put the number there
    ratio = config.optim.lr / config.model.init_std
    if ratio > RATIO[1]:
        return [
            f"optim.lr {config.optim.lr:g} is {ratio:.2g} times model.init_std {config.model.init_std:.3g} (P1: {P1_RATIO:g}): the "
            "start may collapse, and seeds then differ by how badly; use a smaller learning rate, a longer warm-up "
            f"({config.schedule.warmup_steps} of {config.schedule.steps} updates here), or init_std null "
            f"(0.02·√({P1_WIDTH}/n_embd))"
        ]
    if ratio < RATIO[0]:
        return [
            f"optim.lr {config.optim.lr:g} is {ratio:.2g} times model.init_std {config.model.init_std:.3g} (P1: {P1_RATIO:g}): "
            "the weights leave their random start slowly"
        ]
    return []


def _vocabulary(config: RunConfig, data: DataSummary | None) -> list[str]:
    """Rows of the embedding beyond the tokenizer's vocabulary are never an input or a target: they are only pushed down."""
    rows, width = config.model.vocab_size, config.model.n_embd
    dead = rows - data.vocab_size if data is not None else 0
    if data is None or dead <= PADDING * data.vocab_size or dead < PADDING_ROWS:
        return []
    parameters = dead * width * (1 if config.model.tied_head else 2)
    return [
        f"model.vocab_size {rows:,} over a tokenizer of {data.vocab_size:,}: {dead:,} rows of the embedding stand for no token, "
        f"{parameters:,} of {n_parameters(config.model):,} parameters ({parameters / n_parameters(config.model):.0%}); "
        f"set model.vocab_size to {-(-data.vocab_size // 64) * 64:,}, or prepare data of a larger vocabulary"
    ]
