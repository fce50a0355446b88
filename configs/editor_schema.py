"""`python -m configs.editor_schema > configs/config.schema.json`: completion and checking in editors."""

from __future__ import annotations

import json
import sys
from typing import Any

from configs.schema import RunConfig


def editor_schema() -> dict[str, Any]:
    """The JSON Schema of a configuration file: nothing is required of it, since a base may give it."""
    schema = RunConfig.model_json_schema()
    for part in (schema, *schema["$defs"].values()):
        part.pop("required", None)
        for field in part["properties"].values():
            field.pop("operational", None)
            field.pop("because", None)
    for field in schema["properties"].values():
        if "oneOf" in field:  # nothing is required, so that what fits one kind of section may fit the other too
            field["anyOf"] = field.pop("oneOf")
    schema["properties"]["base"] = {
        "type": "string",
        "description": "a configuration this one changes, relative to this file",
    }
    schema["properties"]["$schema"] = {"type": "string"}
    return schema


if __name__ == "__main__":
    sys.stdout.write(json.dumps(editor_schema(), indent=2, ensure_ascii=False) + "\n")
