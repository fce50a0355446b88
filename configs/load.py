"""From a JSON file and `--set` overrides to a RunConfig, or to one clear error."""

from __future__ import annotations

import difflib
import json
import os
import stat
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from configs.echo import cut, shown
from configs.errors import InputError
from configs.problem import describe
from configs.schema import RunConfig

Schema = TypeVar("Schema", bound=BaseModel)

BYTES = 2 << 20  # of a file: a recorded configuration with 20,000 points has 1 MB, any other far less
DEPTH = 20  # of nesting; a sweep's stages reach 7
NUMBER = 1 << 63  # seeds end there, and every other count long before
PROBLEMS = 8  # in one message
SWEEP_KEYS = {"set", "axes", "cells", "stages", "limit"}  # of a sweep (configs/sweep.py), and not of a run
KINDS = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}
RUN_KEYS = set(RunConfig.model_fields) - {"name"}


def load_config(path: str | Path, overrides: list[str] | None = None) -> tuple[RunConfig, dict[str, Any]]:
    """Read a configuration, its one level of `"base"`, and `section.key=value` overrides.

    Returns the validated configuration, data.path absolute, and the merged mapping as given (before defaults).
    Raises InputError that names the file, the key, what was found and what would work.
    """
    path = Path(path)
    given = read_json(path)
    given.pop("$schema", None)  # for editors
    if SWEEP_KEYS & set(given) and not RUN_KEYS & set(given):
        raise InputError(
            f"{cut(str(path))} is a sweep of several runs, not the configuration of one; `python -m slurm.submit {path}` "
            f"runs it (--local without a cluster), `python -m slurm.status {path}` shows how it is doing"
        )
    base_name = given.pop("base", None)
    if base_name is not None:
        if not isinstance(base_name, str) or not base_name:
            raise InputError(f"{path}: base = {shown(base_name)}: expected the name of a file, relative to this one")
        base_path = path.parent / base_name
        try:
            base = read_json(base_path)
        except InputError as error:
            raise InputError(f"{path}: its base: {error}") from None
        base.pop("$schema", None)
        if "base" in base:
            raise InputError(f"{path}: its base {base_path} has a base itself; one level is allowed")
        given = merge(with_points(base, base_path.parent), given)
    given = with_own_data(given)
    for override in overrides or []:  # of data.path and branch.data the later one wins
        given = with_own_data(merge(given, parse_override(override)))
    given = with_points(given, path.parent)
    return with_absolute_data(validate(given, str(path))), given


def with_absolute_data(config: RunConfig) -> RunConfig:
    """With data.path as it is seen from the shell's folder: a run may be resumed and evaluated from another."""
    data = config.data.model_copy(update={"path": os.path.abspath(config.data.path)})
    return config.model_copy(update={"data": data})


def with_own_data(given: dict[str, Any]) -> dict[str, Any]:
    """With what `branch.data {"path": DIR}` stands for: data.path DIR, and branch.data other."""
    branch = given.get("branch")
    own = branch.get("data") if isinstance(branch, dict) else None
    if not isinstance(own, dict) or set(own) != {"path"} or not isinstance(own["path"], str):
        return given
    return merge(given, {"data": {"path": own["path"]}, "branch": {"data": "other"}})


def validate(given: dict[str, Any], source: str) -> RunConfig:
    """Check a mapping against the schema of a run; InputError lists every problem, one per line."""
    return validate_as(RunConfig, with_own_data(given), source)


