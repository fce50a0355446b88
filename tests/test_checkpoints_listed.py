"""The checkpoints of runs, listed and verified from the command line: on a login node, over whatever is left of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from record import checkpoints
from tests.processes import ROOT

KEPT = ROOT / "tests" / "kept" / "runs" / "weight_decay0.3-seeds0-6c8b58af85"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with checkpoints at 20 (complete), 30 (bytes differ), 40 (set aside), 50 (no manifest), 60 (a save cut off)."""
    folder = tmp_path / "run" / "checkpoints"
    shutil.copytree(KEPT, tmp_path / "run")
    for step in (30, 40, 50):
        shutil.copytree(folder / "step_00000020", folder / f"step_{step:08d}")
    weights = folder / "step_00000030" / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    os.replace(folder / "step_00000040" / "manifest.json", folder / "step_00000040" / "manifest.superseded.json")
    (folder / "step_00000050" / "manifest.json").unlink()
    (folder / ".step_00000060.tmp").mkdir()
    return tmp_path / "run"


def rows(capsys: pytest.CaptureFixture[str], code: int, *words: Any) -> list[dict[str, Any]]:
    """What the command prints with --json, having ended with this code."""
    assert checkpoints.main([*map(str, words), "--json"]) == code
    printed: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return printed


def test_list(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if a checkpoint is not listed, or with another state, size, kinds or rule than it has."""
    listed = rows(capsys, 0, "list", run)
    states = {20: "complete", 30: "complete", 40: "set aside", 50: "incomplete", 60: "incomplete"}
    assert {row["step"]: row["state"] for row in listed} == states
    first, last = listed[0], listed[-1]
    files = list((run / "checkpoints" / "step_00000020").iterdir())
    assert first["bytes"] == sum(file.stat().st_size for file in files)
    assert first["kinds"] == ["ema_0.9", "exp_avg", "exp_avg_sq", "weights"]
    assert first["kept_by"] == ["at", "keep_last"]
    assert first["saved"].endswith("+00:00")
    assert (last["bytes"], last["kinds"], last["kept_by"]) == (0, [], None)
    assert "killed" in last["why"]
    (run / "config.json").unlink()
    assert {row["kept_by"] for row in rows(capsys, 0, "list", run)} == {None}, "no configuration, no rules"


def test_verify(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if damage is passed over or ends without the exit code, or one run without checkpoints hides another's damage."""
    verified = rows(capsys, 1, "verify", run)
    assert {row["step"]: row["sound"] for row in verified} == {20: True, 30: False, 40: None, 50: False}
    assert verified[1]["why"] == "is damaged: weights.safetensors differs from its manifest"
    assert rows(capsys, 0, "verify", f"{run}@20") == verified[:1]
    assert rows(capsys, 1, "verify", f"{run}@40")[0]["sound"] is False, "asked for by its step"
    assert rows(capsys, 2, "verify", f"{run}@20", tmp_path) == verified[:1]
    assert rows(capsys, 1, "verify", tmp_path, run) == verified
    for step, problem in (
        (7, "has no checkpoint of step 7; steps there: 20, 30, 40, 50"),
        ("x", "after @ (found 'x')"),
    ):
        assert checkpoints.main(["verify", f"{run}@{step}"]) == 2
        assert problem in capsys.readouterr().err
    assert checkpoints.main(["list", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err == f"error: there is no run folder {tmp_path / 'none'}\n"


@pytest.mark.parametrize("act", ["list", "verify"])
def test_needs_no_torch(act: str) -> None:
    """Breaks if looking at checkpoints starts to need torch, which a login node may not have; its files are hashed for real."""
    code = (
        f"import sys; sys.modules['torch'] = None; from record.checkpoints import main; main(['{act}', {str(KEPT)!r}])"
    )
    command = [sys.executable, "-c", f"{code}; assert sys.modules['torch'] is None"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert printed.startswith(f"{KEPT}@20  ")
    assert printed.count("\n") == 1
