"""Which experiment a configuration is: one digest, independent of where and how it runs."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import BaseModel

from configs.echo import shown
from configs.images import ImageModel
from configs.schema import P1_INIT_STD, Model, RunConfig


def experiment(
    config: RunConfig,
    data_digest: str,
    origin_digest: str | None = None,
    match_digest: str | None = None,
    norms_digest: str | None = None,
) -> dict[str, Any]:
    """The fields that change what is computed, at non-default values only, with the data's digest for its path.

    A branch has its origin's digest for the reference to it, a matched run that of the norms it follows, a branch whose η is
    scaled by norms that of these.

    Left-out defaults mean that a field added later renames no existing run.
    """
    fields = _experiment_fields(config)
    fields.setdefault("data", {})["digest"] = data_digest
    model = config.model
    # Once the default at every width: it names runs of then.
    if isinstance(model, Model) and model.init_std == P1_INIT_STD:
        del fields["model"]["init_std"]
    # Dropout's masks are drawn per micro-batch, and batch normalisation normalises over one.
    if model.dropout if isinstance(model, Model) else model.batchnorm != "none":
        fields["batch"]["micro_batch"] = config.batch.micro_batch
    if config.branch is not None:
        fields.setdefault("branch", {})["digest"] = origin_digest
        if config.branch.lr_by_norm_of is not None:
            fields["branch"]["norms"] = norms_digest
    if config.schedule.match is not None:
        fields["schedule"].setdefault("match", {})["digest"] = match_digest
    decay = config.optim.decay_schedule
    if config.schedule.kind == "constant" and config.schedule.match is None and (decay is None or decay.last_step):
        del fields["schedule"]["steps"]  # where it ends changes no update before: such a run can be trained on
    return fields


def model_defaults(kind: str) -> dict[str, Any]:
    """The model's fields that have a default → the default: what a run had that was recorded before the field existed."""
    section: type[BaseModel] = Model if kind == "gpt" else ImageModel
    return {name: info.default for name, info in section.model_fields.items() if not info.is_required()}


def run_id(fields: dict[str, Any]) -> str:
    """Ten hexadecimal digits of the SHA-256 of an experiment's canonical JSON."""
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def differences(ours: dict[str, Any], theirs: dict[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """Dotted fields in which two nested mappings differ: (field, ours, theirs); None stands for the default."""
    rows: list[tuple[str, Any, Any]] = []
    for key in sorted(set(ours) | set(theirs)):
        mine, other = ours.get(key), theirs.get(key)
        if isinstance(mine, dict) or isinstance(other, dict):
            rows += differences(mine or {}, other or {}, f"{prefix}{key}.")
        elif mine != other:
            rows.append((prefix + key, mine, other))
    return rows


def render_differences(rows: list[tuple[str, Any, Any]]) -> str:
    """The rows of `differences` as lines of a message."""
    return "\n".join(f"  {field}: asked {_shown(ours)}, found {_shown(theirs)}" for field, ours, theirs in rows)


def with_paths(rows: list[tuple[str, Any, Any]], ours: str | None, theirs: str | None) -> list[tuple[str, Any, Any]]:
    """The rows of `differences`, with the folders of the data for its digests, which are cut to what tells them apart."""

    def placed(digest: Any, path: str | None) -> Any:
        return f"{digest[:12]} in {path or 'a folder that is not known'}" if isinstance(digest, str) else digest

    return [
        (field, placed(mine, ours), placed(other, theirs)) if field.endswith("data.digest") else (field, mine, other)
        for field, mine, other in rows
    ]


def _shown(value: Any) -> str:
    return "the default" if value is None else shown(value)


def _experiment_fields(section: BaseModel) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, info in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            inner = _experiment_fields(value)
            if inner:
                fields[name] = inner
        elif not (info.json_schema_extra or {}).get("operational") and value != info.default:  # type: ignore[union-attr]
            # Tuples as the lists they are read back as, sections inside them at non-default values.
            fields[name] = json.loads(json.dumps(value, default=_experiment_fields))
    return fields
