"""What this project's own study says of λ, beside a configuration: the best λ·Ση at each of its lengths.

It is read off the table that `make study-report` makes from the study's records, so that advice and study cannot part.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from configs.errors import InputError

TABLE = Path(__file__).resolve().parent.parent / "docs" / "study" / "transfer" / "eight_seeds_table1.csv"
SIZE = "0.17M"  # parameters, of all its runs
WORDS = ("tokens per parameter", "updates", "η", "seeds", "best λ", "best Σ")


def study(one: float | None) -> tuple[str, pd.DataFrame]:
    """A sentence, and a row a length. `one`: Σηλ of λ = 1 over the run that is advised on; None where that is not known.

    InputError where the table is missing or lacks a column: it is part of the source.
    """
    try:
        kept = pd.read_csv(TABLE)
    except (OSError, ValueError) as error:
        raise InputError(f"{TABLE} cannot be read ({error}); it is part of the source: restore it") from None
    if lacking := [name for name in WORDS if name not in kept]:
        raise InputError(f"{TABLE} has no column {lacking[0]!r}; it is part of the source: restore it")
    table = kept[list(WORDS)].rename(columns={"best Σ": "its Σηλ"})
    # an interval is text: its first number is the mean over seeds
    sums = [float(str(text).split()[0]) for text in table["its Σηλ"]]
    if one:
        table["λ of the same Σηλ here"] = [f"{total / one:.3g}" for total in sums]
    # each best with its horizon: it moves with it
    lengths = zip(sums, table["tokens per parameter"], strict=True)
    told = " and ".join(f"{total:.3g} at {ratio:.3g} tokens per parameter" for total, ratio in lengths)
    return (
        f"In this project's own study the best Σηλ is {told} (docs/study): {SIZE} parameters, so no more than a hint for a larger "
        "model."
    ), table
