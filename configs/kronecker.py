"""The section of a configuration that says how K-FAC measures curvature (optim/kfac.py), and with what it does not go together."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from configs.errors import InputError
from configs.section import Section, setting

# Of the others one sets norms, one moves elements by their own signs, one is written for Adam: K-FAC moves a layer as a whole.
RULES = ("decoupled", "l2_coupled", "l2_loss", "independent")
PRECISIONS = ("fp32", "tf32", "bf16-mixed")


class Kfac(Section):
    """Of `optim.algorithm` kfac: a layer's curvature is A ⊗ S, A of its inputs and S of the gradients at its outputs. The defaults
    are those of Three Mechanisms of Weight Decay Regularization (1810.12281)."""

    metric: Literal["fisher", "fisher_empirical", "gauss_newton"] = setting(
        "fisher",
        "fisher: labels drawn from the model's own distribution; fisher_empirical: the data's labels; gauss_newton: the Hessian at "
        "the outputs is taken as I",
    )
    damping: float = setting(
        1e-3, "λ_d: factors are A + π√λ_d·I and S + √λ_d/π·I, π² their mean eigenvalues' ratio", ge=0
    )
    factor_decay: float = setting(
        0.95, "of the factors' moving average; the first statistics are taken whole", ge=0, lt=1
    )
    statistics_every: int = setting(10, "updates from one measurement of the factors to the next", ge=1)
    inverses_every: int = setting(100, "updates from one inversion to the next", ge=1)
    inverse: Literal["eigen", "cholesky"] = setting("eigen", "how a damped factor is inverted, in float64")
    kl_clip: float | None = setting(
        None, "κ: the steps of all layers are multiplied by min(1, √(κ/(η² Σ g·F⁻¹g))); null: never", gt=0
    )

    @model_validator(mode="after")
    def _new_statistics_for_new_inverses(self) -> Kfac:
        if self.statistics_every > self.inverses_every:
            raise InputError(
                f"statistics_every {self.statistics_every} with inverses_every {self.inverses_every}: no statistics would be due "
                "before some inverses, which would be made of the same factors again; set inverses_every to "
                f"{self.statistics_every} or more"
            )
        return self


def check_kfac(kfac: Kfac, rule: str, stage: int, precision: str, recompute: bool, has_head: bool) -> None:
    """InputError where K-FAC cannot work, or the decay rule means nothing. `has_head`: whether the last layer has factors."""
    if rule not in RULES:
        raise InputError(
            f"optim.decay_rule {rule} has no meaning with optim.algorithm kfac, whose step is made for a layer as a whole; use "
            f"one of {', '.join(RULES)}"
        )
    if stage:
        raise InputError(
            f"optim.algorithm kfac multiplies whole layers, and at parallel.zero_stage {stage} a rank steps pieces of them; "
            "use stage 0, with any number of ranks"
        )
    if precision not in PRECISIONS:
        raise InputError(
            f"optim.algorithm kfac under precision {precision}: factors of float32 weights and gradients are needed; use one of "
            f"{', '.join(PRECISIONS)}"
        )
    if recompute:
        raise InputError(
            "parallel.recompute with optim.algorithm kfac: its statistics need the inputs and outputs of all layers at once; leave "
            "it out, and set batch.micro_batch or batch.memory_gib lower if memory is short"
        )
    if not kfac.damping and kfac.metric != "gauss_newton" and has_head:
        raise InputError(
            f"optim.kfac.damping 0 with metric {kfac.metric}: gradients at the logits sum to zero, so the last layer's S has no "
            "inverse; set a damping (1e-3 is usual), or metric gauss_newton"
        )
