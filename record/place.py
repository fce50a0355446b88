"""Where a run may be recorded, and where its data may lie: what is checked of a run folder before anything slow begins."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from configs.errors import InputError
from configs.identity import differences, render_differences, with_paths
from configs.render import prepare_command
from configs.schema import RunConfig
from record.lock import hold
from record.run import FINISHED, RunFolder

logger = logging.getLogger(__name__)


def check_folder(folder: RunFolder, experiment: dict[str, Any], how: str, data_path: str) -> None:
    """InputError if the folder holds another experiment, no run but something else, or not what --resume requires."""
    folder.check_place()
    recorded = folder.read_experiment()
    if recorded is None and how == "must":
        raise InputError(f"--resume must: {folder.path} holds no run")
    if how == "never" and (recorded is not None or folder.checkpoints.exists()):
        raise InputError(f"--resume never: {folder.path} holds a run; remove it or give another --run-dir")
    rows = differences(experiment, recorded) if recorded is not None else []
    rows = with_paths(rows, data_path, folder.data_path())
    if rows:
        raise InputError(f"{folder.path} holds another experiment:\n{render_differences(rows)}\nuse another --run-dir")


def check_moved(folder: RunFolder, digest: str, path: str) -> None:
    """InputError unless the folder holds a run on the data of this digest, which lies in `path` now (--data)."""
    if folder.read_experiment() is None:
        raise InputError(
            f"--data says where the data of a run lies now, and {folder.path} holds no run: name the run with --run-dir; "
            "a new run names its data with data.path"
        )
    folder.check_data(digest, path)


def missing_data(config: RunConfig, given: dict[str, Any], run_dir: Path | None) -> str:
    """What to do where there is no data: it was named as seen from another folder, has moved, or is not made yet."""
    given_path, text = given["data"]["path"], f"no prepared data in {config.data.path}"
    if given_path != config.data.path:
        text += f" (data.path {given_path}, as seen from {Path.cwd()})"
    earlier = RunFolder(run_dir).data_path() if run_dir is not None else None
    if earlier not in (None, config.data.path):
        text += f"; the data of {run_dir} lay in {earlier} (--data DIR says where it lies now)"
    return f"{text}; prepare it with: {prepare_command(config)}"


def note_early_stop(folder: RunFolder, steps: int, reason: str) -> None:
    """Leave a status of a start that was asked to stop before there was an engine. What the run had reached stays."""
    with hold(folder.path):
        last = folder.read_status() or {}
        step = last.get("step", 0)
        if last.get("state") not in FINISHED:  # a finished run stays finished
            folder.write_status("preempted", step, steps, reason, last.get("order_digest", ""))
    logger.info("%s: preempted at step %d of %d (%s while it started)", folder.path, step, steps, reason)
