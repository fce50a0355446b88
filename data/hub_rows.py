"""One column of a dataset of the Hugging Face hub, streamed from its parquet files; or from a local copy of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from configs.errors import InputError


def column_values(files: Sequence[str], column: str) -> Iterator[Any]:
    """The values of a column of all files, in order; of remote files only this column's bytes are fetched.

    InputError for a column that the first file does not have, with those it has, and for files that cannot be read.
    """
    import datasets
    import fsspec
    import pyarrow.parquet

    count = 0
    try:
        with fsspec.open(files[0], "rb") as first:
            names = pyarrow.parquet.read_schema(first).names
        if column not in names:
            raise InputError(f"the dataset has no column {column!r} (found: {', '.join(names)}); see --text-field")
        # Files that differ in other columns are no matter: they are not looked at.
        rows = datasets.load_dataset("parquet", data_files=list(files), split="train", streaming=True, columns=[column])
        for row in rows:
            yield row[column]
            count += 1
    except InputError:
        raise
    except (
        ValueError,
        KeyError,
        pyarrow.ArrowException,
    ) as error:  # datasets and pyarrow have no class of errors in common
        raise InputError(f"the dataset cannot be read after row {count}: {str(error)[:300]}") from None
