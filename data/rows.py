"""From a row, of JSON lines, parquet or arrow, to its text; or to what is wrong with it."""

from __future__ import annotations

import json
from typing import Any

from data.streams import MAX_DOCUMENT, TOO_LONG


class RowError(Exception):
    """A row that holds no document. Its text says where it is and what was found; bad rows are counted by `reason`."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def json_text(line: bytes, place: str, field: str) -> str:
    """The text of one JSON line. RowError says what was found instead."""
    try:
        row = json.loads(line)
    except RecursionError:
        raise RowError(f"{place} is JSON nested too deep to be read", "row nested too deep") from None
    except ValueError as error:  # also bytes that are not UTF-8, and numbers of more than 4,300 digits
        reason = f"{place} is not JSON: {str(error)[:200]} (one object on each line is expected)"
        raise RowError(reason, "row that is not JSON") from None
    if not isinstance(row, dict) or field not in row:
        names = ", ".join(row) if isinstance(row, dict) else type(row).__name__
        shown = names if len(names) <= 200 else names[:200] + "…"
        reason = f"{place} has no string field {field!r} (found: {shown}); see --text-field"
        raise RowError(reason, f"row without the field {field!r}")
    return text_of(row[field], place, f"the field {field!r}")


def text_of(value: Any, place: str, field: str) -> str:
    """A value as text. RowError where it is null, no text, too long, or holds what UTF-8 cannot."""
    if value is None:
        raise RowError(f"{place} has null in {field}", f"row with null in {field}")
    if not isinstance(value, str):
        reason = f"{place} has {type(value).__name__} in {field}, expected text; see --text-field"
        raise RowError(reason, f"row without text in {field}")
    try:
        size = len(value.encode("utf-8"))
    except UnicodeEncodeError as error:
        reason = f"{place} holds a lone surrogate (character {error.start}), which UTF-8 cannot; repair the source"
        raise RowError(reason, "row with a lone surrogate") from None
    if size > MAX_DOCUMENT:
        raise RowError(f"{place} has a text {TOO_LONG}, the most for one document; split it", f"document {TOO_LONG}")
    return value
