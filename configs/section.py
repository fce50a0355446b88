"""What every section of a configuration is made of: a frozen mapping, and fields with their description and bounds."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

PATH = 4096  # letters that the system lets a path have


def setting(default: Any, about: str, operational: bool = False, because: str = "", **bounds: Any) -> Any:
    """A field with its description; `operational` leaves it out of the run's identity, `because` says why it is bounded."""
    return Field(
        default, description=about, json_schema_extra={"operational": operational, "because": because}, **bounds
    )


class Section(BaseModel):
    """Frozen; unknown keys, wrong types, NaN and infinity are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def nearest_multiples(value: int, unit: int) -> tuple[int, int]:
    """The multiples of `unit` around a value: for the message that says what would work."""
    below = value // unit * unit
    return below, below + unit
