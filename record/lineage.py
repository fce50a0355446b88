"""What a run starts from and follows, read from run folders: a branch's checkpoint, the norms of a matched run's leader.

What may be started from or followed is decided in configs/origin.py. A run that has begun has both in its own folder too
(plan.json, norms.json), so that the trunk and the leader may be deleted then.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from pathlib import Path
from typing import Any

from configs.errors import InputError
from configs.load import read_json, validate
from configs.origin import Leader, Origin, check_leader, check_rates, followed_runs
from configs.schedule import lr_of_updates
from configs.schema import Match, RunConfig
from configs.tensors import tensor_table
from configs.transfer import transferred
from record.checkpoint_manifest import read_manifest
from record.checkpoints import find_address, split_address
from record.foreign import find_foreign
from record.metrics import TENSOR_NORM, read_metrics
from record.run import RunFolder

logger = logging.getLogger(__name__)


def find_origin(config: RunConfig, run_dir: Path | None, required: bool = True) -> Origin | None:
    """The checkpoint that a branch starts from; None for a run that is no branch.

    InputError if neither it nor the run's own folder has it. Not `required` (for a plan), that is only said, and None.
    """
    if config.branch is None:
        return None
    branch, recorded = config.branch, _recorded_origin(run_dir)
    if recorded is not None and (recorded.address, recorded.norms_of) != (branch.origin, branch.lr_by_norm_of):
        recorded = None
    trunk, step = split_address(branch.origin)
    if step is None:
        foreign = find_foreign(branch.origin)
        if foreign is not None:
            shape = foreign.shape
            fields = {"model": shape} if shape is not None else {}
            return Origin(branch.origin, foreign.digest, 0, 0, fields, foreign=foreign.kind)
        # Of a run that has begun such weights may be gone, as a trunk may.
        if recorded is not None:
            return recorded
        raise InputError(
            f"branch.origin {branch.origin}: expected RUN@STEP, or a folder with Hugging Face's config.json and model.safetensors, "
            "or nanoGPT's ckpt.pt"
        )
    try:
        manifest = read_manifest(find_address(branch.origin))
        norms = _branch_norms(trunk, step, branch.lr_by_norm_of)
    except InputError as error:
        if recorded is not None:
            return recorded
        if required:
            raise
        logger.info("branch.origin is not there yet: %s", error)
        return None
    return Origin(
        branch.origin,
        manifest.digest,
        manifest.step,
        manifest.counters["windows"],
        manifest.experiment,
        RunFolder(trunk).data_path(),
        norms,
        branch.lr_by_norm_of,
    )


def _branch_norms(trunk: Path, step: int, reference: str | None) -> tuple[float, float] | None:
    """‖w‖ of a branch's trunk and of branch.lr_by_norm_of, both after `step` updates; None where the latter is not given.

    InputError if a run has not recorded it.
    """
    if reference is None:
        return None
    norms = []
    for run in (trunk, Path(reference)):
        rows = {row["step"]: row for row in read_metrics(RunFolder(run).metrics)[0]}
        norm = rows.get(step, {}).get("weights/norm")
        if not (isinstance(norm, float) and 0 < norm < math.inf):
            there = f"its rows end at step {max(rows)}" if rows else "it has no rows"
            raise InputError(
                f"branch.lr_by_norm_of {reference}: {run} has no weights/norm after step {step} ({there}); name a run that has "
                "been trained so far, or leave the field out"
            )
        norms.append(norm)
    return norms[0], norms[1]


def _recorded_origin(run_dir: Path | None) -> Origin | None:
    """The origin that a run wrote into its own folder when it began."""
    record = RunFolder(run_dir).read_plan().get("origin") if run_dir is not None else None
    try:
        return Origin.from_dict(record) if isinstance(record, dict) else None
    except (KeyError, TypeError):  # a damaged plan.json
        return None


def find_leader(config: RunConfig, run_dir: Path | None, required: bool = True) -> Leader | None:
    """The norms that schedule.match follows; None for a run that is not matched.

    InputError if neither the leader nor the run's own folder has them all. Not `required` (for a plan), that is only said,
    and None.
    """
    match, steps = config.schedule.match, config.schedule.steps
    if match is None:
        return None
    # A rate is compared before an update, layers are scaled after it.
    if match.sets_rate:
        tensors, after = list(tensor_table(config.model)) if match.scope == "tensor" else [], 0
    else:
        tensors, after = list(transferred(config, match)), 1
    try:
        for run, same_schedule in followed_runs(match):
            if (path := RunFolder(run).config).is_file():
                check_leader(config, validate(read_json(path), str(path)), run, same_schedule)
        norms = read_norms(match.reference, list(lr_of_updates(config)), steps, match.norm, tensors, after)
        own = read_norms(match.own, None, steps, match.norm, tensors) if match.own else None
    except InputError as error:
        if (recorded := _recorded_leader(run_dir, match)) is not None:
            return recorded
        if required:
            raise
        logger.info("schedule.match: %s", error)
        return None
    digest = hashlib.sha256(json.dumps([norms, own], sort_keys=True).encode()).hexdigest()
    return Leader(digest, norms, own)


def _recorded_leader(run_dir: Path | None, match: Match) -> Leader | None:
    """The norms that a run wrote into its own folder when it began, if it followed the same runs in the same way."""
    record = RunFolder(run_dir).read_norms() if run_dir is not None else {}
    try:
        return Leader.from_dict(record) if record.get("match") == match.model_dump(mode="json") else None
    except KeyError:  # a damaged norms.json
        return None


def read_norms(
    run: str | Path, rates: list[float] | None, steps: int, key: str, tensors: list[str], after: int = 0
) -> dict[str, list[float]]:
    """‖w‖ before each of `steps` updates, or with `after` 1 after it: of `tensors` by name, or without any, column `key` under "".

    InputError if the folder holds no run, or not every norm, or, where `rates` are given, another learning rate in one of
    its updates.
    """
    folder = RunFolder(run)
    if not folder.config.is_file():
        raise InputError(f"{run} is no run folder to match")
    rows = {row["step"]: row for row in read_metrics(folder.metrics)[0]}
    if rates is not None:
        recorded = ((step, rows.get(step, {}).get("optim/lr")) for step in range(1, steps + 1))
        check_rates(str(run), ((step, rate) for step, rate in recorded if rate is not None), rates)
    columns = {name: TENSOR_NORM + name for name in tensors} or {"": key}
    norms: dict[str, list[float]] = {}
    for name, column in columns.items():
        values = [_value_after(step, rows, column) for step in range(after, after + steps)]
        gaps = [step for step, value in enumerate(values) if not (isinstance(value, float) and 0 < value < math.inf)]
        if gaps:
            raise InputError(
                _why_no_norm(run, column, values[gaps[0]], [gap + after for gap in gaps], steps, bool(tensors))
            )
        norms[name] = values
    return norms


def _value_after(step: int, rows: dict[int, dict[str, Any]], column: str) -> Any:
    """What stands in the column after a step. An update that was left out (numerics.nonfinite) has moved no weights."""
    while step and "nonfinite/skipped" in rows.get(step, {}):
        step -= 1
    return rows.get(step, {}).get(column)


def _why_no_norm(run: str | Path, column: str, value: Any, gaps: list[int], steps: int, by_tensor: bool) -> str:
    """What is wrong with a column of norms of which `gaps` cannot be followed, the first because of its `value`."""
    if value == 0:
        return (
            f"{run} has {column} = 0 after step {gaps[0]}: a tensor that begins at zero has no effective learning "
            "rate to follow; match by model, or train without it (model.bias false)"
        )
    # some are there: then the run records them, and has not come so far
    hint = "record it with log.tensor_norms true" if by_tensor and len(gaps) == steps else "let it finish first"
    return f"{run} has no {column} after step {gaps[0]} ({len(gaps)} of {steps} are missing); {hint}"
