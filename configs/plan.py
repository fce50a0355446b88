"""The plan of a run: everything derived from its configuration, its data and the number of ranks, before step 1."""

from __future__ import annotations

from array import array
from dataclasses import asdict, dataclass, replace
from typing import Any

from configs import cost
from configs.cadence import most_at_once
from configs.cautions import cautions
from configs.decay_laws import check_rule
from configs.equilibrium import HOLDING, SHRINKING
from configs.errors import InputError
from configs.groups import Group, decay_groups, main_group, sized_groups
from configs.identity import experiment, run_id
from configs.micro_batch import choose_micro_batch, memory_cautions
from configs.origin import Leader, Origin, factors_by_tensor, first_window, planned_factors
from configs.precision import TABLE
from configs.prepared import ImageSummary, Prepared, check_prepared, examples_available
from configs.schedule import decay_sum, lr_of_updates, lr_sum, peak_decay
from configs.schema import RunConfig, Unit
from configs.tensors import tensor_table
from configs.transfer import transferred
from configs.windows import taken_images


@dataclass(frozen=True)
class Plan:
    experiment: dict[str, Any] | None  # None: the data is not prepared yet, or a branch's origin is not there yet
    run_id: str | None
    ranks: int
    unit: Unit
    examples_per_step: int  # windows or images
    micro_batch: int
    micro_batch_from: str  # what it follows from, in words
    device_bytes: int | None  # the memory of the GPU that was seen; None: there was none
    micro_steps: int  # forward passes per rank and update: the derived accumulation
    steps: int
    steps_per_epoch: int | None  # of images: an epoch's whole batches
    left_over_per_epoch: int | None  # images that fill no batch at an epoch's end, and are not read in it
    units: int  # tokens or images of the run
    units_available: int | None
    first_window: int  # where in the order the run begins: after what a branch's trunk has read
    n_parameters: int
    groups: dict[str, Group]
    flops_per_unit: int  # per token or image
    state_bytes: int
    activation_bytes: int  # or what passes by, where that is more (cost.working_bytes)
    communication_bytes: int  # sent by a rank in one update
    checkpoint_bytes: int
    checkpoints: int
    lr_sum: float | None  # the mean over parameters where they differ; None: it follows from the run's live norms
    decay_sum: float | None
    origin: Origin | None = None
    leader: Leader | None = None
    cautions: tuple[str, ...] = ()  # what is legal and hardly meant

    @property
    def targets_per_step(self) -> int:
        """Of all ranks together: what the loss of an update is the mean over."""
        return self.units // self.steps

    def as_dict(self) -> dict[str, Any]:
        """As it stands in plan.json, counts under the name of their unit.

        Of the leader only the digest: its norms have a file of their own.
        """
        fields = asdict(replace(self, origin=None, leader=None))
        one = self.unit.removesuffix("s")
        names = {
            "units": self.unit,
            "units_available": f"{self.unit}_available",
            "flops_per_unit": f"flops_per_{one}",
            "examples_per_step": f"{'sequences' if self.unit == 'tokens' else self.unit}_per_step",
        }
        if self.steps_per_epoch is None:
            del fields["steps_per_epoch"], fields["left_over_per_epoch"]
        fields = {names.get(name, name): value for name, value in fields.items() if name != "unit"}
        del fields["leader"]
        fields["origin"] = self.origin.as_dict() if self.origin else None
        return {**fields, "reference": self.leader.digest if self.leader else None}


def make_plan(
    config: RunConfig,
    ranks: int,
    data: Prepared | None,
    origin: Origin | None = None,
    leader: Leader | None = None,
    device_bytes: int | None = None,
) -> Plan:
    """Derive the plan; InputError where the batch does not divide, the data does not suffice, the decay rule does not work, or a
    branch does not fit.

    `device_bytes`: the memory of the GPU that the run has, where there is one (engine/devices.py).
    """
    start = first_window(config, data, origin) if origin else 0
    if data is not None:
        check_prepared(config, data, start)
    micro_batch, micro_batch_from = choose_micro_batch(config, ranks, device_bytes)
    micro_steps = config.examples_per_step // ranks // micro_batch
    _check_noise_scale(config, micro_batch)
    check_rule(config)
    fields = _experiment(config, data, origin, leader)
    groups = sized_groups(tensor_table(config.model), config.optim)
    _check_head_scale(config)
    if config.schedule.match is not None and not config.schedule.match.sets_rate:
        transferred(config, config.schedule.match)  # also before the leader is there
    rates = lr_of_updates(config)
    factors = planned_factors(config, leader, origin)
    _check_decay(config, groups, rates, factors_by_tensor(config, leader, factors))
    sum_of_lr, sum_of_decay = _sums(config, factors, groups[main_group(groups)], rates)
    available = examples_available(config, data, start) * config.targets_per_example if data else None
    return Plan(
        experiment=fields,
        run_id=run_id(fields) if fields is not None else None,
        ranks=ranks,
        **_epoch(config, data),
        unit=config.unit,
        examples_per_step=config.examples_per_step,
        micro_batch=micro_batch,
        micro_batch_from=micro_batch_from,
        device_bytes=device_bytes,
        micro_steps=micro_steps,
        steps=config.schedule.steps,
        units=config.schedule.steps * config.units_per_step,
        units_available=available,
        first_window=start,
        n_parameters=cost.n_parameters(config.model),
        groups=groups,
        flops_per_unit=cost.flops_per_unit(config.model),
        state_bytes=cost.state_bytes(config, ranks),
        activation_bytes=cost.working_bytes(config, ranks, micro_batch),
        communication_bytes=cost.communication_bytes(config, ranks, micro_steps),
        checkpoint_bytes=cost.checkpoint_bytes(config),
        checkpoints=most_at_once(config.checkpoint, config.schedule.steps),
        lr_sum=sum_of_lr,
        decay_sum=sum_of_decay,
        origin=origin,
        leader=leader,
        cautions=cautions(config, data, groups) + memory_cautions(config, ranks, micro_batch, device_bytes),
    )


