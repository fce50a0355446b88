"""`python -m configs.reference_page`: fill the tables of docs/configuration.md from the schema.

The page's prose is written by hand. Only what stands between the two markers is replaced; a test compares it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from configs.schema import RunConfig

PAGE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"
BEGIN, END = "<!-- fields: python -m configs.reference_page -->", "<!-- end of fields -->"
TYPES = {"integer": "whole number", "number": "number", "boolean": "true, false", "string": "text"}
BOUNDS = (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))


def field_tables() -> str:
    """One table per section of a configuration, in the order of the schema."""
    schema = RunConfig.model_json_schema()
    parts: list[str] = []
    _add_section(parts, schema["$defs"], "", schema)
    return "\n".join(parts)


def _add_section(
    parts: list[str], named: dict[str, Any], prefix: str, section: dict[str, Any], of_kind: str = ""
) -> None:
    """The table of one section, then those of the sections inside it. `of_kind`: what of several kinds it is, for its title."""
    required, rows, inner = section.get("required", []), [], []
    for name, field in section["properties"].items():
        others = _sections_of(field)
        for other in others:
            many = "[]" if field.get("type") == "array" else ""
            kind = named[other]["properties"]["kind"] if len(others) > 1 else {}
            title = f" (kind {_values(kind)})" if kind else ""
            inner.append((f"{prefix}{name}{many}", title, named[other]))
        if "description" in field:  # a plain section has no meaning of its own: its table says it
            rows.append(_row(f"{prefix}{name}", field, name in required))
    if prefix:
        parts.append(f"### {prefix.rstrip('.')}{of_kind}\n")
    about = section.get("description", "")
    if prefix and about:
        parts.append(f"{about}\n")
    parts += ["| field | values | default | id | meaning |", "|---|---|---|---|---|", *rows, ""]
    for path, title, other_section in inner:
        _add_section(parts, named, f"{path}.", other_section, title)


def _sections_of(field: dict[str, Any]) -> list[str]:
    """The names of the sections that a field holds, holds many of, or may hold."""
    parts = (field, field.get("items", {}), *field.get("anyOf", ()), *field.get("oneOf", ()))
    return [str(part["$ref"]).rpartition("/")[2] for part in parts if "$ref" in part]


def _row(path: str, field: dict[str, Any], required: bool) -> str:
    default = "required" if required else f"`{_json(field['default'])}`"
    meaning = field["description"].replace("|", "\\|").replace("*", "\\*")  # for markdown
    if field.get("because"):
        meaning += f" (bounded: {field['because']})"
    return f"| `{path}` | {_values(field)} | {default} | {'' if field['operational'] else 'yes'} | {meaning} |"


def _values(field: dict[str, Any]) -> str:
    """What may stand there, in words."""
    if "anyOf" in field:
        return ", ".join(_values(part) for part in field["anyOf"])
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "$ref" in field:
        return "a section"
    kind = field["type"]
    if kind == "null":
        return "`null`"
    if kind == "object":
        return "options by name"
    if kind == "array":
        parts = field.get("prefixItems")
        inside = f"[{', '.join(_values(part) for part in parts)}]" if parts else f"list of: {_values(field['items'])}"
        return inside + (f", at most {field['maxItems']:,}" if "maxItems" in field and not parts else "")
    bounds = [f"{sign} {_number(field[bound])}" for bound, sign in BOUNDS if bound in field]
    return " ".join([TYPES[kind], *([" and ".join(bounds)] if bounds else [])])


def _number(bound: float) -> str:
    """A bound as a reader likes it; that of the seeds as the power of two that it is."""
    return "2^63" if bound == 1 << 63 else f"{bound:,.0f}" if bound == int(bound) else f"{bound:g}"


def _json(value: Any) -> str:
    """A default as JSON writes it, numbers short."""
    if isinstance(value, list):
        return f"[{', '.join(map(_json, value))}]"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value) if not isinstance(value, dict) else "{}"


def filled(page: str) -> str:
    """The page with the tables of today between its markers."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{PAGE} has lost its markers")
    return f"{before}{BEGIN}\n\n{field_tables()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
