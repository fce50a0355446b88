"""What a message repeats of its input: enough to recognise it by, never all of a large one."""

from __future__ import annotations

import json
from typing import Any

LETTERS = 120


def cut(text: str, letters: int = LETTERS) -> str:
    """`text`, or its beginning and how long it is."""
    return text if len(text) <= letters else f"{text[:letters]}… ({len(text):,} letters)"


def shown(value: Any, letters: int = LETTERS) -> str:
    """A value as JSON, cut."""
    return cut(json.dumps(value, default=str, ensure_ascii=False), letters)
