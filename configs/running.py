"""Sections of a configuration that say how a run goes: batches, devices, evaluation, checkpoints, its start, its records."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from configs.echo import shown
from configs.errors import InputError
from configs.section import PATH, Section, setting


class Batch(Section):
    tokens_per_step: int | None = setting(
        None,
        "tokens of one update over all ranks; accumulation is derived from it. Required where data.kind is tokens",
        because="every divisor is a possible micro-batch",
        ge=1,
        le=1 << 30,
    )
    images_per_step: int | None = setting(
        None,
        "images of one update over all ranks; required where data.kind is images",
        because="every divisor is a possible micro-batch",
        ge=1,
        le=1 << 30,
    )
    micro_batch: int | None = setting(
        None,
        "sequences or images per device and forward pass; null: the largest divisor whose activations fit memory_gib; with batch "
        "normalisation or dropout it must be given, and is part of the id",
        operational=True,
        ge=1,
    )
    memory_gib: float | None = setting(
        None,
        "bound on the activations of one micro-batch when micro_batch is null; null: what the GPU's memory leaves beside the "
        "state, and 8 without a GPU (set it where several runs share a GPU)",
        operational=True,
        gt=0,
    )


class Parallel(Section):
    zero_stage: Literal[0, 1, 2, 3] = setting(
        0, "DeepSpeed ZeRO stage; bf16-master, bf16-true and bf16-stochastic need 1 or more", operational=True
    )
    timeout_s: float = setting(
        1800.0, "process-group timeout: how long a rank waits for the others", operational=True, gt=0, le=365 * 86400
    )
    threads_per_rank: int | None = setting(
        None,
        "CPU threads of a rank; null: OMP_NUM_THREADS, and cores over local ranks where it is not set",
        operational=True,
        ge=1,
    )
    deterministic: bool = setting(
        False,
        "only algorithms that give the same bits each time: slower on a GPU, nothing new on a CPU",
        operational=True,
    )
    compile: bool | None = setting(
        None,
        "torch.compile of the blocks; null: on CUDA, where a C++ compiler is found (docs/speed.md)",
        operational=True,
    )
    recompute: bool = setting(
        False,
        "keep only each block's input for the backward pass and run the block again: less memory, more time",
        operational=True,
    )


class Eval(Section):
    every: int | None = setting(
        None, "updates between validations; null: only at the start and the end", operational=True, ge=1
    )
    tokens: int = setting(
        1 << 20, "validation tokens: fixed windows spread over the validation split (all, where it has fewer)", ge=1
    )
    final_tokens: Annotated[int, Field(ge=1)] | Literal["all"] | None = setting(
        None,
        "validation tokens at the end of the run, a column of their own (val/final_loss); val/loss stays over eval.tokens; "
        '"all": the whole split; null: none but eval.tokens',
    )
    images: int | None = setting(
        None, "validation images, the same each time, spread over the split; null: all of them", ge=1
    )
    train_images: int | None = setting(
        None,
        "training images of which loss and error are evaluated too, without augmentation (train_eval/loss, train_eval/error); "
        "null: none",
        ge=1,
    )


class Averages(Section):
    ema: tuple[float, ...] = setting(
        (),
        "coefficients c of averages of the weights, a ← c·a + (1 − c)·w after each update, begun at the run's first weights "
        "(P1: 0.99, which looks back 1/(1 − c) = 100 updates, 0.2 % of its run); "
        "kept in float32, evaluated beside the model, part of the checkpoint",
        operational=True,
    )

    @model_validator(mode="after")
    def _coefficients(self) -> Averages:
        if not all(0 < c < 1 for c in self.ema) or len(set(self.ema)) != len(self.ema):
            raise InputError(f"ema {shown(self.ema)}: distinct coefficients between 0 and 1")
        return self


class Measures(Section):
    """Of runs on images: what weights.measures measures of a checkpoint, during the run. It draws nothing that training draws."""

    every: int | None = setting(
        None, "updates between measures, and once at the end of the run; null: none", operational=True, ge=1
    )
    images: int = setting(
        500,
        "training images, without augmentation, of every class equally many: the same each time and in every run on the same data "
        "(P1: 5000)",
        operational=True,
        ge=1,
    )
    draws: Annotated[int, Field(ge=1, le=10_000)] | Literal["exact"] = setting(
        2,
        'random vectors of an image\'s Jacobians, a backward pass each; from 2 on the bias of its norm is known; "exact": a '
        "backward pass for each class",
        operational=True,
    )
    hessian: bool = setting(
        False, "the Hessian's trace and largest eigenvalue too: up to 110 products over the images", operational=True
    )
    gauss_newton: bool = setting(
        False, "‖θ‖² in the Gauss–Newton metric, and its K-FAC form (P2): K + 4 passes", operational=True
    )
    fisher: bool = setting(
        False,
        "θᵀFθ by the model's own labels, and by the data's (P2): no pass beyond that of gauss_newton",
        operational=True,
    )
    input_jacobian: bool = setting(
        False, "norm of the Jacobian of the logits by the inputs (P2), by `draws` or exact", operational=True
    )
    by_layer: bool = setting(
        False,
        "‖w‖ of each layer too, and gauss_newton and fisher where they are asked for, a pass each",
        operational=True,
    )
    averages: bool = setting(
        False,
        "of every average (averages.ema) too, its running statistics estimated anew in a pass over the training images",
        operational=True,
    )

    @model_validator(mode="after")
    def _every_is_needed(self) -> Measures:
        given = [name for name, field in Measures.model_fields.items() if getattr(self, name) != field.default]
        if self.every is None and given:
            raise InputError(
                f"measures.{given[0]} does nothing without measures.every; set it, or leave the section out"
            )
        return self


class Checkpoint(Section):
    every: int | None = setting(None, "updates between checkpoints; null: only at the end", operational=True, ge=1)
    at: tuple[int, ...] = setting((), "save after these steps too, and keep them", operational=True, max_length=10_000)
    log_spaced: int | None = setting(
        None,
        "save n steps in every factor of ten too, and keep them",
        operational=True,
        because="from there on every step is saved; set checkpoint.every to 1",
        ge=1,
        le=1000,
    )
    keep_last: int | None = setting(None, "delete all but the newest k; null keeps all", operational=True, ge=1)
    keep_every: int | None = setting(None, "with keep_last: keep the multiples of n as well", operational=True, ge=1)

    @model_validator(mode="after")
    def _something_to_keep(self) -> Checkpoint:
        if self.keep_every is not None and self.keep_last is None:
            raise InputError("keep_every goes with keep_last; without it every checkpoint is kept")
        if any(step < 1 for step in self.at):
            raise InputError(f"checkpoint.at {shown(self.at)}: steps start at 1")
        return self


class OtherData(Section):
    path: str = setting(..., "folder of prepared data", operational=True, min_length=1, max_length=PATH)


class Branch(Section):
    """A run that starts from another run's checkpoint. Its steps and tokens are its own."""

    origin: str = setting(
        ...,
        "RUN@STEP, or a model from elsewhere: a folder of Hugging Face, or nanoGPT's ckpt.pt; the identity takes the digest of its "
        "weights instead",
        operational=True,
        min_length=1,
        max_length=PATH,
    )
    optimizer: Literal["keep", "drop"] = setting(
        "keep", "keep: go on with the trunk's optimiser state; drop: begin with a new optimiser"
    )
    data: Literal["continue", "restart", "other"] | OtherData = setting(
        "continue",
        "read on in the trunk's order, nothing twice; begin the order again (P1); or go on with other data, that of data.path: "
        '{"path": DIR} says both',
    )
    lr_by_norm_of: str | None = setting(
        None,
        "run folder R: η is multiplied by ‖w‖ of the origin over ‖w‖ of R at the same step (sgd: by its square), so that branches "
        "of trunks of every norm have R's effective learning rate; the identity takes the digest of both norms instead",
        operational=True,
        min_length=1,
        max_length=PATH,
    )


