"""What a run starts from and what it follows: a checkpoint of a trunk (`branch`), the norms of a leader (`schedule.match`).

RUN@STEP is the *address* of a checkpoint; the *leader* is the run whose effective learning rate or layer norms a matched run takes
over. record/lineage.py reads both from run folders. plan.json calls the address `reference`; norms.json and schedule.match call
the leader so. These names stay, so that older folders and configurations can be read.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from configs.equilibrium import LR_POWERS
from configs.errors import InputError
from configs.foreign_shape import misfits
from configs.identity import differences, experiment, render_differences, with_paths
from configs.kronecker import Kfac
from configs.prepared import DataSummary, Prepared, read_summary
from configs.schedule import lr_of_updates
from configs.schema import Match, Model, Optim, RunConfig
from configs.tensors import tensor_table
from configs.windows import windows_read

logger = logging.getLogger(__name__)

NOT_THE_ORDER = ("data.cross_document_attention", "data.skip_steps")  # fields of `data` that leave the order as it is


@dataclass(frozen=True)
class Origin:
    """What a plan needs to know of the checkpoint that a branch starts from."""

    address: str
    digest: str
    step: int
    windows: int  # how far in its order the trunk had read
    experiment: dict[str, Any]  # the trunk's
    data_path: str | None = None  # where the trunk's data lay; None: not known
    # ‖w‖ here and of branch.lr_by_norm_of at the same step; None: not asked for, or not known
    norms: tuple[float, float] | None = None
    norms_of: str | None = None  # branch.lr_by_norm_of, when they were read
    # "hf" or "nanogpt": weights that no run of ours made (record/foreign.py). Of nanoGPT's the shape is known when it is loaded.
    foreign: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """As it stands in plan.json."""
        fields = asdict(self)
        if self.norms is None:  # as before there was branch.lr_by_norm_of
            del fields["norms"], fields["norms_of"]
        if self.foreign is None:  # as before there were others than runs
            del fields["foreign"]
        return {"reference": fields.pop("address"), **fields}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Origin:
        """The opposite of `as_dict`. KeyError or TypeError for what is no such record."""
        fields = dict(record)
        norms = fields.pop("norms", None)
        return cls(fields.pop("reference"), **fields, norms=tuple(norms) if norms else None)

    @property
    def norms_digest(self) -> str:
        """What a branch's identity has for the norms that its η is scaled by; empty where they are not known."""
        return hashlib.sha256(json.dumps(self.norms).encode()).hexdigest() if self.norms else ""


@dataclass(frozen=True)
class Leader:
    """Recorded norms before each update, by tensor ("" for the whole model), that schedule.match follows.

    Of take norms: after each update, of the layers that are scaled.
    """

    digest: str
    norms: dict[str, list[float]]
    own: dict[str, list[float]] | None  # recorded norms that stand for this run's; None: its live norms

    def factor(self, t: int, live: dict[str, float], name: str = "") -> float:
        """‖w_t‖/R_t of update t (0-based)."""
        mine = self.own[name][t] if self.own is not None else live[name]
        return mine / self.norms[name][t]

    def as_dict(self) -> dict[str, Any]:
        """As it stands in norms.json."""
        return {"digest": self.digest, "reference": self.norms, "own": self.own}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Leader:
        """The opposite of `as_dict`. KeyError for what is no such record."""
        return cls(record["digest"], record["reference"], record["own"])


def planned_origin(trunk: RunConfig, data: Prepared | None, first_window: int, step: int, address: str) -> Origin:
    """The checkpoint of `step` as it will be when its trunk, which begins at `first_window`, has been trained.

    Its digest is not known before.
    """
    fields = experiment(trunk, data.digest if data else "")
    return Origin(address, "", step, windows_read(trunk, step, first_window), fields, trunk.data.path)


