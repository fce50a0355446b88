"""lm_eval/*.json of a run: how its checkpoints scored at tasks of lm-evaluation-harness. `python -m weights.lm_eval` writes them.

A file is one command's, lm_eval/step_00001000_3f2a9c1b.json: the step, and a digest of what was asked. So the same command
replaces its own file, and another one leaves it alone. Its fields are those of `Evaluation`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from configs.errors import InputError
from record.files import read_object, write_json
from record.run import LARGEST, RunFolder

FORMAT = 1
ASKED = ("step", "weights", "precision", "limit", "shots", "tasks", "include")  # what a file's name stands for


class Score(BaseModel):
    """One metric of a task, or of a group of tasks.

    `filter`: what the harness did with the answers before it judged them. `value`, `stderr`: as it computed them, the standard
    error over documents; None where it has none, or it is not finite. `documents`: how many were asked.
    `hash`: of the documents, prompts and targets, as in the harness's own results. `version`: the task's own.
    """

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)
    task: str
    metric: str
    filter: str
    value: float | None
    stderr: float | None
    higher_is_better: bool | None
    shots: int | None
    documents: int
    hash: str
    version: str


class Evaluation(BaseModel):
    """One command: what was evaluated, how, and the scores.

    `source`: the checkpoint's address, or the folder. `weights`: their kind, or an average, `ema_0.99`; `sha256`: of the file that
    holds them; of a model without a run, whose `step` is None, of all that makes it (record/foreign.py). `limit`: only so
    many documents of each task. `shots`: as asked for; None: each task's own. `notes`: what was cut, or scored
    in another way than plainly.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)
    format: int = FORMAT
    source: str
    step: int | None
    weights: str
    sha256: str
    precision: str
    tasks: list[str]
    include: str | None
    limit: int | None
    shots: int | None
    batch: int
    device: str
    time: str
    revision: str | None
    packages: dict[str, str]
    notes: list[str]
    scores: list[Score]

    @property
    def file_name(self) -> str:
        asked = json.dumps(self.model_dump(mode="json", include=set(ASKED)), sort_keys=True)
        return f"step_{self.step or 0:08}_{hashlib.sha256(asked.encode()).hexdigest()[:8]}.json"


def write_evaluation(path: Path, evaluation: Evaluation) -> None:
    """Write, or replace, one file; its folder is made if missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, evaluation.model_dump(mode="json"))


def parse_evaluation(value: dict[str, Any], place: str) -> Evaluation:
    """Of a file's JSON object. InputError, naming `place`, for one that is none of ours, or of a newer version."""
    try:
        evaluation = Evaluation.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{place} is no evaluation: {'.'.join(map(str, first['loc']))} {first['msg']}") from None
    if evaluation.format != FORMAT:
        raise InputError(f"{place} is of format {evaluation.format}; this version reads {FORMAT}")
    if not 0 <= (evaluation.step or 0) <= LARGEST:
        raise InputError(f"{place} is no evaluation: step {evaluation.step!r:.40}")
    return evaluation


def read_evaluations(folder: RunFolder) -> tuple[dict[str, Evaluation], list[str]]:
    """Those of a run by the names of their files; and a sentence on each file that cannot be read, which is left out."""
    evaluations, problems = {}, []
    for path in sorted(folder.evaluations.glob("*.json")):
        try:
            evaluations[path.name] = parse_evaluation(read_object(path), str(path))
        except (OSError, InputError) as error:
            problems.append(f"left out: {error}")
    return evaluations, problems
