"""From a JSON file and `--set` overrides to a RunConfig, or to one clear error."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from configs.schema import RunConfig

Schema = TypeVar("Schema", bound=BaseModel)


def load_config(path: str | Path, overrides: list[str] | None = None) -> tuple[RunConfig, dict[str, Any]]:
    """Read a configuration, its one level of `"base"`, and `section.key=value` overrides.

    Returns the validated configuration and the merged mapping as given (before defaults).
    Raises ValueError that names the file, the key, what was found and what would work.
    """
    path = Path(path)
    given = read_json(path)
    given.pop("$schema", None)  # for editors
    base_name = given.pop("base", None)
    if base_name is not None:
        base_path = path.parent / str(base_name)
        base = read_json(base_path)
        base.pop("$schema", None)
        if "base" in base:
            raise ValueError(f"{path}: its base {base_path} has a base itself; one level is allowed")
        given = merge(with_points(base, base_path.parent), given)
    for override in overrides or []:
        given = merge(given, parse_override(override))
    given = with_points(given, path.parent)
    return validate(given, str(path)), given


def validate(given: dict[str, Any], source: str) -> RunConfig:
    """Check a mapping against the schema of a run; ValueError lists every problem, one per line."""
    return validate_as(RunConfig, given, source)


def validate_as(schema: type[Schema], given: dict[str, Any], source: str) -> Schema:
    """The same for any schema."""
    try:
        return schema.model_validate_json(json.dumps(given))
    except ValidationError as error:
        problems = [_describe(problem, schema) for problem in error.errors()]
        raise ValueError(f"{source}: " + "; ".join(problems)) from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; duplicate keys and NaN are refused."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"cannot read configuration {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: byte {error.start}") from None
    try:
        value = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a valid configuration: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds {type(value).__name__}, expected a JSON object")
    return value


def with_points(given: dict[str, Any], folder: Path) -> dict[str, Any]:
    """With the content of the file that schedule.points may name, relative to `folder`: {"points": [[step, fraction], …]}."""
    schedule = given.get("schedule")
    if not isinstance(schedule, dict) or not isinstance(schedule.get("points"), str):
        return given
    path = folder / schedule["points"]
    value = read_json(path)
    if set(value) != {"points"}:
        raise ValueError(f'{path}: expected {{"points": [[step, fraction], …]}}, found the keys {sorted(value)}')
    return merge(given, {"schedule": value})


def parse_override(text: str) -> dict[str, Any]:
    """`optim.lr=1e-3` → {"optim": {"lr": 0.001}}. The value is JSON; what is not JSON is taken as a string."""
    key, equals, raw = text.partition("=")
    if not equals or not all(key.split(".")):
        raise ValueError(f"--set {text!r}: expected section.key=value, for example optim.weight_decay=0.1")
    try:
        value = json.loads(raw, parse_constant=_refuse_constant)
    except ValueError:
        value = raw
    return nest(key, value)


def nest(key: str, value: Any) -> dict[str, Any]:
    """`optim.lr`, 0.1 → {"optim": {"lr": 0.1}}."""
    *sections, field = key.split(".")
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
            raise ValueError(f"key {key!r} appears twice in one object")
        value[key] = item
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number a configuration may hold")


def _describe(problem: Any, root: type[BaseModel]) -> str:
    location = [str(part) for part in problem["loc"]]
    where = ".".join(location)
    if problem["type"] == "extra_forbidden":
        known = _known_keys(location[:-1], root)
        near = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return f"unknown key {where!r}; {hint}"
    if problem["type"] == "missing":
        return f"{where} is required"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{where}: {message}" if where else message
    return f"{where} = {json.dumps(problem['input'], default=str)[:80]}: {message}"


def _known_keys(location: list[str], root: type[BaseModel]) -> list[str]:
    model = root
    for part in location:
        inner = model.model_fields[part].annotation if part in model.model_fields else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return sorted(model.model_fields)
