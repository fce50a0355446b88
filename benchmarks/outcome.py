"""A benchmark's result file: the command that made it, what it found, and what it ran on."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

from record.environment import environment

RESULTS = Path(__file__).parent / "results"


def write_result(path: Path, module: str, found: dict[str, Any]) -> None:
    """Write `found` of `python -m benchmarks.<module>`, called as this process was, and say where."""
    command = f"python -m benchmarks.{module} {shlex.join(sys.argv[1:])}".rstrip()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"command": command, **found, **environment()}, indent=1, ensure_ascii=False) + "\n")
    print(path)
