"""The section of a configuration that says how weights are updated, and how they decay."""

from __future__ import annotations

import re
from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator, model_validator

from configs.echo import cut, shown
from configs.errors import InputError
from configs.kronecker import Kfac
from configs.section import Section, setting


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
    "sphere",
]


Algorithm = Literal["adam", "sgd", "lion", "muon", "kfac"]
DOTTED = r"^torch\.optim\.[A-Za-z][A-Za-z0-9_]{0,60}$"  # its form; whether torch has it is seen where torch is
Argument = bool | int | float | str | None | tuple[float | None, ...]

# What cannot be driven whatever its arguments are. All else is tried out (optim/torch_named.py).
UNFIT = {
    "LBFGS": "evaluates the loss several times in a step, by a closure, and an update here has one gradient",
    "SparseAdam": "takes sparse gradients, and those of this model are dense",
    "Muon": "takes matrices alone; optim.algorithm muon gives AdamW the other tensors",
}
RESERVED = {
    "params": "the run gives them",
    "lr": "it is optim.lr and schedule",
    "weight_decay": "it is optim.weight_decay, and optim.decay_rule says how it acts",
    "decoupled_weight_decay": "optim.decay_rule says how λ acts",
    "maximize": "it would raise the loss",
    "differentiable": "nothing is differentiated through an update",
}


class Optim(Section):
    lr: float = setting(..., "peak learning rate η", gt=0, le=1e6)
    weight_decay: float = setting(
        ..., "weight decay λ; decoupled: each update multiplies decayed weights by 1 − η_t·λ", ge=0, le=1e6
    )
    algorithm: Algorithm | Annotated[str, Field(pattern=DOTTED)] = setting(
        "adam",
        "with decoupled decay, adam is AdamW; muon: for hidden matrices, and AdamW for the other tensors; kfac: the gradient "
        "over a layer's curvature, and SGD for other tensors, at ZeRO stage 0; torch.optim.NAME: torch's own of that name, at "
        "ZeRO stage 0",
    )
    arguments: dict[str, Argument] = setting(
        {}, "keyword arguments of a torch.optim.NAME, for example momentum_decay; what is left out is as torch has it"
    )
    momentum: float = setting(0.9, "of sgd and kfac, 0 for none; of muon, whose authors have 0.95", ge=0, lt=1)
    decay_rule: DecayRule = setting(
        "decoupled",
        "decoupled: w ← (1 − η_t·λ)w beside the step; l2_coupled: λw added to the clipped gradient, before the moments; "
        "l2_loss: λ‖w‖² added to the loss, so 2λw to the gradient, before clipping (P1); independent: w ← (1 − s_t·λ)w, s_t the "
        "schedule's shape; corrected (AdamC): η_t²/η·λ on normalised layers; cautious: only where the step moves w towards zero, "
        "and cautious_random, its control; swd (AdamS): λ over the root mean square of the gradients; selective_projection: λ "
        "undoes growth against the gradient; without a λ norm_projection, each tensor back to its first norm, and hyperball, its "
        "update's norm fixed too, and sphere, all weights as one vector back to norm 1 (P1, whose code does so once an epoch); "
        "rotational: turns as decay would make it",
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
    decay_mask: Literal["matrices", "matmul", "all", "conv", "last"] = setting(
        "matrices",
        "what decays: every matrix (P1), every matrix but the embeddings (matmul), every tensor, convolutions alone, or the last "
        "layer's matrix alone (P2)",
    )
    kfac: Kfac = Kfac()
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

    @field_validator("algorithm", mode="before")
    @classmethod
    def _known_or_dotted(cls, algorithm: object) -> object:
        names = get_args(Algorithm)
        if not isinstance(algorithm, str) or not (algorithm in names or re.fullmatch(DOTTED, algorithm)):
            raise InputError(
                f"{shown(algorithm)} is no algorithm; there are {', '.join(names)}, and torch.optim.NAME for torch's own, for "
                "example torch.optim.NAdam"
            )
        return algorithm

    @field_validator("arguments", mode="before")
    @classmethod
    def _plain_values(cls, arguments: object) -> object:
        if not isinstance(arguments, dict):
            return arguments
        # Said once, and not for each kind of value that it is not.
        for name, value in arguments.items():
            items = value if isinstance(value, list) else [value]
            numbers = all(item is None or isinstance(item, int | float) for item in items)
            if not (numbers or isinstance(value, str)):
                raise InputError(
                    f"{cut(repr(name))} = {shown(value)}: expected a number, true, false, null, a text or a list of numbers"
                )
        return {name: tuple(value) if isinstance(value, list) else value for name, value in arguments.items()}

    @field_validator("arguments")
    @classmethod
    def _one_number_one_way(cls, arguments: dict[str, Argument]) -> dict[str, Argument]:
        # 1 and 1.0 are one argument, and must not be two experiments.
        return {
            name: int(value) if isinstance(value, float) and value.is_integer() else value
            for name, value in arguments.items()
        }

    @property
    def is_dotted(self) -> bool:
        """Whether the algorithm is torch's own, by its dotted name."""
        return self.algorithm not in get_args(Algorithm)

    @model_validator(mode="after")
    def _fields_of_the_algorithm(self) -> Optim:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"betas {list(self.betas)} must each lie in [0, 1)")
        idle = {
            "adam": ("momentum", "arguments", "kfac"),
            "sgd": ("betas", "eps", "arguments", "kfac"),
            "lion": ("momentum", "eps", "arguments", "kfac"),
            "muon": ("arguments", "kfac"),
            "kfac": ("betas", "eps", "arguments"),
        }.get(self.algorithm, ("momentum", "betas", "eps", "kfac"))
        for name in idle:
            if getattr(self, name) != type(self).model_fields[name].default:
                instead = "leave it out, or give it in optim.arguments" if self.is_dotted else "leave it out"
                raise InputError(f"{name} does nothing under algorithm {self.algorithm}; {instead}")
        self._check_dotted()
        if self.algorithm == "muon" and self.decay_rule == "l2_coupled":
            raise InputError(
                "decay_rule l2_coupled under algorithm muon: torch's Muon has no coupled decay; use decoupled, or l2_loss"
            )
        if self.projection_every != 1 and self.decay_rule != "norm_projection":
            raise InputError(f"projection_every does nothing under decay_rule {self.decay_rule}; leave it out")
        for name in ("decay_mask", "decay_overrides", "decay_schedule"):
            if self.decay_rule == "sphere" and getattr(self, name) != type(self).model_fields[name].default:
                raise InputError(
                    f"{name} does nothing under decay_rule sphere, which scales all weights as one; leave it out"
                )
        if self.decay_rule in ("norm_projection", "hyperball") and self.decay_schedule is not None:
            raise InputError(
                f"decay_schedule does nothing under decay_rule {self.decay_rule}, which has no λ; leave it out"
            )
        return self

    def _check_dotted(self) -> None:
        """What of a dotted name can be told without torch."""
        reason = UNFIT.get(self.algorithm.rpartition(".")[2]) if self.is_dotted else None
        if reason:
            raise InputError(f"algorithm {self.algorithm} {reason}")
        for name in self.arguments:
            if not name.isidentifier() or len(name) > 60:
                raise InputError(f"arguments: {cut(repr(name))} is no name of an argument")
            if name in RESERVED:
                raise InputError(f"arguments: {name} is not to be set here: {RESERVED[name]}; leave it out")
