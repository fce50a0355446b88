"""What each precision label means, dtype by dtype: the one table, written into every run record.

`weights`: what the forward pass reads. `masters`: what the optimiser updates. `gradients`: what backward produces.
`accumulation`, `reduction`: the dtype gradients are summed in over micro-batches and over ranks. `moments`: the
optimiser's state. `matmul`: the arithmetic of the model's matrix products. `loss`: softmax and cross-entropy. `rounding`: how an
update's masters and moments, computed in float32, are rounded to their dtype: to the nearest number, or up or down by chance.

P1's "bfloat16" is bf16-mixed (autocast, float32 weights); DeepSpeed's is close to bf16-master; bf16-true keeps
nothing in float32 but the loss, and bf16-stochastic is that with another rounding. They are different experiments.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Dtypes:
    weights: str = "float32"
    masters: str = "float32"
    gradients: str = "float32"
    accumulation: str = "float32"
    reduction: str = "float32"
    moments: str = "float32"
    matmul: str = "float32"
    loss: str = "float32"  # in every precision
    rounding: str = "nearest"  # or stochastic (optim/stochastic.py)

    @property
    def loses_small_changes(self) -> bool:
        """Whether a master that is changed by less than half a unit in its last place, 2⁻⁹ to 2⁻⁸ of it, always rounds back."""
        return self.masters == "bfloat16" and self.rounding == "nearest"

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


TABLE: dict[str, Dtypes] = {
    "fp32": Dtypes(),
    "tf32": Dtypes(matmul="tensorfloat32"),
    "bf16-mixed": Dtypes(matmul="bfloat16"),
    "bf16-master": Dtypes(weights="bfloat16", gradients="bfloat16", matmul="bfloat16"),
    "bf16-true": Dtypes(*["bfloat16"] * 7),
    "bf16-stochastic": replace(Dtypes(*["bfloat16"] * 7), rounding="stochastic"),
}
