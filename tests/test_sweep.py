"""Sweeps without a cluster: what a file expands to, what would be submitted, the same cells on this machine."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import train
from configs.load import SWEEP_KEYS
from configs.prepared import read_summary
from configs.schema import RunConfig
from configs.sweep import Sweep, all_cells, expand
from configs.sweep_cell import Cell
from slurm import status as status_command
from slurm import submit as submit_command
from slurm.arrays import Array, chain, sbatch_command
from slurm.cells import standings
from slurm.site import Site
from tests.processes import ROOT, losses

SweepFile = Callable[..., Path]
TINY_LR = {"optim.lr": 1e-4, "schedule.kind": "constant", "schedule.warmup_steps": 0, "schedule.steps": 3}


@pytest.fixture
def sweep_file(tmp_path: Path, tiny_config: Callable[..., RunConfig]) -> SweepFile:
    def write(*overrides: dict[str, Any], **sweep: Any) -> Path:
        (tmp_path / "base.json").write_text(tiny_config({"log": {"every": 1}}, *overrides).model_dump_json())
        path = tmp_path / "sweep.json"
        path.write_text(json.dumps({"name": "wd", "base": "base.json", **sweep}))
        return path

    return write


def cells(path: Path, runs: Path = Path("runs"), *options: str) -> list[Cell]:
    return [cell for found in expand(path, runs, read_summary, list(options))[1].values() for cell in found]


def test_expansion(sweep_file: SweepFile) -> None:
    """Breaks if axes, paired values, whole sections, further cells or overrides give other runs than they say."""
    path = sweep_file(
        axes={
            "optim.weight_decay": [0.0, 0.1],
            "optim.lr,schedule.warmup_steps": [[0.01, 2], [0.02, 4]],
            "seeds.*": [7],
        },
        cells=[{"optim.weight_decay": 0.9}],
        set={"eval.tokens": 256},
    )
    found = cells(path, Path("runs"), "schedule.steps=9")
    values = [(c.config.optim.weight_decay, c.config.optim.lr, c.config.schedule.warmup_steps) for c in found]
    assert values == [(0.0, 0.01, 2), (0.0, 0.02, 4), (0.1, 0.01, 2), (0.1, 0.02, 4), (0.9, 0.01, 2)]
    assert {c.config.eval.tokens for c in found} == {256}
    assert {c.config.schedule.steps for c in found} == {9}
    assert all((c.config.seeds.init, c.config.seeds.data, c.config.seeds.dropout) == (7, 7, 7) for c in found[:4])
    assert found[1].label == "weight_decay0.0-lr0.02-warmup_steps4-seeds7"
    assert found[1].folder == Path("runs/wd") / f"{found[1].label}-{found[1].id}"


def test_rows_of_a_section(sweep_file: SweepFile) -> None:
    """Breaks if a row of a section by its fields replaces what it does not name, or names its run after the section."""
    rows = [{"decay_rule": "swd", "lr": 0.02}, {"algorithm": "lion", "betas": [0.9, 0.99], "weight_decay": 0.4}]
    found = cells(sweep_file(axes={"optim": rows, "seeds.*": [7]}))
    base = cells(sweep_file())[0].config.optim
    assert [cell.config.optim for cell in found] == [
        base.model_copy(update={"decay_rule": "swd", "lr": 0.02}),
        base.model_copy(update={"algorithm": "lion", "betas": (0.9, 0.99), "weight_decay": 0.4}),
    ]
    assert [cell.label for cell in found] == ["swd-lr0.02-seeds7", "lion-betas_0.9_0.99-weight_decay0.4-seeds7"]


def test_points_of_cells(sweep_file: SweepFile, tmp_path: Path) -> None:
    """Breaks if a schedule's file cannot be an axis, or is looked for anywhere but beside the sweep."""
    (tmp_path / "p.json").write_text('{"points": [[1, 0.5], [7, 0.0]]}')
    axes = {"schedule.points": ["p.json", [[1, 1.0], [7, 0.5]]]}
    path = sweep_file(axes=axes)
    base = json.loads((tmp_path / "base.json").read_text()) | {
        "schedule": {"kind": "piecewise", "steps": 6, "points": "p.json"}
    }
    (tmp_path / "base.json").write_text(json.dumps(base))
    found = cells(path)
    assert [cell.config.schedule.points for cell in found] == [((1, 0.5), (7, 0.0)), ((1, 1.0), (7, 0.5))]


