"""Runs that are kept as archives alone: their sweep (slurm.submit --archived), and branches whose trunks lie elsewhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from analysis.command import load_runs
from configs.prepared import read_summary
from configs.schema import RunConfig
from configs.sweep import expand
from record.archive import main as archive
from slurm.submit import main, outlook
from tests.recorded import write_run

KEPT = Path(__file__).parent / "kept" / "runs"


def test_archived_cells(
    tmp_path: Path, tiny_config: Callable[..., RunConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks if an archived run runs again, if one whose checkpoints a branch needs does not, or if a damaged file counts."""
    (tmp_path / "base.json").write_text(
        tiny_config({"schedule": {"steps": 20}, "checkpoint": {"every": 10}}).model_dump_json()
    )
    path, runs, archives = tmp_path / "sweep.json", tmp_path / "runs", tmp_path / "archives"
    tiny = {
        "name": "tiny",
        "branch_at": [10],
        "set": {"schedule.kind": "constant", "schedule.warmup_steps": 0, "schedule.steps": 5},
    }
    path.write_text(json.dumps({"name": "wd", "base": "base.json", "axes": {"seeds.*": [0, 1, 2]}, "stages": [tiny]}))
    stages = expand(path, runs, read_summary)[1]
    trunks, branches = stages["main"], stages["tiny"]
    for cell in [*trunks[:2], branches[0]]:
        write_run(cell.folder, steps=cell.config.schedule.steps)
        assert archive([str(cell.folder), "--out", str(archives)]) == 0
        shutil.rmtree(cell.folder)
    standing_of, todo = outlook(stages, {}, local=True, archives=archives)
    # the first trunk and its branch are kept; the second trunk's branch is not, and needs the checkpoint
    assert todo == {"main": trunks[1:], "tiny": branches[1:]}
    assert standing_of[trunks[0].folder].state == "done"
    assert standing_of[trunks[0].folder].step == 20
    capsys.readouterr()
    command = [str(path), "--runs", str(runs), "--local", "--dry-run"]
    assert main([*command, "--archived", str(archives)]) == 0
    assert f"{trunks[0].folder}: left alone, done (archived in {archives})" in capsys.readouterr().out
    kept = archives / f"{trunks[0].folder.name}.parquet"
    kept.write_bytes(kept.read_bytes()[:-9])
    assert main([*command, "--archived", str(archives)]) == 2
    assert f"{kept} is" in capsys.readouterr().err
    assert main([*command, "--archived", str(tmp_path / "none")]) == 2
    assert "is no folder" in capsys.readouterr().err


def test_trunks_in_their_own_sweep(tmp_path: Path) -> None:
    """Breaks if a branch does not find what its trunk was where the trunk's archive is in the folder of its own sweep."""
    folders = {run.path.name: run for run in load_runs([str(KEPT)], tmp_path)[0]}
    for run in folders.values():
        # "kept" is the sweep that the trunks' address names
        assert archive([str(run.path), "--out", str(tmp_path / ("branches" if run.origin else "kept"))]) == 0
    apart = load_runs([str(tmp_path / "branches")], tmp_path)[0]
    assert len(apart) == 4
    assert all(run.fields == folders[run.path.name].fields for run in apart)
