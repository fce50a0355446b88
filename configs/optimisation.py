"""The section of a configuration that says how weights are updated, and how they decay."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator, model_validator

from configs.echo import shown
from configs.errors import InputError
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
]


class Optim(Section):
    lr: float = setting(..., "peak learning rate η", gt=0, le=1e6)
    weight_decay: float = setting(
        ..., "weight decay λ; decoupled: each update multiplies decayed weights by 1 − η_t·λ", ge=0, le=1e6
    )
    algorithm: Literal["adam", "sgd", "lion", "muon"] = setting(
        "adam", "with decoupled decay, adam is AdamW; muon: for hidden matrices, and AdamW for the other tensors"
    )
    momentum: float = setting(0.9, "of sgd, 0 for none; of muon, whose authors have 0.95", ge=0, lt=1)
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
        idle = {"adam": ("momentum",), "sgd": ("betas", "eps"), "lion": ("momentum", "eps"), "muon": ()}[self.algorithm]
        for name in idle:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise InputError(f"{name} does nothing under algorithm {self.algorithm}; leave it out")
        if self.algorithm == "muon" and self.decay_rule == "l2_coupled":
            raise InputError(
                "decay_rule l2_coupled under algorithm muon: torch's Muon has no coupled decay; use decoupled, or l2_loss"
            )
        if self.projection_every != 1 and self.decay_rule != "norm_projection":
            raise InputError(f"projection_every does nothing under decay_rule {self.decay_rule}; leave it out")
        return self
