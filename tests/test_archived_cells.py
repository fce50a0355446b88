"""A sweep whose finished runs are kept as archives alone (slurm.submit --archived)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from configs.prepared import read_summary
from configs.schema import RunConfig
from configs.sweep import expand
from record.archive import main as archive
from slurm.submit import main, outlook
from tests.recorded import write_run


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
