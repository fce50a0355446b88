"""The DeepSpeed configuration that follows from a run's configuration.

Everything that changes a number is written, defaults too: they have changed between versions of DeepSpeed.
"""

from __future__ import annotations

from typing import Any

from configs.cost import bucket_elements
from configs.plan import Plan
from configs.precision import TABLE
from configs.schema import RunConfig

SHORT = {"float32": "fp32", "bfloat16": "bf16"}


def deepspeed_config(config: RunConfig, plan: Plan) -> dict[str, Any]:
    """Clipping, the finite check and the schedule are ours (engine/engine.py, engine/update.py), so DeepSpeed's are off."""
    dtypes, stage = TABLE[config.precision], config.parallel.zero_stage
    true_bf16 = dtypes.masters == "bfloat16"
    # Gradient norms are computed once, by us. DeepSpeed cannot leave its own out at stage 3, nor in BF16_Optimizer (stage 1 with
    # accumulation in float32).
    ds_norm = stage == 3 or config.precision == "bf16-master"
    # The batch is said three times, and DeepSpeed refuses numbers that do not multiply: the plan's must.
    return {
        "train_batch_size": config.examples_per_step,
        "train_micro_batch_size_per_gpu": plan.micro_batch,
        "gradient_accumulation_steps": plan.micro_steps,
        "gradient_clipping": 0.0,
        "zero_optimization": {
            "stage": stage,
            "compute_grad_norm": ds_norm or stage == 0,
            "reduce_bucket_size": bucket_elements(config),
            **config.deepspeed,
        },
        # ZeRO refuses optimisers that it does not know, such as SGD; ours are tested at every stage.
        "zero_allow_untested_optimizer": True,
        "bf16": {
            "enabled": dtypes.weights == "bfloat16",
            "check_grad_overflow": False,
            "bf16_master_weights_and_grads": true_bf16,
            "bf16_optimizer_states": true_bf16,
        },
        "fp16": {"enabled": False},
        "torch_autocast": {"enabled": False},
        "data_types": {"grad_accum_dtype": SHORT[dtypes.accumulation]},
        "communication_data_type": SHORT[dtypes.reduction],
        "steps_per_print": 1 << 62,
        "wall_clock_breakdown": False,
    }
