"""A plan as text, and the command that would make its data."""

from __future__ import annotations

import os
import shlex
from pathlib import PurePath

from configs import cost
from configs.cost import GIB
from configs.echo import cut
from configs.equilibrium import e_folds, why_no_e_folds
from configs.factors import factor_bytes, factored_layers, first_order_names
from configs.images import ImageData
from configs.origin import branch_factor
from configs.plan import Plan
from configs.schema import RunConfig
from configs.tensors import tensor_table
from configs.transfer import transferred
from configs.windows import windows_read


def render_plan(config: RunConfig, plan: Plan) -> str:
    """The plan as aligned text, one fact a line."""
    available = (
        f"{plan.units_available:,} available in {config.data.path}"
        if plan.units_available is not None
        else f"data not prepared: run {prepare_command(config)}"
    )
    has_one_std = plan.unit == "tokens" and not config.branch  # of a network for images each layer has its own
    example = "window" if plan.unit == "tokens" else "image"
    lines = [
        ("run", f"{config.name}-{plan.run_id or '(id follows from the data)'}"),
        ("precision", f"{config.precision}, ZeRO stage {config.parallel.zero_stage}, {plan.ranks} rank(s)"),
        (
            f"{plan.unit} per step",
            f"{config.units_per_step:,} = {plan.ranks} rank(s) × {plan.micro_steps} micro-step(s) × {plan.micro_batch} "
            + (f"sequence(s) × {config.targets_per_example} tokens" if plan.unit == "tokens" else "image(s)"),
        ),
        *([("micro-batch", f"chosen: {plan.micro_batch_from}")] if config.batch.micro_batch is None else []),
        ("steps", f"{plan.steps:,}{_left_out(config)}{_epochs(plan)}"),
        (f"{plan.unit} of the run", f"{plan.units:,} ({available})"),
        *([("left for branches", _room(config, plan))] if plan.units_available is not None else []),
        *(
            [
                (
                    "branch",
                    f"of {config.branch.origin}, {_reads(config.branch.data == 'other', example, plan.first_window)}",
                )
            ]
            if config.branch
            else []
        ),
        *([("learning rate", _scaled(config, plan))] if config.branch and config.branch.lr_by_norm_of else []),
        ("parameters", f"{plan.n_parameters:,}"),
        *(
            (f"  {name}", f"{g.tensors} tensors, {g.parameters:,} parameters, λ = {g.weight_decay:g}")
            for name, g in plan.groups.items()
        ),
        (f"FLOPs per {plan.unit[:-1]}", f"{plan.flops_per_unit:,}; {plan.flops_per_unit * plan.units:.3g} for the run"),
        *([("initial weights", f"standard deviation {config.gpt.init_std:.4g}")] if has_one_std else []),
        (
            "memory per device",
            f"{plan.state_bytes / GIB:.2f} GiB of state + {plan.activation_bytes / GIB:.2f} GiB of activations"
            + (f", of {plan.device_bytes / GIB:.1f} GiB" if plan.device_bytes else ""),
        ),
        *([("  of them at most", _of_state(config))] if config.optim.is_dotted else []),
        ("communication", f"{plan.communication_bytes / GIB:.2f} GiB sent by a rank in each update"),
        ("cost", f"{cost.device_hours(config, 1e14):.3g} device-hours at a sustained 100 TFLOP/s"),
        ("disk", f"{plan.checkpoints} checkpoint(s) × {plan.checkpoint_bytes / GIB:.2f} GiB"),
        *([("K-FAC", _of_kfac(config))] if config.optim.algorithm == "kfac" else []),
        *([("matched to", _matched(config))] if config.schedule.match else []),
        ("Ση", _known(plan.lr_sum)),
        _decay(config, plan),
        *(("warning", text) for text in plan.cautions),
    ]
    return "\n".join(f"{label:<20} {text}" for label, text in lines)


def _epochs(plan: Plan) -> str:
    if plan.steps_per_epoch is None:
        return ""
    left = f" ({plan.left_over_per_epoch} images left over in each)" if plan.left_over_per_epoch else ""
    return f", {plan.steps / plan.steps_per_epoch:.4g} epochs of {plan.steps_per_epoch:,} whole batches{left}"


def _left_out(config: RunConfig) -> str:
    if config.unit == "images":
        return ""
    spans = cut(", ".join(f"{first}–{last}" for first, last in config.text.skip_steps))
    return f", without the windows of steps {spans}" if spans else ""


