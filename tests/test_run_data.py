"""The data of a run: what is missing or damaged in it is refused, with the name of its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.processes import ConfigFile, finish, start

pytestmark = pytest.mark.engine


@pytest.mark.parametrize(
    ("file", "order", "message"),
    [
        ("train_00000.bin", "windows", "train_00000.bin has 1000 bytes"),
        ("val_00000.bin", "windows", "val_00000.bin has 1000 bytes"),
        ("train_docs.bin", "documents", "train_docs.bin does not hold the ends of"),
    ],
)
def test_short_file(
    file: str, order: str, message: str, config_file: ConfigFile, tmp_path: Path, tiny_data: tuple[Path, Any]
) -> None:
    """Breaks if truncated data is trained on."""
    import shutil

    shutil.copytree(tiny_data[0], tmp_path / "data")
    with open(tmp_path / "data" / file, "r+b") as handle:
        handle.truncate(1000 if file != "train_docs.bin" else 80)
    changed = {"data": {"path": str(tmp_path / "data"), "order": order}}
    output = finish(start(config_file(changed), tmp_path / "run"), 2)
    assert message in output
    assert not (tmp_path / "run").exists()
