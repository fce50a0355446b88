"""One problem that validation found, in a sentence: where, what was found, what would work."""

from __future__ import annotations

import difflib
import math
from typing import Any, get_args

from pydantic import BaseModel, Tag
from pydantic.fields import FieldInfo

from configs.echo import cut, shown


def describe(problem: Any, root: type[BaseModel]) -> str:
    """`problem` is one of pydantic's `errors()` of the schema `root`."""
    location = [str(part) for part in problem["loc"]]
    # Of sections of two kinds pydantic names the kind that was tried: it is no key.
    where = cut(".".join(part for index, part in enumerate(location) if not _is_kind(location, index, root)))
    if problem["type"] == "extra_forbidden":
        return f"unknown key {where!r}; {_near(location[-1], _model_at(location[:-1], root))}"
    if problem["type"] == "missing":
        return f"{where} is required"
    if problem["type"] == "json_invalid":  # it was JSON: only this is written and not read
        return "a string in it holds half a character (\\ud800 to \\udfff)"
    message = problem["msg"].removeprefix("Value error, ")
    if location[-1:] == ["kind"]:  # pydantic has looked at the section of one kind only
        message += "".join(f", or {name!r}" for name in _other_kinds(location, root))
    if problem["type"] == "value_error":
        return f"{where}: {message}" if where else message
    field = _field_at(location, root)
    return f"{where} = {shown(problem['input'], 80)}: {message}{_reason(problem['type'], field)}{_hint(problem, field)}"


def _near(key: str, model: type[BaseModel] | None) -> str:
    names = sorted(model.model_fields) if model is not None else []
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.5) if len(key) < 100 else []
    return f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(names)}"


def _reason(kind: str, field: FieldInfo | None) -> str:
    """Why a field is bounded above, where its schema says so (configs/schema.py)."""
    extra = field.json_schema_extra if field is not None else None
    because = extra.get("because") if isinstance(extra, dict) and kind in ("less_than_equal", "too_long") else None
    return f" ({because})" if because else ""


def _hint(problem: Any, field: FieldInfo | None) -> str:
    """How JSON writes what was meant: `.1` is a string, `True` too, and 1e3 no whole number."""
    kind, value = problem["type"], problem["input"]
    if kind == "string_type" and isinstance(value, int | float):
        written = shown(shown(value))
        return f"; write {written}, quotes included (for a shell: '{written}')"
    word = value.strip() if isinstance(value, str) else ""
    if word.lower() in ("none", "null") and field is not None and type(None) in get_args(field.annotation):
        return "; write null"
    if kind == "bool_type" and (word.lower() in ("true", "false") or value in (0, 1)):
        return f"; write {word.lower() or str(bool(value)).lower()}"
    if kind not in ("float_type", "int_type", "literal_error") or isinstance(value, bool):
        return ""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return ""
    whole = abs(number) < 1e15 and number.is_integer()
    if not math.isfinite(number) or (kind != "float_type" and not whole):
        return ""
    written = str(int(number)) if whole else repr(number)
    if kind == "literal_error" and written not in problem["ctx"]["expected"]:
        return ""
    return f"; write {written}"


def _model_at(location: list[str], root: type[BaseModel]) -> type[BaseModel] | None:
    """The section that a location names: an index into a list of sections names its section."""
    return _walk(location, root)[1]


def _field_at(location: list[str], root: type[BaseModel]) -> FieldInfo | None:
    return _walk(location, root)[0]


def _walk(location: list[str], root: type[BaseModel]) -> tuple[FieldInfo | None, type[BaseModel] | None]:
    """The field that a location ends at, and the section that it is or holds; None where there is no such field."""
    model: type[BaseModel] | None = root
    field = None
    for part in location:
        if part.isdecimal() and field is not None:
            continue
        if field is not None and (of_kind := _kinds(field).get(part)) is not None:
            model = of_kind
            continue
        field = model.model_fields.get(part) if model is not None else None
        if field is None:
            return None, None
        model = _model_in(field.annotation)
    return field, model


def _is_kind(location: list[str], index: int, root: type[BaseModel]) -> bool:
    """Whether a part of a location says which of several sections was tried."""
    field = _field_at(location[:index], root) if index else None
    return field is not None and location[index] in _kinds(field)


def _other_kinds(location: list[str], root: type[BaseModel]) -> list[str]:
    """What the field `kind` may be in the sections beside the one that a location goes through."""
    field = _field_at(location[:-2], root)
    others = [section for tag, section in _kinds(field).items() if tag != location[-2]] if field is not None else []
    return [str(name) for section in others for name in get_args(section.model_fields["kind"].annotation)]


def _kinds(field: FieldInfo) -> dict[str, type[BaseModel]]:
    """Of a field whose section is of several kinds: the sections, by pydantic's tags."""
    tagged = [(get_args(part)[0], get_args(part)[1:]) for part in get_args(field.annotation) if get_args(part)]
    return {tag.tag: section for section, marks in tagged if marks for tag in marks if isinstance(tag, Tag)}


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The section in `Section`, `Section | None` or `tuple[Section, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for part in get_args(annotation) if (model := _model_in(part)) is not None), None)