def _room(config: RunConfig, plan: Plan) -> str:
    """How far a branch of this run's end could read on."""
    if isinstance(config.data, ImageData) and config.data.epochs is None:
        return "any number of steps: data.epochs is null"
    read = windows_read(config, plan.steps, plan.first_window)
    steps = ((plan.units_available or 0) // config.targets_per_example - read) // plan.examples_per_step
    if steps < 1:
        return "nothing: a branch of its end can only restart the order (fewer steps or more data would leave room)"
    return f"{steps:,} steps that read on after its end"


def _reads(is_other: bool, example: str, first: int) -> str:
    """Where in which order a branch begins."""
    if is_other:
        return "on other data, from its beginning: that it is read once is counted anew, without what the trunk read"
    return f"from {example} {first:,} of the order"


def _scaled(config: RunConfig, plan: Plan) -> str:
    """Of a branch whose η is scaled by norms (branch.lr_by_norm_of)."""
    assert config.branch is not None
    factor, eta = branch_factor(config, plan.origin), config.optim.lr
    of = f"‖w‖ of the origin over that of {config.branch.lr_by_norm_of}"
    if factor is None or plan.origin is None or plan.origin.norms is None:
        return f"{eta:g} times {of}, which are not there yet"
    power = ", squared" if config.optim.algorithm == "sgd" else ""
    return f"{eta * factor:g}: {eta:g} times {plan.origin.norms[0]:.4g}/{plan.origin.norms[1]:.4g}{power}, {of}"


def _of_state(config: RunConfig) -> str:
    """Of an algorithm whose state only torch knows."""
    values, algorithm = cost.DOTTED_MOMENTS, config.optim.algorithm
    return f"{values} values per parameter as the state of {algorithm}, on disk too: a plan does not ask torch"


def _of_kfac(config: RunConfig) -> str:
    """Which tensors have factors, what those take, and how often they are measured."""
    tensors, kfac = tensor_table(config.model), config.optim.kfac
    others = first_order_names(tensors)
    by_sgd = f"; SGD's step for the other {len(others)} tensor(s): {cut(', '.join(others))}" if others else ""
    return (
        f"{kfac.metric}: {len(factored_layers(tensors))} layers with factors and inverses, {factor_bytes(config) / GIB:.3f} GiB on "
        f"each device (in the state above); measured every {kfac.statistics_every} updates by a forward and backward pass more, "
        f"which no FLOPs here count{by_sgd}"
    )


def _known(value: float | None) -> str:
    return "follows from the run: its live norms set the learning rate" if value is None else f"{value:.6g}"


def _decay(config: RunConfig, plan: Plan) -> tuple[str, str]:
    """How much decay the run has, where a number can say it."""
    optim, total = config.optim, plan.decay_sum
    # the sum may not be known yet; whether it will be a number of e-folds is
    folds = e_folds(1.0 if total is None else total, optim.decay_rule, optim.algorithm, optim.momentum)
    if folds is None:
        return "decay", f"no number of e-folds: {why_no_e_folds(optim.decay_rule, optim.algorithm)}"
    if total is None or folds == total:
        return "Σηλ", _known(total)
    return "Σηλ/(1 − μ)", f"{folds:.6g}: the momentum {optim.momentum:g} carries the decay on"


def _matched(config: RunConfig) -> str:
    match = config.schedule.match
    assert match is not None
    if not match.sets_rate:
        often = "every epoch" if match.every is None else f"every {match.every} update(s)"
        return f"the norms of {match.reference}, {often}, of {len(transferred(config, match))} layers ({match.layers})"
    mine = f"recorded in {match.own} (open loop)" if match.own else "live (closed loop)"
    return f"the effective learning rate of {match.reference}, by {match.scope}; this run's norms {mine}"


def prepare_command(config: RunConfig) -> str:
    """The command that would make the data a configuration names; its path's name tells the corpus."""
    name, source = PurePath(config.data.path).name, "text --input 'FILES/*.txt'"
    path = os.path.relpath(config.data.path)
    path = config.data.path if path.startswith("..") else path
    if config.unit == "images":  # folders are called after their source, with what was done to it behind a hyphen
        known = name.partition("-")[0] if not name.startswith("tiny-imagenet") else "tiny-imagenet"
        return f"python -m data.prepare_images --source {known} --out {shlex.quote(path)}"
    if name.startswith(("english-", "packages-", "webster-")) or name.endswith("-study"):
        return "make study-data"  # a command of its own would hold out another share: other data under the same name
    if name.startswith("python"):
        source = "python-source"
    elif name.startswith("openwebtext"):
        source = "openwebtext"
    return f"python -m data.prepare --source {source} --vocab-size {config.gpt.vocab_size} --out {shlex.quote(path)}"
