"""Sections of a configuration that say what is learned: the model, the data, the optimiser and the schedule."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import field_validator, model_validator

from configs.echo import shown
from configs.errors import InputError
from configs.section import PATH, Section, nearest_multiples, setting

P1_INIT_STD, P1_WIDTH = 0.02, 768  # P1's initial weights, and the width that they belong to


class Model(Section):
    """GPT-2 as P1 trains it: pre-LayerNorm, learned positions, tied embedding and head, no biases."""

    n_layer: int = setting(..., "transformer blocks", because="a plan lists every tensor", ge=1, le=1000)
    n_head: int = setting(..., "attention heads per block", ge=1)
    n_embd: int = setting(..., "width of the residual stream", ge=1)
    seq_len: int = setting(..., "context length in tokens", ge=1)
    vocab_size: int = setting(..., "rows of the embedding; at least the tokenizer's vocabulary", ge=2)
    activation: Literal["gelu", "gelu_tanh"] = setting("gelu", "exact GELU, or the tanh form of the released GPT-2")
    bias: bool = setting(False, "biases in linear layers and LayerNorms")
    tied_head: bool = setting(True, "the output head is the token embedding")
    layernorm_gain: bool = setting(True, "learnable LayerNorm gains (false: plain normalisation)")
    dropout: float = setting(0.0, "dropout rate", ge=0, lt=1)
    init_std: float | None = setting(
        None,
        "standard deviation of the initial weights; null: 0.02·√(768/n_embd), P1's at any width; residual projections get "
        "it over √(2·n_layer)",
        gt=0,
    )

    @model_validator(mode="after")
    def _init_std_of_the_width(self) -> Model:
        # A narrower network needs larger weights for activations of the same size. The number is what is recorded.
        if self.init_std is None:
            self.__dict__["init_std"] = P1_INIT_STD * math.sqrt(P1_WIDTH / self.n_embd)
        return self

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Model:
        if self.n_embd % self.n_head:
            below, above = nearest_multiples(self.n_embd, self.n_head)
            raise InputError(
                f"n_embd {self.n_embd} is not divisible by n_head {self.n_head}; nearest n_embd: {below} or {above}"
            )
        if self.bias and not self.layernorm_gain:
            raise InputError(
                "bias true with layernorm_gain false: a plain LayerNorm has no bias; set bias false or layernorm_gain true"
            )
        return self


class Data(Section):
    path: str = setting(
        ...,
        "folder made by `python -m data.prepare`; the identity takes the data's digest instead",
        operational=True,
        max_length=PATH,
    )
    order: Literal["windows", "documents"] = setting("windows", "permuted windows, or shuffled documents read through")
    train_tokens: int | None = setting(None, "use only the first N tokens of the training split", ge=1)
    cross_document_attention: bool = setting(
        True, "a token sees earlier documents of its window (P1); false: only its own"
    )
    verify: bool | Literal["before"] = setting(
        True,
        "compare every shard's SHA-256 with the manifest: true beside training, and a run on damaged data ends as failed; "
        "before: ahead of the first step; false: never",
        operational=True,
    )
    epochs: int = setting(1, "passes over the data, each in its own order; 1 is one-pass training", ge=1)
    skip_steps: tuple[tuple[int, int], ...] = setting(
        (), "[first, last] steps, in order, whose windows are left out: later steps read on behind them"
    )

    @model_validator(mode="after")
    def _ranges_in_order(self) -> Data:
        ends = [0, *(step for span in self.skip_steps for step in span)]
        rising = all(ends[i] < ends[i + 1] if i % 2 == 0 else ends[i] <= ends[i + 1] for i in range(len(ends) - 1))
        if not rising:
            raise InputError(
                f"skip_steps {shown(self.skip_steps)}: expected [first, last] pairs that start at 1 or "
                "later, rise and do not overlap, for example [[10, 12], [40, 40]]"
            )
        return self


class DecaySchedule(Section):
    """A factor on λ: from `start` to `end` over the steps first_step … last_step, and 0 outside them."""

    kind: Literal["constant", "linear", "cosine"] = setting("constant", "shape; constant stays at `start`")
    start: float = setting(1.0, "factor at first_step", ge=0, le=1e6)
    end: float = setting(0.0, "factor reached after last_step; not for constant", ge=0, le=1e6)
    first_step: int = setting(1, "first step that decays", ge=1)
    last_step: int | None = setting(None, "last step that decays; null: the run's last", ge=1)

    @model_validator(mode="after")
    def _interval(self) -> DecaySchedule:
        if self.last_step is not None and self.last_step < self.first_step:
            raise InputError(f"last_step {self.last_step} lies before first_step {self.first_step}")
        if self.kind == "constant" and self.end != 0.0:
            raise InputError("a constant factor has no end; leave it out")
        return self


class DecayOverride(Section):
    """λ for the tensors whose name matches, ahead of optim.decay_mask."""

    pattern: str = setting(..., "tensor names, as in a shell: blocks.*.attn.*", min_length=1)
    weight_decay: float = setting(..., "their λ", ge=0, le=1e6)

    @model_validator(mode="after")
    def _names_tensors(self) -> DecayOverride:
        if "/" in self.pattern or self.pattern in ("decayed", "undecayed"):  # the names of the mask's own groups
            raise InputError(f"{shown(self.pattern)} names no tensor; patterns are as in a shell: blocks.*.attn.*")
        return self


DecayRule = Literal[
    "decoupled",
    "l2_coupled",
    "l2_loss",
    "independent",
    "corrected",
    "cautious",
    "cautious_random",
    "swd",
    "selective_projection",
    "norm_projection",
    "hyperball",
    "rotational",
]


class Optim(Section):
    lr: float = setting(..., "peak learning rate η", gt=0, le=1e6)
    weight_decay: float = setting(
        ..., "weight decay λ; decoupled: each update multiplies decayed weights by 1 − η_t·λ", ge=0, le=1e6
    )
    algorithm: Literal["adam", "sgd", "lion"] = setting("adam", "with decoupled decay, adam is AdamW")
    momentum: float = setting(0.9, "of sgd; 0 for none", ge=0, lt=1)
    decay_rule: DecayRule = setting(
        "decoupled",
        "decoupled: w ← (1 − η_t·λ)w beside the step; l2_coupled: λw added to the clipped gradient, before the moments; "
        "l2_loss: λ‖w‖² added to the loss, so 2λw to the gradient, before clipping (P1); independent: w ← (1 − s_t·λ)w, s_t the "
        "schedule's shape; corrected (AdamC): η_t²/η·λ on normalised layers; cautious: only where the step moves w towards zero, "
        "and cautious_random, its control; swd (AdamS): λ over the root mean square of the gradients; selective_projection: λ "
        "undoes growth against the gradient; without a λ norm_projection, each tensor back to its first norm, and hyperball, its "
        "update's norm fixed too; rotational: turns as decay would make it",
    )
    projection_every: int = setting(1, "of norm_projection: updates from one projection to the next", ge=1)
    decay_schedule: DecaySchedule | None = setting(None, "λ over the run; null: constant")
    decay_overrides: tuple[DecayOverride, ...] = setting(
        (),
        "λ by tensor name; the first match wins, the rest follow decay_mask",
        because="each is a group of the optimiser, and compared with every tensor",
        max_length=256,
    )
    betas: tuple[float, float] = setting(
        (0.9, 0.95), "decay rates of Adam and Lion (β1, β2); Lion's paper has 0.9, 0.99"
    )
    eps: float = setting(1e-8, "Adam's ε", gt=0)
    grad_clip: float = setting(1.0, "bound on the global gradient norm; 0 switches clipping off", ge=0)
    decay_mask: Literal["matrices", "matmul", "all"] = setting(
        "matrices", "what decays: every matrix (P1), every matrix but the embeddings, or every tensor"
    )
    z_loss: float = setting(
        0.0, "coefficient of the mean of log²Z, Z the softmax's normaliser (PaLM: 1e-4), added to the objective", ge=0
    )

    @field_validator("decay_rule", mode="before")
    @classmethod
    def _no_rule_for_no_decay(cls, rule: object) -> object:
        # It was a rule once. λ = 0 gives the same bits: two names made one experiment two.
        if rule == "none":
            raise InputError(
                '"none" is no decay rule: set optim.weight_decay 0 and leave decay_rule out, for the same bits without decay; '
                "or choose decoupled, l2_coupled or l2_loss"
            )
        return rule

    @model_validator(mode="after")
    def _fields_of_the_algorithm(self) -> Optim:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"betas {list(self.betas)} must each lie in [0, 1)")
        idle = {"adam": ("momentum",), "sgd": ("betas", "eps"), "lion": ("momentum", "eps")}[self.algorithm]
        for name in idle:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise InputError(f"{name} does nothing under algorithm {self.algorithm}; leave it out")
        if self.projection_every != 1 and self.decay_rule != "norm_projection":
            raise InputError(f"projection_every does nothing under decay_rule {self.decay_rule}; leave it out")
        return self


class Match(Section):
    """Match another run's effective learning rate (P1): η′_t = η_t·‖w_t‖/R_t, R_t the reference's recorded ‖w_t‖.

    A run with λ > 0 decays by η′_t·λ_t: the factor is on η, and so on the decay.
    """

    reference: str = setting(
        ...,
        "run folder; the identity takes the digest of its norms instead",
        operational=True,
        min_length=1,
        max_length=PATH,
    )
    own: str | None = setting(
        None,
        "run folder whose recorded norms stand for ‖w_t‖ (open loop); null: this run's live norm (closed loop)",
        operational=True,
        max_length=PATH,
    )
    norm: Literal["weights/norm", "weights/norm_decayed"] = setting("weights/norm", "which norm; not for scope tensor")
    scope: Literal["model", "tensor"] = setting(
        "model", "one factor for all, or each tensor's own (the recorded runs need log.tensor_norms)"
    )

    @model_validator(mode="after")
    def _norm_of_the_scope(self) -> Match:
        if self.scope == "tensor" and self.norm != "weights/norm":
            raise InputError("scope tensor takes each tensor's own norm; leave norm out")
        return self


class Schedule(Section):
    kind: Literal["cosine", "linear", "constant", "wsd", "piecewise"] = setting("cosine", "shape after the warm-up")
    warmup_steps: int = setting(0, "updates of linear warm-up", ge=0)
    steps: int = setting(
        ...,
        "updates of the run, exactly",
        because="a plan goes through every update, and each has its row in metrics.jsonl",
        ge=1,
        le=10_000_000,
    )
    final_lr_fraction: float = setting(
        0.1, "what the decay reaches at its end, as a fraction of the peak; cosine, linear, wsd", ge=0, le=1
    )
    horizon: int | None = setting(
        None, "cosine and linear: the step at which the decay would end; null: steps (P1's slower decay has more)", ge=1
    )
    cooldown_fraction: float | None = setting(
        None, "wsd: the share of the steps over which it decays; null: 0.2", gt=0, le=1
    )
    cooldown_shape: Literal["linear", "cosine", "one_minus_sqrt"] | None = setting(None, "wsd; null: linear")
    match: Match | None = setting(None, "follow the effective learning rate of another run")
    points: tuple[tuple[int, float], ...] | None = setting(
        None,
        "piecewise: [step, fraction of the peak], straight lines between; or the name of a JSON file of them",
        because="they are part of the run's identity, and joined by lines",
        max_length=20_000,
    )

    @model_validator(mode="after")
    def _fields_of_the_kind(self) -> Schedule:
        if self.warmup_steps > self.steps:
            raise InputError(f"warmup_steps {self.warmup_steps} exceeds steps {self.steps}")
        cooldown = (self.cooldown_fraction or 0.2) * self.steps
        if self.kind == "wsd" and self.warmup_steps + cooldown > self.steps:
            raise InputError(
                f"warmup_steps {self.warmup_steps} and a cool-down of {cooldown:g} steps do not fit in {self.steps} steps"
            )
        if self.horizon is not None and self.horizon < self.steps:
            raise InputError(f"horizon {self.horizon} lies before the run's end; set it to steps {self.steps} or more")
        used = {
            "cosine": {"final_lr_fraction", "horizon"},
            "linear": {"final_lr_fraction", "horizon"},
            "constant": set(),
            "wsd": {"final_lr_fraction", "cooldown_fraction", "cooldown_shape"},
            "piecewise": {"points"},
        }
        for name in sorted(set.union(*used.values()) - used[self.kind]):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise InputError(f"a {self.kind} schedule has no {name}; leave it out")
        if self.kind == "piecewise":
            _check_points(self.points or (), self.steps, self.warmup_steps)
        return self


def _check_points(points: tuple[tuple[int, float], ...], steps: int, warmup: int) -> None:
    places = [step for step, _ in points]
    if warmup:
        raise InputError("a piecewise schedule has its warm-up in its points; leave warmup_steps out")
    if places != sorted(set(places)) or not places or places[0] != 1 or places[-1] < steps:
        raise InputError(f"points must rise from step 1 to step {steps} or beyond; their steps are {places[:8]}")
    if any(not 0 < fraction <= 1 for _, fraction in points[:-1]) or not 0 <= points[-1][1] <= 1:
        raise InputError("points: fractions of the peak lie in (0, 1]; the last may be 0 if it lies past the end")
    if points[-1][1] == 0 and places[-1] <= steps:
        raise InputError(
            f"points: step {places[-1]} would have no learning rate; put 0 past the end, at step {steps + 1}"
        )
