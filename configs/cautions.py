"""What is legal in a configuration and hardly meant: sentences with the numbers, shown by the plan and by `advise`.

Nothing here refuses a run: what cannot be right is an error in configs/schema.py or configs/plan.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from configs.cost import n_parameters
from configs.equilibrium import OTHER_LAWS, SHRINKING
from configs.groups import Group
from configs.precision import TABLE
from configs.prepared import DataSummary, Prepared
from configs.schedule import lr_fraction
from configs.schema import P1_WIDTH, RunConfig

P1_RATIO = 0.03  # P1's η over the standard deviation of its initial weights: 6e-4 over 0.02
# Below and above these η/init_std is far from there: at 0.25 with a short warm-up seeds lay 0.1 nats apart.
RATIO = (P1_RATIO / 10, 0.2)

P1_DECAY = 6e-5  # P1's η·λ at the peak of η, λ = 0.1: what a step takes of a weight
# A hundredth a step: what the weights learned is gone in a hundred updates, less than most warm-ups.
LARGE_DECAY = 0.01
# Half a unit in the last place of a bfloat16 number is between these parts of it (8 significant bits).
BF16_ROUNDING = (2.0**-9, 2.0**-8)

# A vocabulary may be padded to a round number (P1: 50,304 over 50,257), but not by more than both of these.
PADDING, PADDING_ROWS = 0.1, 64


def cautions(config: RunConfig, data: Prepared | None, groups: Mapping[str, Group]) -> tuple[str, ...]:
    """Everything worth a second look before the first step; empty for a configuration without surprises."""
    if config.unit == "images":  # the others are of a transformer's start, vocabulary and gains
        return tuple(_decay(config, groups))
    return (*_start(config), *_vocabulary(config, data), *_decay(config, groups), *_gains(config))


def _start(config: RunConfig) -> list[str]:
    """Adam, Lion and Muon move each weight by about η a step, so η over init_std says how soon the random start is overwritten."""
    if config.branch is not None or config.optim.algorithm in ("sgd", "kfac") or config.optim.is_dotted:
        return []
    if config.optim.decay_rule == "sphere":  # weights start at init_std over the norm of all
        return []
    assert config.gpt.init_std is not None  # validation has put the number there
    ratio = config.optim.lr / config.gpt.init_std
    if ratio > RATIO[1]:
        return [
            f"optim.lr {config.optim.lr:g} is {ratio:.2g} times model.init_std {config.gpt.init_std:.3g} (P1: {P1_RATIO:g}): the "
            "start may collapse, and seeds then differ by how badly; use a smaller learning rate, a longer warm-up "
            f"({config.schedule.warmup_steps} of {config.schedule.steps} updates here), or init_std null "
            f"(0.02·√({P1_WIDTH}/n_embd))"
        ]
    if ratio < RATIO[0]:
        return [
            f"optim.lr {config.optim.lr:g} is {ratio:.2g} times model.init_std {config.gpt.init_std:.3g} (P1: {P1_RATIO:g}): "
            "the weights leave their random start slowly"
        ]
    return []


def _decay(config: RunConfig, groups: Mapping[str, Group]) -> list[str]:
    """What part of a weight a step takes at the peak of η and λ: nearly all of it, or less than the masters can show."""
    optim, schedule = config.optim, config.optim.decay_schedule
    shrinks = optim.decay_rule in SHRINKING
    if optim.decay_rule == "selective_projection" and optim.weight_decay > 1:
        return [
            f"optim.weight_decay {optim.weight_decay:g} takes back more than a tensor grew: it is a share of that, and 1 is all"
        ]
    if not shrinks and (optim.algorithm != "sgd" or optim.decay_rule in OTHER_LAWS):
        return []  # what λ takes of a weight follows from the gradients, or it is another law
    decays = [group.weight_decay for group in groups.values()]
    largest = max(decays)
    if schedule is not None:
        largest *= schedule.start if schedule.kind == "constant" else max(schedule.start, schedule.end)
    # Added to SGD's gradient, the decay is carried on by the momentum; the gradient of λ‖w‖² is 2λw.
    kept = 1 - optim.momentum if optim.algorithm == "sgd" and not shrinks else 1.0
    rate = 1.0 if optim.decay_rule == "independent" else optim.lr  # independent decay is s_t·λ, whatever η is
    part = rate * largest * (2 if optim.decay_rule == "l2_loss" else 1) / kept
    what = "η·λ" if shrinks else "η·λ with the rule's factor and the momentum"
    if part > LARGE_DECAY * (1 + 1e-9):  # not where 0.05 · 0.2 is a little more than 0.01
        return [
            f"{what} reaches {part:.2g}: a step takes {min(part, 1):.0%} of each decayed weight, which forgets in "
            f"{max(1, 1 / part):.0f} update(s) what it learned (η {optim.lr:g}, λ {largest:g}; P1: {P1_DECAY:g}, so "
            f"{1 / P1_DECAY:,.0f} updates); use a smaller λ"
        ]
    # the smallest λ of a group, at the η that the run ends with: corrected decay falls with its square
    late = lr_fraction(config.schedule, config.schedule.steps - 1) ** (2 if optim.decay_rule == "corrected" else 1)
    low = late * part * min(filter(None, decays)) / max(decays) if part else 0.0
    if TABLE[config.precision].loses_small_changes and part >= BF16_ROUNDING[1] > low > 0:
        return [
            f"{what} reaches {part:.2g} and falls to {low:.2g}, where less than half a unit in the last place, "
            f"{BF16_ROUNDING[0]:.2g} to {BF16_ROUNDING[1]:.2g} of a weight, does not move it in bfloat16: late in the run, or of "
            "the smallest λ, the decay acts only through the step that it is rounded with; bf16-stochastic keeps it on the average"
        ]
    if TABLE[config.precision].loses_small_changes and 0 < part < BF16_ROUNDING[1]:
        lost = "no weight decays" if part < BF16_ROUNDING[0] else "some weights do not decay"
        return [
            f"{what} is at most {part:.2g}, and less than half a unit in the last place, {BF16_ROUNDING[0]:.2g} to "
            f"{BF16_ROUNDING[1]:.2g} of a weight, does not move it in bfloat16: the decay acts only through the step that it is "
            f"rounded with, and where gradients are small {lost}; bf16-stochastic keeps it on the average, and bf16-master keeps "
            "float32 weights beside"
        ]
    return []


def _gains(config: RunConfig) -> list[str]:
    """Gains begin at 1.0, whose bfloat16 neighbours are 2⁻⁸ below and 2⁻⁷ above; Adam's steps are about η."""
    optim, model = config.optim, config.gpt
    norm = {"layernorm": "LayerNorm", "rmsnorm": "RMSNorm"}[model.norm]
    what = [f"{norm} gains"] * model.layernorm_gain + ["the head's scale"] * model.head_scale
    frozen = TABLE[config.precision].loses_small_changes and optim.algorithm != "sgd" and what
    if not frozen or optim.lr > BF16_ROUNDING[1]:
        return []
    does = "do not move" if optim.lr <= BF16_ROUNDING[0] else "can only fall"
    return [
        f"{' and '.join(what)}: begin at 1.0, and under {config.precision} a step of about η = {optim.lr:g} moves them down only "
        f"above {BF16_ROUNDING[0]:.2g} and up only above {BF16_ROUNDING[1]:.2g}: they {does}; bf16-stochastic moves them on the "
        "average, bf16-master keeps float32 weights beside"
        + (", and model.layernorm_gain false has none" if model.layernorm_gain and not model.head_scale else "")
    ]


def _vocabulary(config: RunConfig, data: Prepared | None) -> list[str]:
    """Rows of the embedding beyond the tokenizer's vocabulary are never an input or a target: they are only pushed down."""
    if not isinstance(data, DataSummary):
        return []
    rows, width = config.gpt.vocab_size, config.gpt.n_embd
    dead = rows - data.vocab_size
    if dead <= PADDING * data.vocab_size or dead < PADDING_ROWS:
        return []
    parameters = dead * width * (1 if config.gpt.tied_head else 2)
    return [
        f"model.vocab_size {rows:,} over a tokenizer of {data.vocab_size:,}: {dead:,} rows of the embedding stand for no token, "
        f"{parameters:,} of {n_parameters(config.model):,} parameters ({parameters / n_parameters(config.model):.0%}); "
        f"set model.vocab_size to {-(-data.vocab_size // 64) * 64:,}, or prepare data of a larger vocabulary"
    ]
