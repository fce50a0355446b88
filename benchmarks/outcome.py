"""A benchmark's result file: the command that made it, what it measured, and what it ran on."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

from record.environment import environment

RESULTS = Path(__file__).parent / "results"


def write_result(path: Path, module: str, result: dict[str, Any]) -> None:
    """Write `result` of `python -m benchmarks.<module>`, called as this process was, and say where."""
    command = f"python -m benchmarks.{module} {shlex.join(sys.argv[1:])}".rstrip()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"command": command, **result, **environment()}, indent=1, ensure_ascii=False) + "\n")
    print(path)