def first_window(config: RunConfig, data: Prepared | None, origin: Origin) -> int:
    """Where in the order a branch begins.

    InputError if it has another model or optimiser than its trunk, or shall read on in an order that is another.
    """
    assert config.branch is not None
    if origin.foreign is not None:
        return _start_of_foreign(config, origin)
    ours = experiment(config, data.digest if data else "")
    model = differences(ours.get("model", {}), origin.experiment.get("model", {}), "model.")
    if model:
        raise InputError(f"branch.origin {config.branch.origin} is of another model:\n{render_differences(model)}")
    mine, trunks = _optimizer(ours), _optimizer(origin.experiment)
    if config.branch.optimizer == "keep" and mine != trunks:
        raise InputError(
            f"branch.optimizer keep: this branch is of {mine}, the state in {origin.address} of {trunks}; "
            "set branch.optimizer to drop, or keep the trunk's algorithm, its metric and whether it has momentum"
        )
    if config.branch.data == "restart":
        return 0
    if config.branch.data == "other":
        _check_other_data(config, data, origin)
        return 0
    order = differences(ours.get("data", {}), origin.experiment.get("data", {}), "data.") if data else []
    order += differences(
        {"data": config.seeds.data}, {"data": origin.experiment.get("seeds", {}).get("data", 0)}, "seeds."
    )
    if config.unit == "images":  # an epoch ends where no whole batch is left, so the order is one of batches
        theirs = origin.experiment.get("batch", {}).get("images_per_step")
        order += differences({"images_per_step": config.batch.images_per_step}, {"images_per_step": theirs}, "batch.")
    order = [row for row in order if row[0] not in NOT_THE_ORDER]
    if order:
        table = render_differences(with_paths(order, config.data.path, origin.data_path))
        raise InputError(
            f"branch.data continue needs the trunk's data and order, or set branch.data to restart, or to other:\n{table}"
        )
    return origin.windows


def _check_other_data(config: RunConfig, data: Prepared | None, origin: Origin) -> None:
    """InputError where the data of a branch that goes on with other data is the trunk's, or of another tokenizer."""
    trunks = origin.experiment.get("data", {}).get("digest")
    if data is not None and data.digest == trunks:
        raise InputError(
            f"branch.data other: {config.data.path} is the trunk's own data; set branch.data to continue or restart, or name other "
            "data in data.path"
        )
    if not isinstance(data, DataSummary):  # images, or not prepared yet
        return
    theirs = read_summary(origin.data_path) if origin.data_path is not None else None
    # Not of other data that lies there by now.
    described = theirs.tokenizer if isinstance(theirs, DataSummary) and theirs.digest == trunks else None
    if any(each is None or each.get("kind") == "unknown" for each in (data.tokenizer, described)):
        logger.info(
            "branch.data other: whether %s has the tokenizer of the trunk's data (%s) cannot be told",
            config.data.path,
            origin.data_path or "in a folder that is not known",
        )
        return
    if data.tokenizer != described:
        raise InputError(
            f"branch.data other: {config.data.path} has another tokenizer than the trunk's data in {origin.data_path}: its "
            "tokens mean something else to these weights; prepare it with that tokenizer (--tokenizer FILE of data.prepare)"
        )


def _start_of_foreign(config: RunConfig, origin: Origin) -> int:
    """0: such weights have read nothing of our order. InputError if the run asks for more than weights, or has another shape."""
    assert config.branch is not None
    if not isinstance(config.model, Model):
        raise InputError(f"branch.origin {origin.address} is a language model, and this run a network for images")
    asked = {"optimizer": ("drop", "no state of an optimiser"), "data": ("restart", "no place in an order")}
    for field, (value, why) in asked.items():
        if getattr(config.branch, field) != value:
            raise InputError(
                f"branch.origin {origin.address} is a model without a run and has {why}; set branch.{field} to {value}"
            )
    if config.branch.lr_by_norm_of is not None:
        raise InputError(
            f"branch.lr_by_norm_of compares norms of two runs at one step, and {origin.address} is a model without a run; leave it "
            "out"
        )
    rows = misfits(config.model, origin.experiment["model"], origin.address) if "model" in origin.experiment else []
    if rows:
        raise InputError(f"branch.origin {origin.address} is of another model:\n{render_differences(rows)}")
    return 0


def _optimizer(experiment_fields: dict[str, Any]) -> str:
    """What of the optimiser decides which state it has."""
    given = experiment_fields.get("optim", {})
    algorithm, momentum = (given.get(name, Optim.model_fields[name].default) for name in ("algorithm", "momentum"))
    # Factors of one metric say nothing of another's.
    metric = (
        f" ({given.get('kfac', {}).get('metric', Kfac.model_fields['metric'].default)})" if algorithm == "kfac" else ""
    )
    has = f" {'with' if momentum else 'without'} momentum" if algorithm in ("sgd", "kfac") else ""
    return f"{algorithm}{metric}{has}"


def followed_runs(match: Match) -> list[tuple[str, bool]]:
    """The run folders whose recorded norms a matched run needs, each with whether its schedule must be this run's."""
    return [(match.reference, True), *([(match.own, False)] if match.own is not None else [])]