def test_branches_find_their_undecayed_twin(sweep_file: SweepFile) -> None:
    """Breaks if a branch is scaled to the norm of another seed, or of a run that decays, or a sweep without such a run begins."""
    scaled = {**TINY_LR, "optim.weight_decay": 0.0, "branch.lr_by_norm_of": "{undecayed}"}
    axes = {"optim.weight_decay": [0.0, 0.1], "seeds.*": [0, 1]}
    stages = [{"name": "plain", "branch_at": [6], "set": {**scaled, "branch.lr_by_norm_of": None}}]
    stages += [{"name": "scaled", "of": "main", "branch_at": [6], "set": scaled}]
    # a section as one value names the same run
    whole = {**TINY_LR, "optim.weight_decay": 0.0, "branch": {"lr_by_norm_of": "{undecayed}"}}
    stages += [{"name": "section", "of": "main", "branch_at": [6], "set": {**whole, "optim.lr": 2e-4}}]
    found = cells(sweep_file(axes=axes, stages=stages))
    folders = {(c.config.optim.weight_decay, c.config.seeds.init): c.folder for c in found if c.stage == "main"}
    for cell in found:
        if cell.stage in ("scaled", "section"):
            assert cell.config.branch is not None
            assert cell.config.branch.lr_by_norm_of == str(folders[0.0, cell.config.seeds.init])
    assert len({cell.id for cell in found}) == len(found) == 16
    lone = sweep_file(
        axes={"optim.weight_decay": [0.1, 0.2]}, stages=[{"name": "scaled", "branch_at": [6], "set": scaled}]
    )
    with pytest.raises(ValueError, match=r"no run differs from weight_decay0\.1 in λ = 0 alone; add it to the axis"):
        cells(lone)


def test_a_further_value_renames_nothing(sweep_file: SweepFile) -> None:
    """Breaks if a run's folder depends on anything but the run."""
    before = {c.folder for c in cells(sweep_file(axes={"optim.weight_decay": [0.1, 0.3], "precision": ["fp32"]}))}
    after = {
        c.folder for c in cells(sweep_file(axes={"optim.weight_decay": [0.0, 0.1, 0.2, 0.3], "precision": ["fp32"]}))
    }
    assert before < after
    assert len(after) == 4