def _epoch(config: RunConfig, data: Prepared | None) -> dict[str, int | None]:
    """What an epoch of images holds, in whole batches, and what is left over."""
    steps = left = None
    if isinstance(data, ImageSummary):
        steps, left = divmod(taken_images(config, data.train_images), config.examples_per_step)
    return {"steps_per_epoch": steps, "left_over_per_epoch": left}


def _experiment(
    config: RunConfig, data: Prepared | None, origin: Origin | None, leader: Leader | None
) -> dict[str, Any] | None:
    """The fields of the run's identity; None while something that they depend on does not exist yet."""
    lacks_origin = config.branch is not None and origin is None
    lacks_leader = config.schedule.match is not None and leader is None
    if data is None or lacks_origin or lacks_leader:
        return None
    origin_digest, norms_digest = (origin.digest, origin.norms_digest) if origin else (None, None)
    return experiment(config, data.digest, origin_digest, leader.digest if leader else None, norms_digest)


def _sums(
    config: RunConfig, factors: list[float] | None, main: Group, rates: array[float]
) -> tuple[float | None, float | None]:
    """Ση and Σηλ of the run; None where they follow from norms that only the run will have."""
    if factors is None:
        return None, None
    return lr_sum(config, factors, rates), decay_sum(config, config.schedule.steps, factors, main.weight_decay, rates)


def _check_noise_scale(config: RunConfig, micro_batch: int) -> None:
    if config.log.noise_scale and config.examples_per_step == micro_batch:
        raise InputError(
            f"log.noise_scale compares micro-batches with the whole batch, and here one is the other ({micro_batch} "
            f"{config.examples}); "
            "set batch.micro_batch to a smaller divisor, use more ranks, or switch it off"
        )


def _check_head_scale(config: RunConfig) -> None:
    """InputError where the head's scale would be held at its first norm, 1: it could then never move."""
    optim, scale = config.optim, [name for name, t in tensor_table(config.model).items() if t.kind == "head_scale"]
    held = decay_groups(tensor_table(config.model), optim).get("decayed", ([], 0.0))[0]
    if optim.decay_rule in HOLDING and set(scale) & set(held):
        raise InputError(
            f"model.head_scale under optim.decay_rule {optim.decay_rule} with decay_mask {optim.decay_mask}: the scale is one "
            "number, and where its norm is held it stays at 1; use decay_mask matrices or matmul, or an override with λ 0 for "
            f"{scale[0]}"
        )


def _check_decay(
    config: RunConfig, groups: dict[str, Group], rates: array[float], factors: dict[str, list[float]]
) -> None:
    """InputError where a decay would be lost, or would turn weights over: 1 − η_t·λ_t must stay above zero.

    `factors` on η by tensor, or under "" for all (configs/origin.py): the η that decays is the one that steps. A run in closed
    loop has none before it runs, and is judged by η alone.
    """
    if config.optim.decay_rule == "l2_loss" and TABLE[config.precision].accumulation == "bfloat16":
        raise InputError(
            f"optim.decay_rule l2_loss under precision {config.precision}: 2λw would be added to a bfloat16 gradient, and is "
            "rounded away where it is below 1/512 of it; use decay_rule l2_coupled with twice the λ (added in float32, after "
            "clipping), or precision bf16-master, whose gradients are summed in float32"
        )
    largest = max(group.weight_decay for group in groups.values())
    # rotational's η·λ is that of the decoupled decay whose angle it takes
    if config.optim.decay_rule not in (*SHRINKING, "rotational") or largest == 0:
        return
    decays = {"": largest}
    if factors.keys() - decays.keys():  # where tensors have rates of their own, each has its own λ too
        members = decay_groups(tensor_table(config.model), config.optim).values()
        decays = {name: weight_decay for names, weight_decay in members for name in names}
    peaks = {name: peak_decay(config, rates, taken) for name, taken in (factors or {"": []}).items()}
    name = max(peaks, key=lambda name: peaks[name] * decays[name])
    peak, weight_decay = peaks[name], decays[name]
    if peak * weight_decay >= 1:
        what = f"a learning rate of {name} that reaches" if name else "a learning rate that reaches"
        factor = " with the factor on it (schedule.match, branch.lr_by_norm_of)" if factors else ""
        raise InputError(
            f"λ = {weight_decay:g} at {what} {peak:g}{factor}: 1 − η·λ would not stay above zero; λ below {1 / peak:g}"
        )
