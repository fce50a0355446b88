"""The configuration of one run: every field, its bounds and what it means. Its sections are imported from here.

A configuration is data: it is read from JSON, validated once, frozen, and written into the run folder. Fields
marked `operational` do not change what is computed, only where, how fast and how often it is observed; they are
left out of the run's identity (configs/identity.py), so that a run may resume elsewhere.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Tag, model_validator

from configs.echo import cut
from configs.equilibrium import HOLDING, LR_POWERS
from configs.errors import InputError
from configs.images import ImageData, ImageModel
from configs.kronecker import check_kfac
from configs.learning import Data, Match, Schedule
from configs.optimisation import DecayOverride, DecaySchedule, Optim
from configs.precision import TABLE
from configs.running import Averages, Batch, Branch, Checkpoint, Eval, Log, Measures, Numerics, Parallel, Seeds
from configs.section import Section, setting
from configs.transformer import P1_INIT_STD, P1_WIDTH, Model
from configs.units import check_images, check_measures, check_pair, check_tokens

__all__ = [
    "P1_INIT_STD",
    "P1_WIDTH",
    "Averages",
    "Batch",
    "Branch",
    "Checkpoint",
    "Data",
    "DecayOverride",
    "DecaySchedule",
    "Eval",
    "Log",
    "Match",
    "Measures",
    "Model",
    "Numerics",
    "Optim",
    "Parallel",
    "RunConfig",
    "Schedule",
    "Section",
    "Seeds",
    "setting",
]

Precision = Literal["fp32", "tf32", "bf16-mixed", "bf16-master", "bf16-true", "bf16-stochastic"]

# Raw DeepSpeed options that may be passed through: they change how bytes move, and results by rounding at most.
DEEPSPEED_OPTIONS = {
    "allgather_bucket_size",
    "reduce_bucket_size",
    "overlap_comm",
    "contiguous_gradients",
    "reduce_scatter",
    "sub_group_size",
    "stage3_prefetch_bucket_size",
    "stage3_param_persistence_threshold",
    "stage3_max_live_parameters",
    "stage3_max_reuse_distance",
}


Unit = Literal["tokens", "images"]


def _kind(tokens: str, images: str) -> Discriminator:
    """Which of two sections a mapping is: that for tokens where it names no kind, or the kind of that one."""

    def tag(section: Any) -> str:
        kind = section.get("kind", tokens) if isinstance(section, dict) else getattr(section, "kind", tokens)
        return tokens if kind == tokens else images

    return Discriminator(tag)


class RunConfig(Section):
    """One run. Read with configs.load.load_config.

    An *example* is what a batch is made of: a window of model.seq_len tokens, or an image. The *unit* that batches, costs and
    speeds are counted in is tokens or images.
    """

    name: str = setting(..., "names the run folder", operational=True, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    model: Annotated[Annotated[Model, Tag("gpt")] | Annotated[ImageModel, Tag("image")], _kind("gpt", "image")]
    data: Annotated[Annotated[Data, Tag("tokens")] | Annotated[ImageData, Tag("images")], _kind("tokens", "images")]
    optim: Optim
    schedule: Schedule
    batch: Batch
    precision: Precision = setting(
        "fp32", "dtypes of weights, gradients, state and matmuls: the table in configs/precision.py"
    )
    parallel: Parallel = Parallel()
    eval: Eval = Eval()
    averages: Averages = Averages()
    measures: Measures = Measures()
    checkpoint: Checkpoint = Checkpoint()
    numerics: Numerics = Numerics()
    log: Log = Log()
    seeds: Seeds = Seeds()
    branch: Branch | None = setting(None, "start from another run's checkpoint")
    deepspeed: dict[str, int | float | bool] = setting(
        {}, "raw zero_optimization options, from an allow-list", operational=True
    )

    @model_validator(mode="after")
    def _sections_agree(self) -> RunConfig:
        check_pair(self.model, self.data)
        if isinstance(self.model, Model):
            check_tokens(self.model, self.batch, self.eval, self.measures, self.parallel)
        else:
            check_images(self.model, self.batch, self.eval, self.parallel, self.optim, self.precision)
        check_measures(self.measures, self.averages)
        self._check_whole_tensors()
        if self.optim.algorithm == "kfac":
            has_head = not (self.model.tied_head if isinstance(self.model, Model) else self.model.scale_invariant)
            about = (self.optim.decay_rule, self.parallel.zero_stage, self.precision, self.parallel.recompute)
            check_kfac(self.optim.kfac, *about, has_head)
        decay = self.optim.decay_schedule
        if decay is not None and max(decay.first_step, decay.last_step or 0) > self.schedule.steps:
            raise InputError(
                f"optim.decay_schedule covers steps {decay.first_step} to {decay.last_step or self.schedule.steps}, the run has "
                f"{self.schedule.steps}"
            )
        self._check_match()
        by_rate = self.schedule.match is not None and self.schedule.match.sets_rate
        follows = by_rate or (self.branch is not None and self.branch.lr_by_norm_of is not None)
        if follows and self.optim.algorithm not in LR_POWERS:
            raise InputError(
                f"schedule.match and branch.lr_by_norm_of set an effective learning rate, and that of {self.optim.algorithm} is "
                f"not known; schedule.match is for {', '.join(name for name, power in LR_POWERS.items() if power == 1)}, "
                f"branch.lr_by_norm_of for {', '.join(LR_POWERS)}"
            )
        if self.schedule.match is not None and self.branch is not None and self.branch.lr_by_norm_of is not None:
            raise InputError(
                "branch.lr_by_norm_of with schedule.match: both set the effective learning rate; leave one of them out"
            )
        stage = self.parallel.zero_stage
        for option, value in sorted(self.deepspeed.items()):
            if option not in DEEPSPEED_OPTIONS:
                raise InputError(
                    f"deepspeed option {cut(option)!r} is not allowed; allowed: {', '.join(sorted(DEEPSPEED_OPTIONS))}"
                )
            if isinstance(value, float) or value < 0:
                raise InputError(f"deepspeed.{option} = {value}: expected true, false or a whole number of 0 or more")
            if stage == 0 or (option.startswith(("stage3", "sub_group")) and stage < 3):
                raise InputError(f"deepspeed option {option!r} does nothing at ZeRO stage {stage}; leave it out")
        return self

    def _check_whole_tensors(self) -> None:
        """Algorithms and precisions that are not there at every ZeRO stage, and those that do not go together."""
        whole = self.optim.is_dotted or self.optim.algorithm == "kfac"
        if whole and TABLE[self.precision].weights == "bfloat16":  # no stage suits both
            fine = ", ".join(name for name, dtypes in TABLE.items() if dtypes.weights == "float32")
            raise InputError(
                f"optim.algorithm {self.optim.algorithm} works at parallel.zero_stage 0 alone, and precision {self.precision} at "
                f"1, 2 and 3: use precision {fine}"
            )
        if TABLE[self.precision].weights == "bfloat16" and self.parallel.zero_stage == 0:
            raise InputError(
                f"precision {self.precision} needs parallel.zero_stage 1, 2 or 3: at stage 0 DeepSpeed takes an optimiser "
                "step on zero gradients before the first batch"
            )
        if self.optim.is_dotted and self.parallel.zero_stage:
            raise InputError(
                f"optim.algorithm {self.optim.algorithm} needs whole tensors, and at parallel.zero_stage "
                f"{self.parallel.zero_stage} a rank steps pieces of them; use stage 0"
            )
        if self.optim.algorithm == "muon" and TABLE[self.precision].masters == "bfloat16":
            fine = ", ".join(name for name, dtypes in TABLE.items() if dtypes.masters == "float32")
            raise InputError(
                f"optim.algorithm muon under precision {self.precision}: its decay and its step are rounded one after the other, "
                f"and the decay of bfloat16 masters would round to nothing; use {fine}"
            )

    def _check_match(self) -> None:
        match, rule = self.schedule.match, self.optim.decay_rule
        if match is None:
            return
        if match.sets_rate:
            if self.optim.algorithm == "sgd":
                raise InputError(
                    "schedule.match is for adam, whose effective learning rate is η/‖w‖; sgd's is η/‖w‖²; "
                    "schedule.match.take norms takes the leader's layer norms instead, whatever the algorithm"
                )
            return
        if self.data.kind != "images" and match.every is None:
            raise InputError(
                "schedule.match.every null is an epoch, and a run on tokens has none; set it to a number of updates"
            )
        if rule in (*HOLDING, "sphere"):
            raise InputError(
                f"schedule.match.take norms under optim.decay_rule {rule}: both say what norms weights have; use a rule of λ, for "
                "example decoupled with optim.weight_decay 0"
            )
        if TABLE[self.precision].masters == "bfloat16":
            fine = ", ".join(name for name, dtypes in TABLE.items() if dtypes.masters == "float32")
            raise InputError(
                f"schedule.match.take norms under precision {self.precision}: a bfloat16 weight is rounded back where it "
                f"is scaled by less than 1/512 of itself; use {fine}"
            )

    @property
    def unit(self) -> Unit:
        """What batches are counted in."""
        return self.data.kind

    @property
    def gpt(self) -> Model:
        """The model of a run on tokens."""
        assert isinstance(self.model, Model), "only a run on tokens has a transformer"
        return self.model

    @property
    def text(self) -> Data:
        """The data of a run on tokens."""
        assert isinstance(self.data, Data), "only a run on tokens reads text"
        return self.data

    @property
    def examples(self) -> str:
        """What a batch is made of, as a word."""
        return "sequences" if self.unit == "tokens" else "images"

    @property
    def targets_per_example(self) -> int:
        """Tokens of a window; 1 for an image."""
        return self.model.seq_len if isinstance(self.model, Model) else 1

    @property
    def units_per_step(self) -> int:
        """Tokens or images of an update."""
        units = self.batch.tokens_per_step if self.unit == "tokens" else self.batch.images_per_step
        assert units is not None, "validation has seen to it"
        return units

    @property
    def examples_per_step(self) -> int:
        """Windows or images of an update."""
        return self.units_per_step // self.targets_per_example
