"""What a run may start from and follow: a branch and its trunk's checkpoint, a matched run and its reference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from configs.errors import InputError
from configs.identity import differences, experiment, render_differences, with_paths
from configs.schedule import lr_of_updates
from configs.schema import Optim, RunConfig

if TYPE_CHECKING:
    from configs.plan import DataSummary, Origin


def first_window(config: RunConfig, data: DataSummary | None, origin: Origin) -> int:
    """Where in the order a branch begins. InputError if it has another model or optimiser than its trunk, or cannot read on."""
    assert config.branch is not None
    ours = experiment(config, data.digest if data else "")
    model = differences(ours.get("model", {}), origin.experiment.get("model", {}), "model.")
    if model:
        raise InputError(f"branch.origin {config.branch.origin} is of another model:\n{render_differences(model)}")
    asked, found = _optimizer(ours), _optimizer(origin.experiment)
    if config.branch.optimizer == "keep" and asked != found:
        raise InputError(
            f"branch.optimizer keep: this branch is of {asked}, the state in {origin.reference} of {found}; "
            "set branch.optimizer to drop, or keep the trunk's algorithm and whether it has momentum"
        )
    if config.branch.data == "restart":
        return 0
    order = differences(ours.get("data", {}), origin.experiment.get("data", {}), "data.") if data else []
    order += differences(
        {"data": config.seeds.data}, {"data": origin.experiment.get("seeds", {}).get("data", 0)}, "seeds."
    )
    order = [row for row in order if row[0] not in ("data.cross_document_attention", "data.skip_steps")]
    if order:
        table = render_differences(with_paths(order, config.data.path, origin.data_path))
        raise InputError(
            f"branch.data continue needs the trunk's data and order, or set branch.data to restart:\n{table}"
        )
    return origin.windows


def _optimizer(experiment_fields: dict[str, Any]) -> str:
    """What of the optimiser decides which state it has."""
    given = experiment_fields.get("optim", {})
    algorithm, momentum = (given.get(name, Optim.model_fields[name].default) for name in ("algorithm", "momentum"))
    return str(algorithm) if algorithm == "adam" else f"{algorithm} {'with' if momentum else 'without'} momentum"


def check_reference(config: RunConfig, theirs: RunConfig, where: str, same_schedule: bool = True) -> None:
    """InputError if a run of `theirs` (in the folder `where`) cannot be what schedule.match of `config` follows.

    `same_schedule`: whether its learning rates must be those planned here, so that the factor on them is the ratio of norms.
    """
    steps, match = config.schedule.steps, config.schedule.match
    assert match is not None
    if theirs.schedule.steps != steps:
        raise InputError(
            f"{where} is a run of {theirs.schedule.steps} steps, this one has {steps}: a matched run takes the same steps"
        )
    rows = differences(config.model.model_dump(), theirs.model.model_dump(), "model.")
    ours, found = ({"tokens_per_step": c.batch.tokens_per_step} for c in (config, theirs))
    rows += differences(ours, found, "batch.")
    if rows:
        table = render_differences(rows)
        raise InputError(f"{where} is of another model or batch, whose norms mean nothing here:\n{table}")
    if match.scope == "tensor" and not theirs.log.tensor_norms:
        raise InputError(
            f"{where} has no norms of single tensors; record it with log.tensor_norms true, or match by model"
        )
    if same_schedule and theirs.schedule.match is None:
        rates = zip(range(steps), lr_of_updates(theirs), lr_of_updates(config), strict=True)
        other = next((row for row in rates if abs(row[1] - row[2]) > 1e-9 * row[2]), None)
        if other is not None:
            raise InputError(
                f"{where} has learning rate {other[1]:g} in step {other[0] + 1}, this run's schedule {other[2]:g}: a matched "
                "run has its reference's schedule, so that the factor on it is the ratio of the norms"
            )
