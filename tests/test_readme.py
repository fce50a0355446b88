"""The README is true: its commands exist, with the options it gives them."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from configs.precision import TABLE
from train import main

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
COMMANDS = [line.split("#")[0].strip() for block in BLOCKS for line in block.splitlines() if line.strip()]
COMMANDS += re.findall(r"`(python -m [^`]+)`", README)


def test_something_is_checked() -> None:
    """Breaks if the extraction finds nothing and the tests below pass on air."""
    assert len(COMMANDS) >= 10
    assert {command.split()[0] for command in COMMANDS} == {"make", "deepspeed", "python"}


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if a documented command names a target, module, configuration or option that is not there."""
    words = shlex.split(command)
    if words[0] == "make":
        subprocess.run(["make", "-n", words[1]], cwd=ROOT, check=True, capture_output=True)
    elif "train.py" in words:
        options = [word for word in words[words.index("train.py") + 1 :] if word != "--dry-run"]
        assert main([*options, "--dry-run", *([] if "--ranks" in options else ["--ranks", "1"])]) == 0
        capsys.readouterr()
    else:
        usage = subprocess.run(
            [sys.executable, *words[1:3], "--help"], cwd=ROOT, check=True, capture_output=True, text=True
        )
        for option in (word for word in words if word.startswith("--")):
            assert option in usage.stdout, option


@pytest.mark.parametrize("target", ["quickstart", "test", "check", "system-deps"])
def test_make_targets(target: str) -> None:
    """Breaks if the README and the Makefile lose one of the promised targets."""
    assert f"make {target}" in README
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_experiments_table() -> None:
    """Breaks if the README's costs are not those of the sweep files."""
    from benchmarks.scaling import experiments

    assert experiments() in README


def test_precision_table() -> None:
    """Breaks if the README's dtypes are not those of the table in code."""
    short = {"float32": "float32", "bfloat16": "bfloat16", "tensorfloat32": "TF32"}
    for precision, dtypes in TABLE.items():
        row = next(line for line in README.splitlines() if line.startswith(f"| `{precision}`"))
        cells = [cell.strip() for cell in row.strip("|").split("|")][1:]
        assert cells[:4] == [dtypes.weights, dtypes.masters, dtypes.accumulation, dtypes.moments], precision
        assert dtypes.accumulation == dtypes.reduction
        assert cells[4].startswith(short[dtypes.matmul]), precision
