"""Where data lies: seen from the shell's folder, kept absolute, moved, and never a part of what a run is."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import train
from configs.load import load_config
from configs.plan import make_plan
from configs.prepared import read_summary
from configs.sweep import all_cells, expand
from data.manifest import Manifest
from data.prepare import Options, prepare
from data.sources import Source
from record.run import RunFolder
from slurm import submit
from tests.processes import ROOT, ConfigFile, finish, losses, start, status
from tests.test_prepare import tiny_files


@pytest.fixture
def here(tmp_path: Path, tiny_data: tuple[Path, Manifest], config_file: ConfigFile, monkeypatch: Any) -> Path:
    """A folder with the tiny data in `data/`, which its config.json names as seen from there; it is the shell's folder."""
    shutil.copytree(tiny_data[0], tmp_path / "data")
    config_file({"data": {"path": "data"}})
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def other_data(tmp_path_factory: pytest.TempPathFactory, tiny_data: tuple[Path, Manifest]) -> Path:
    """The same files in another shuffle: other data."""
    out = tmp_path_factory.mktemp("other") / "data"
    prepare(Source.local("text", tiny_files()), out, Options(vocab_size=512, val_fraction=0.2, seed=1))
    return out


def test_the_path_is_absolute_and_no_part_of_the_id(here: Path, monkeypatch: Any) -> None:
    """Breaks if a resolved data.path depends on the shell's folder, or a run's id on where its data lies."""
    config, given = load_config("config.json")
    assert config.data.path == str(here / "data")
    assert given["data"]["path"] == "data"
    shutil.copytree("data", "elsewhere/again")
    moved, _ = load_config("config.json", ["data.path=elsewhere/again"])
    (here / "linked").symlink_to(here / "data")
    linked, _ = load_config("config.json", ["data.path=linked"])
    assert linked.data.path == str(here / "linked"), "a link is what the user named"
    plans = [make_plan(found, 1, read_summary(found.data.path)) for found in (config, moved, linked)]
    assert len({plan.run_id for plan in plans}) == 1
    monkeypatch.chdir(here / "elsewhere")
    assert load_config("../config.json")[0].data.path == str(here / "elsewhere" / "data")


def test_missing_data_says_where_it_looked(here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    """Breaks if a relative path that is seen from the wrong folder is reported without that folder."""
    (here / "below").mkdir()
    monkeypatch.chdir(here / "below")
    assert train.main(["--config", "../config.json"]) == 2
    message = capsys.readouterr().err
    assert f"no prepared data in {here}/below/data (data.path data, as seen from {here}/below); prepare it" in message
    assert "--out data\n" in message


def test_sweeps_keep_their_ids_and_see_the_shells_folder(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if a sweep's task, which is started from another folder, looks for its data elsewhere than its plan did."""
    sweep: dict[str, Any] = {"name": "s", "base": "config.json", "axes": {"optim.weight_decay": [0.1, 0.2]}}
    sweep["stages"] = [{"name": "on", "where": {"data.path": ["data"]}, "branch_at": [6], "set": {"schedule.steps": 2}}]
    (here / "sweep.json").write_text(json.dumps(sweep))
    cells = all_cells(expand("sweep.json", Path("runs"), read_summary)[1])
    assert len(cells) == 4
    assert {cell.given["data"]["path"] for cell in cells} == {str(here / "data")}
    (here / "sweep.json").write_text(json.dumps({**sweep, "set": {"data.path": str(here / "data")}}))
    assert [cell.id for cell in cells] == [
        cell.id for cell in all_cells(expand("sweep.json", Path("runs"), read_summary)[1])
    ]
    assert submit.main(["sweep.json", "--local", "--dry-run"]) == 0
    assert "stage on: 2 run(s)" in capsys.readouterr().out


def test_a_branch_on_other_data_names_both(
    here: Path, other_data: Path, tiny_config: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks if a branch on other data is refused with hashes that nobody can tell apart."""
    sweep = {"name": "s", "base": "config.json", "stages": [{"name": "b", "branch_at": [6]}]}
    sweep["stages"][0]["set"] = {"data.path": str(other_data), "schedule.steps": 2}  # type: ignore[index]
    (here / "sweep.json").write_text(json.dumps(sweep))
    assert submit.main(["sweep.json", "--local", "--dry-run"]) == 2
    message = capsys.readouterr().err
    ours, theirs = read_summary(other_data), read_summary("data")
    assert ours is not None
    assert theirs is not None
    assert f'asked "{ours.digest[:12]} in {other_data}", found "{theirs.digest[:12]} in {here}/data"' in message


def evaluate(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from weights.evaluate import main; sys.exit(main())"
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.engine
def test_a_run_whose_data_has_moved(
    here: Path, other_data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    """Breaks if a run cannot be resumed or evaluated from another folder or over moved data, or can over other data."""
    run, config = here / "run", here / "config.json"
    finish(start(config, run, "--set", "schedule.steps=4", "--set", "schedule.kind=constant", cold=True, cwd=here))
    assert json.loads((run / "config.json").read_text())["data"]["path"] == str(here / "data")
    assert json.loads((run / "config.given.json").read_text())["data"]["path"] == "data"
    (here / "empty").mkdir()
    loss = json.loads(evaluate(here / "empty", str(run)).stdout)["val/loss"]
    shutil.move("data", "moved")
    found = evaluate(here, str(run))
    assert found.returncode == 2
    assert f"no prepared data in {here}/data, which {run}/config.json names; say with --data DIR" in found.stderr
    assert json.loads(evaluate(here, str(run), "--data", "moved").stdout)["val/loss"] == loss
    monkeypatch.chdir(here / "empty")
    options = ["--config", str(config), "--set", "schedule.kind=constant", "--run-dir", str(run)]
    for refused in (evaluate(here, str(run), "--data", str(other_data)).stderr, _refusal(capsys, *options, other_data)):
        assert f"{run} was trained on data of digest" in refused
        assert f"(in {here}/data), {other_data} holds" in refused
    assert "holds no run: name the run with --run-dir" in _refusal(capsys, *options[:-1], str(here / "new"), "../moved")
    assert train.main(options) == 2
    assert f"the data of {run} lay in {here}/data (--data DIR says where it lies now)" in capsys.readouterr().err
    finish(start(config, run, *options[2:4], "--data", "../moved", cwd=here / "empty"))
    assert (status(run)["state"], status(run)["step"], len(losses(run))) == ("done", 6, 6)
    assert RunFolder(run).data_path() == str(here / "moved")


def _refusal(capsys: pytest.CaptureFixture[str], *options: Any) -> str:
    """What train.py says to these options, the last of which is --data's."""
    assert train.main([*map(str, options[:-1]), "--data", str(options[-1])]) == 2
    return capsys.readouterr().err