class Numerics(Section):
    nonfinite: Literal["stop", "skip"] = setting(
        "stop", "a non-finite loss or gradient: end the run as diverged, or leave out the update and go on"
    )
    max_skipped: int = setting(10, "with skip: updates left out before the run ends as diverged", ge=1)
    divergence_margin: float | None = setting(
        None,
        "a run whose smoothed loss ends this many nats above its lowest ends as diverged; it is trained to its end "
        "all the same (P1's bfloat16 study)",
        operational=True,
        gt=0,
    )
    spike_deviations: float = setting(
        8.0,
        "a loss or gradient norm this many robust deviations above the recent ones is recorded as a spike; 0: none",
        operational=True,
        ge=0,
    )


class Log(Section):
    every: int = setting(10, "updates between writes of the metrics (each update has its row)", operational=True, ge=1)
    probe_every: int | None = setting(
        100,
        "updates between probes (record/probe_columns.py), and every tenth of the first hundred; null: none",
        operational=True,
        ge=1,
    )
    noise_scale: bool = setting(
        False, "probe the gradient noise scale too; needs several micro-batches or ranks", operational=True
    )
    tensor_norms: bool = setting(False, "also the norm of every tensor, in every row", operational=True)
    wandb: Literal["disabled", "offline", "online"] = setting(
        "disabled",
        "mirror the metrics to Weights & Biases; where it is not disabled, WANDB_MODE wins (record/mirror.py)",
        operational=True,
    )
    wandb_kinds: bool = setting(False, "mirror the probes of each kind of tensor too", operational=True)

    @model_validator(mode="after")
    def _noise_needs_probes(self) -> Log:
        if self.noise_scale and self.probe_every is None:
            raise InputError("noise_scale is probed: set probe_every, or leave noise_scale out")
        return self


class Seeds(Section):
    init: int = setting(0, "initial weights", ge=0, lt=1 << 63)
    data: int = setting(0, "data order, and what a decay rule, a rounding or K-FAC draws", ge=0, lt=1 << 63)
    dropout: int = setting(0, "dropout masks", ge=0, lt=1 << 63)