def test_stages(sweep_file: SweepFile) -> None:
    """Breaks if a stage makes other branches than it says, or of other runs."""
    stage = {"name": "tiny", "branch_every": 2, "where": {"optim.weight_decay": [0.3]}, "set": TINY_LR}
    again = {"name": "late", "of": "main", "branch_at": [6], "set": TINY_LR, "axes": {"optim.weight_decay": [0.0, 0.5]}}
    axes = {"optim.weight_decay": [0.1, 0.3]}
    found = cells(sweep_file({"checkpoint": {"every": 2}}, axes=axes, stages=[stage, again]))
    trunk = found[1]
    assert [(c.parent, c.step) for c in found[2:5]] == [(trunk, 2), (trunk, 4), (trunk, 6)]
    assert found[2].config.branch is not None
    assert found[2].config.branch.origin == f"{trunk.folder}@2"
    assert (found[2].config.optim.weight_decay, found[2].config.optim.lr) == (0.3, 1e-4)
    assert found[2].label == "weight_decay0.3-tiny00002"
    assert [(c.parent, c.step, c.config.optim.weight_decay) for c in found[5:]] == [
        (found[0], 6, 0.0), (found[0], 6, 0.5), (trunk, 6, 0.0), (trunk, 6, 0.5),
    ]  # fmt: skip
    assert len({c.folder for c in found}) == 9


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ({"axes": {"optim.weight_decy": [1]}}, "did you mean 'weight_decay'"),
        ({"axes": {"optim.weight_decay": ["much"]}}, "cell much: optim.weight_decay"),
        ({"axes": {"optim.lr,seeds.init": [[1]]}}, "expected rows of 2 values"),
        ({"axes": {"seed.*": [1]}}, "'seed' is no section"),
        ({"axis": {}}, "unknown key 'axis'; did you mean 'axes'"),
        ({"axes": {"optim.weight_decay": [0.1, 0.1]}}, "are the same run"),
        ({"name": "../up"}, "name"),
        ({"stages": [{"name": "a", "branch_at": [5]}]}, "whose checkpoints are saved and kept at [6]"),
        ({"stages": [{"name": "a", "of": "b"}]}, "earlier stages: main"),
        ({"stages": [{"name": "main"}]}, "distinct names"),
        ({"stages": [{"name": "a", "where": {"optim.weight_decay": [7]}}]}, "finds no run of 'main'"),
        ({"axes": {"schedule.steps": [10**7]}}, "at most"),
        (
            {
                "set": {"schedule.steps": 3700, "checkpoint.every": 3700},
                "stages": [{"name": "a", "branch_at": [3700]}],
            },
            "beyond what the trunk read",
        ),
        (
            {"stages": [{"name": "a", "branch_at": [6], "set": {"optim.algorithm": "sgd", "schedule.steps": 3}}]},
            "set branch.optimizer to drop",
        ),
        (
            {"stages": [{"name": "a", "set": {"schedule.match.reference": "{run}", "schedule.steps": 5}}]},
            "a matched run takes the same steps",
        ),
        (
            {"stages": [{"name": "a", "set": {"schedule.match.reference": "{run}", "schedule.match.scope": "tensor"}}]},
            "record it with log.tensor_norms true",
        ),
    ],
)
def test_bad_sweeps(
    sweep_file: SweepFile, sweep: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks if a mistake in a sweep is found only on the cluster, or its message names neither cell nor remedy."""
    assert submit_command.main([str(sweep_file(**sweep)), "--dry-run"]) == 2
    assert message in capsys.readouterr().err


def test_sbatch_command(sweep_file: SweepFile, tmp_path: Path) -> None:
    """Breaks if a site's wish does not reach sbatch, or a stage does not wait for the one before."""
    path = sweep_file(axes={"optim.weight_decay": [0.0, 0.1]}, limit=3)
    sweep, stages = expand(path, tmp_path / "runs", read_summary)
    site = Site.model_validate(
        {"account": "a b", "partition": "gpu", "time": "1-00:00:00", "nodes": 2, "ranks_per_node": 4, "gpus_per_node": 4,
         "cpus_per_rank": 8, "memory": "10G", "signal_s": 99, "modules": ("cuda/13",), "options": ("--exclusive",)}
    )  # fmt: skip
    root = tmp_path / "runs" / "wd"
    array = Array("tiny", 1, 1, stages["main"], ["17", "18_2"])
    command = sbatch_command(sweep, site, root, array, root / "s.json")
    assert command[0] == "sbatch"
    assert {
        "--account=a b", "--partition=gpu", "--time=1-00:00:00", "--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4",
        "--cpus-per-task=8", "--mem=10G", "--signal=USR1@99", "--array=0-1%3", "--dependency=afterany:17:18_2", "--requeue",
        "--exclusive", f"--chdir={ROOT}",
    } <= set(command)  # fmt: skip
    assert command[-3:] == [sys.executable, str(root / "s.json"), "cuda/13"]
    first = sbatch_command(sweep, site, root, replace(array, after=[]), root / "s.json")
    assert not any("dependency" in word for word in first)


def test_arrays_of_a_limited_size(sweep_file: SweepFile, tmp_path: Path) -> None:
    """Breaks if an array is longer than the cluster allows, a cell is left out, a stage does not wait for all of the one
    before, or several arrays together run more tasks than the limit."""
    stage = {"name": "tiny", "branch_at": [6], "set": TINY_LR}
    _, stages = expand(sweep_file(axes={"seeds.*": [*range(5)]}, stages=[stage]), tmp_path / "runs", read_summary)
    sent: list[Array] = []

    def send(array: Array) -> str:
        sent.append(array)
        return str(len(sent))

    queued = {str(stages["main"][4].folder.resolve()): ("77_4", "RUNNING")}
    chain(stages, 2, None, queued, send)
    assert [array.name for array in sent[:2]] == ["main, part 1 of 3", "main, part 2 of 3"]
    assert [len(array.cells) for array in sent] == [2, 2, 1, 2, 2, 1]
    assert [cell for array in sent for cell in array.cells] == all_cells(stages)
    assert [array.after for array in sent] == [[], [], [], [*"123"], [*"123"], [*"123", "77_4"]]
    sent.clear()
    chain(stages, 2, 1, {}, send)
    assert [array.after for array in sent] == [[], ["1"], ["2"], [*"123"], [*"1234"], [*"1235"]]
    sent.clear()
    chain(stages | {"main": []}, None, 1, {}, send)
    assert [(array.name, array.after) for array in sent] == [("tiny", [])]


def test_one_kind_of_file_for_another(
    sweep_file: SweepFile, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks if a run's file where a sweep is meant, or a sweep's where a run is, gets a list of unknown keys, and not what it
    is and which command takes it."""
    assert set(Sweep.model_fields) - {"name", "base"} == SWEEP_KEYS
    path = sweep_file(axes={"optim.weight_decay": [0.0]})
    assert train.main(["--config", str(path), "--dry-run"]) == 2
    assert f"is a sweep of several runs, not the configuration of one; `python -m slurm.submit {path}`" in (
        capsys.readouterr().err
    )
    for command in (status_command.main, submit_command.main):
        assert command([str(tmp_path / "base.json")]) == 2
        words = capsys.readouterr().err
        assert (
            f"is the configuration of one run, not a sweep; `python train.py --config {tmp_path / 'base.json'}`"
            in words
        )


def test_no_cluster(
    sweep_file: SweepFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks if a submission on a machine without SLURM leaves anything behind, or does not say what works there."""
    path = sweep_file(axes={"optim.weight_decay": [0.0, 0.1]})
    monkeypatch.setenv("PATH", str(tmp_path))
    assert submit_command.main([str(path), "--runs", str(tmp_path / "runs")]) == 2
    words = capsys.readouterr().err
    assert "no sbatch here" in words
    assert f"python -m slurm.submit {path} --runs {tmp_path / 'runs'} --local" in words
    assert not (tmp_path / "runs").exists()


@pytest.mark.engine
def test_local_stages(sweep_file: SweepFile, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if the local runner ignores the stages' order, runs what is done again, or hides a failure."""
    stages = [{"name": "tiny", "branch_every": 3, "set": TINY_LR}]
    path = sweep_file({"checkpoint": {"every": 3}}, axes={"optim.weight_decay": [0.1, 0.2]}, stages=stages)
    found = cells(path, tmp_path / "runs")
    bad = found[1].folder
    bad.mkdir(parents=True)
    (bad / "experiment.json").write_text("[]")
    command = [str(path), "--runs", str(tmp_path / "runs"), "--local", "--jobs", "2"]
    assert submit_command.main(command) == 1
    assert [known.state for known in standings(found).values()] == [
        "done",
        "failed",
        "done",
        "done",
        "blocked",
        "blocked",
    ]
    assert "has no complete checkpoint of step 3" in capsys.readouterr().out
    (bad / "experiment.json").unlink()
    # what had finished is known already; what had failed is looked at again
    earlier = standings(found)
    now = standings(found, before=earlier)
    assert [now[cell.folder] is earlier[cell.folder] for cell in found] == [True, False, True, True, False, False]
    assert now == earlier
    before = (found[0].folder / "metrics.jsonl").stat().st_mtime_ns
    assert submit_command.main(command) == 0
    assert [known.state for known in standings(found).values()] == ["done"] * 6
    assert (found[0].folder / "metrics.jsonl").stat().st_mtime_ns == before
    assert losses(found[2].folder)[0][1] == dict(losses(found[0].folder))[4]
    assert status_command.main([str(path), "--runs", str(tmp_path / "runs")]) == 0
    assert "6 done" in capsys.readouterr().out