def check_leader(config: RunConfig, theirs: RunConfig, folder: str, same_schedule: bool = True) -> None:
    """InputError if a run of `theirs` (in `folder`) cannot be what schedule.match of `config` follows.

    `same_schedule`: whether its learning rates must be those planned here, so that the factor on them is the ratio of norms.
    """
    steps, match = config.schedule.steps, config.schedule.match
    assert match is not None
    if not match.sets_rate and theirs.schedule.steps < steps:
        raise InputError(
            f"{folder} is a run of {theirs.schedule.steps} steps, this one has {steps}, and needs the norms of each; set "
            f"schedule.steps to {theirs.schedule.steps} or less, or follow a longer run"
        )
    if match.sets_rate and theirs.schedule.steps != steps:
        raise InputError(
            f"{folder} is a run of {theirs.schedule.steps} steps, this one has {steps}: a matched run takes the same steps"
        )
    rows = differences(config.model.model_dump(), theirs.model.model_dump(), "model.")
    unit = f"{config.unit}_per_step"
    rows += differences({unit: getattr(config.batch, unit)}, {unit: getattr(theirs.batch, unit)}, "batch.")
    if rows:
        table = render_differences(rows)
        raise InputError(f"{folder} is of another model or batch, whose norms mean nothing here:\n{table}")
    if (match.scope == "tensor" or not match.sets_rate) and not theirs.log.tensor_norms:
        instead = ", or match by model" if match.sets_rate else ": the record takes a number a tensor and step"
        raise InputError(f"{folder} has no norms of single tensors; record it with log.tensor_norms true{instead}")
    if same_schedule and (theirs.schedule.match is None or not theirs.schedule.match.sets_rate):
        check_rates(folder, enumerate(lr_of_updates(theirs)[:steps], 1), lr_of_updates(config))


def check_rates(folder: str, rates: Iterable[tuple[int, float]], ours: Sequence[float]) -> None:
    """InputError where a leader's learning rate, given as (update from 1, rate), is not this run's of that update."""
    for step, rate in rates:
        if abs(rate - ours[step - 1]) > 1e-9 * ours[step - 1]:
            raise InputError(
                f"{folder} has learning rate {rate:g} in step {step}, this run's schedule {ours[step - 1]:g}: a matched run has "
                "its leader's schedule, so that the factor on it is the ratio of the norms"
            )


def branch_factor(config: RunConfig, origin: Origin | None) -> float | None:
    """What η of a branch is multiplied by (branch.lr_by_norm_of); 1 for by nothing, None where the norms are not known.

    So that η/‖w‖ of Adam (η/‖w‖² of SGD) is at the branch's begin what the configuration's η is worth to the other run.
    """
    if config.branch is None or config.branch.lr_by_norm_of is None:
        return 1.0
    if origin is None or origin.norms is None:
        return None
    ours, theirs = origin.norms
    return float((ours / theirs) ** LR_POWERS[config.optim.algorithm])


def planned_factors(config: RunConfig, leader: Leader | None, origin: Origin | None = None) -> list[float] | None:
    """What the learning rate of each update is multiplied by; empty for by nothing.

    The mean over parameters where tensors have their own. None where it follows from norms that only the run will have.
    """
    if config.schedule.match is None or not config.schedule.match.sets_rate:
        factor = branch_factor(config, origin)
        return None if factor is None else [] if factor == 1.0 else [factor] * config.schedule.steps
    if leader is None or leader.own is None:
        return None
    tensors = tensor_table(config.model)
    sizes = {name: tensors[name].size if name else 1 for name in leader.norms}
    return [
        sum(leader.factor(t, {}, name) * size for name, size in sizes.items()) / sum(sizes.values())
        for t in range(config.schedule.steps)
    ]


def factors_by_tensor(config: RunConfig, leader: Leader | None, factors: list[float] | None) -> dict[str, list[float]]:
    """What the learning rate of each update is multiplied by, by tensor where tensors have their own, else under the name "".

    `factors`: planned_factors of the run. Empty where it is multiplied by nothing, or by norms that only the run will have.
    """
    match = config.schedule.match
    if match is None or match.scope == "model" or leader is None or leader.own is None:
        return {"": factors} if factors else {}
    return {name: [leader.factor(t, {}, name) for t in range(config.schedule.steps)] for name in leader.norms}
