"""What each precision label means, dtype by dtype: the one table, written into every run record.

`weights`: what the forward pass reads. `masters`: what the optimiser updates. `gradients`: what backward produces.
`accumulation`, `reduction`: the dtype gradients are summed in over micro-batches and over ranks. `moments`: the
optimiser's state. `matmul`: the arithmetic of the model's matrix products. `loss`: softmax and cross-entropy.

P1's "bfloat16" is bf16-mixed (autocast, float32 weights); DeepSpeed's is close to bf16-master; bf16-true keeps
nothing in float32 but the loss. They are different experiments.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

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

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


TABLE: dict[str, Dtypes] = {
    "fp32": Dtypes(),
    "tf32": Dtypes(matmul="tensorfloat32"),
    "bf16-mixed": Dtypes(matmul="bfloat16"),
    "bf16-master": Dtypes(weights="bfloat16", gradients="bfloat16", matmul="bfloat16"),
    "bf16-true": Dtypes(*["bfloat16"] * 7),
}
