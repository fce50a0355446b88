"""A cell of a sweep: one run, known by its configuration, and what it starts from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.echo import cut
from configs.errors import InputError
from configs.identity import experiment, run_id
from configs.load import merge, nest, validate, with_absolute_data, with_own_data, with_points
from configs.prepared import Prepared
from configs.schema import RunConfig

UNKNOWN = "(id follows from the data)"
Summary = Callable[[str], Prepared | None]


@dataclass(frozen=True)
class Cell:
    """One run of a sweep. `parent` and `step`: the run it starts from, and that run's checkpoint."""

    stage: str
    label: str
    given: dict[str, Any]
    config: RunConfig
    id: str | None  # None: the data is not prepared yet
    folder: Path
    parent: Cell | None = None
    step: int | None = None


def make_cell(
    stage: str,
    label: str,
    given: dict[str, Any],
    fields: dict[str, Any],
    parent: Cell | None = None,
    step: int | None = None,
    siblings: Sequence[Cell] = (),
    *,
    source: str,
    root: Path,
    summary: Summary,
) -> Cell:
    """`given` with `fields` on top, as a branch of `parent` at `step` where these are given."""
    label = label[:90].strip("-.") or "run"
    for field, value in fields.items():
        if parent is not None:
            value = _named(value, parent, siblings, source)
        for name in _fields(field):
            given = merge(given, nest(name, value))
    given = with_points(merge(given, {"name": label}), Path(source).parent)
    if step is not None and parent is not None:
        given = with_own_data(merge(given, {"branch": {"origin": f"{parent.folder}@{step}"}}))
    config = with_absolute_data(validate(given, f"{source}, cell {label}"))
    given = merge(given, {"data": {"path": config.data.path}})  # a task is started from another folder
    data, identity = summary(config.data.path), None
    if data is not None and (parent is None or parent.id is not None):
        start = f"{parent.id}@{step}" if parent else None
        norms = f"{start} {Path(config.branch.lr_by_norm_of or '').name}" if config.branch else None
        identity = run_id(experiment(config, data.digest, start, start, norms))
    return Cell(stage, label, given, config, identity, root / f"{label}-{identity or UNKNOWN}", parent, step)


def _named(value: Any, parent: Cell, siblings: Sequence[Cell], source: str) -> Any:
    """The value with folders for {run} and {undecayed}, also in the strings of a section or a list."""
    if isinstance(value, dict):
        return {key: _named(item, parent, siblings, source) for key, item in value.items()}
    if isinstance(value, list):
        return [_named(item, parent, siblings, source) for item in value]
    if not isinstance(value, str):
        return value
    value = value.replace("{run}", str(parent.folder))
    if "{undecayed}" in value:
        value = value.replace("{undecayed}", str(_undecayed(parent, siblings, source).folder))
    return value


def _undecayed(parent: Cell, siblings: Sequence[Cell], source: str) -> Cell:
    """The run of the same stage that differs from `parent` in nothing but λ = 0: its twin, or itself. InputError without one."""
    fields = [merge(cell.config.model_dump(), {"name": "", "optim": {"weight_decay": 0.0}}) for cell in siblings]
    ours = fields[siblings.index(parent)]
    for cell, theirs in zip(siblings, fields, strict=True):
        if cell.config.optim.weight_decay == 0 and theirs == ours:
            return cell
    raise InputError(f"{source}: {{undecayed}}: no run differs from {parent.label} in λ = 0 alone; add it to the axis")


def _fields(field: str) -> list[str]:
    """`seeds.*` → every field of the section."""
    section, star, rest = field.rpartition(".*")
    info = RunConfig.model_fields.get(section)
    if not star or rest:
        return [field]
    if info is None or not hasattr(info.annotation, "model_fields"):
        raise InputError(f"axis {cut(field)!r}: {cut(section)!r} is no section of a configuration")
    return [f"{section}.{name}" for name in info.annotation.model_fields]  # type: ignore[union-attr]