def validate_as(schema: type[Schema], given: dict[str, Any], source: str) -> Schema:
    """The same for any schema."""
    try:
        return schema.model_validate_json(json.dumps(given))
    except ValidationError as error:
        errors = error.errors(include_url=False)
        more = [f"and {len(errors) - PROBLEMS:,} more problems"] if len(errors) > PROBLEMS else []
        problems = [describe(problem, schema) for problem in errors[:PROBLEMS]]
        raise InputError(f"{source}: " + "; ".join(problems + more)) from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; duplicate keys and NaN are refused."""
    text = _read_text(path)
    if not text.strip():
        raise InputError(f"{cut(str(path))} is empty, expected a JSON object")
    try:
        value = _parse(text)
    except ValueError as error:
        raise InputError(f"{cut(str(path))} is not a valid configuration: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f"{cut(str(path))} holds {KINDS.get(type(value), 'a number')}, expected a JSON object")
    return value


def _read_text(path: Path) -> str:
    """A regular file of bounded size: a device or a pipe may have no end."""
    try:
        # Without O_NONBLOCK the opening of a pipe waits for a writer.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            is_file = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
            data = file.read(BYTES + 1) if is_file else b""
    except OSError as error:
        raise InputError(f"cannot read configuration {cut(str(path))}: {error.strerror}{_near_file(path)}") from None
    except ValueError as error:  # a name with a zero byte
        raise InputError(f"cannot read configuration {shown(str(path))}: {error}") from None
    if not is_file:
        raise InputError(f"cannot read configuration {cut(str(path))}: it is a device or a pipe, expected a file")
    if len(data) > BYTES:
        raise InputError(
            f"{cut(str(path))} has more than {BYTES >> 20} MiB, the most a configuration may have; is it another file?"
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{cut(str(path))} is not UTF-8 text (byte {error.start}); a configuration is a JSON file"
        ) from None


def _near_file(path: Path) -> str:
    """What may have been meant by a file that is not there, or by a folder."""
    if path.is_dir():
        names = sorted(file.name for file in path.glob("*.json"))
        return f"; name a file in it, for example {names[0]}" if names else "; name a file"
    near = difflib.get_close_matches(path.name, [file.name for file in path.parent.glob("*.json")], n=1, cutoff=0.75)
    return f"; did you mean {path.with_name(near[0])}?" if near else ""


def _parse(text: str) -> Any:
    """JSON as a configuration may hold it; InputError for more than one value of a key, NaN, huge numbers, deep nesting."""
    if "\\u0000" in text:
        raise InputError("it holds the zero character \\u0000, which no name or path may have")
    too_deep = InputError(f"it is nested too deep; at most {DEPTH} levels")
    try:
        value = json.loads(
            text, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant, parse_int=_bounded_integer
        )
    except RecursionError:
        raise too_deep from None
    level, depth = [value], 0
    while level := [inner for item in level for inner in _inside(item)]:
        depth += 1
        if depth > DEPTH:
            raise too_deep
    return value


def _inside(value: Any) -> list[Any]:
    """The values right inside a JSON value; of an empty object or list one, so that it counts as a level."""
    if isinstance(value, dict):
        return list(value.values()) or [None]
    return (value or [None]) if isinstance(value, list) else []


def with_points(given: dict[str, Any], folder: Path) -> dict[str, Any]:
    """With the content of the file that schedule.points may name, relative to `folder`: {"points": [[step, fraction], …]}."""
    schedule = given.get("schedule")
    if not isinstance(schedule, dict) or not isinstance(schedule.get("points"), str):
        return given
    path = folder / schedule["points"]
    value = read_json(path)
    if set(value) != {"points"}:
        raise InputError(f'{path}: expected {{"points": [[step, fraction], …]}}, found the keys {shown(sorted(value))}')
    return merge(given, {"schedule": value})


def parse_override(text: str) -> dict[str, Any]:
    """`optim.lr=1e-3` → {"optim": {"lr": 0.001}}. The value is JSON; what is not JSON is taken as a string."""
    key, equals, raw = text.partition("=")
    if not equals or not all(key.split(".")):
        raise InputError(f"--set {shown(text)}: expected section.key=value, for example optim.weight_decay=0.1")
    try:
        value = _parse(raw)
    except json.JSONDecodeError:
        value = raw
    except ValueError as error:
        raise InputError(f"--set {shown(text)}: {error}") from None
    return nest(key, value)


def nest(key: str, value: Any) -> dict[str, Any]:
    """`optim.lr`, 0.1 → {"optim": {"lr": 0.1}}."""
    *sections, field = key.split(".")
    if len(sections) >= DEPTH:
        raise InputError(f"{shown(key)} names a field {len(sections) + 1} levels deep; at most {DEPTH}")
    nested: dict[str, Any] = {field: value}
    for section in reversed(sections):
        nested = {section: nested}
    return nested


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` on top of `base`, objects merged key by key, everything else replaced."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for key, item in pairs:
        if key in value:
            raise InputError(f"key {cut(key)!r} appears twice in one object")
        value[key] = item
    return value


def _refuse_constant(name: str) -> Any:
    raise InputError(f"{name} is not a number a configuration may hold")


def _bounded_integer(digits: str) -> int:
    if len(digits) > 20 or abs(int(digits)) > NUMBER:
        raise InputError(f"the number {cut(digits, 24)} is beyond ±2^63")
    return int(digits)
