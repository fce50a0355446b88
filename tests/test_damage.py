"""Damaged run folders: whatever is in one, it is named with the reason, and the rest is reported."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from analysis.__main__ import main
from configs.prepared import read_summary
from configs.schema import RunConfig
from configs.sweep import all_cells, expand
from data.manifest import Manifest
from record.run import RunFolder
from slurm import status
from tests.recorded import base_curve, write_run

PROBED = {"log": {"probe_every": 100}}


def probes(upto: int = 1000) -> list[dict[str, Any]]:
    return [{"step": step, "tokens": 0, "probe/max": 1.0} for step in range(100, upto + 1, 100)]


def keep_rows(path: Path, keep: Callable[[int], bool]) -> None:
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if keep(json.loads(line)["step"])))


def harm(folder: Path) -> dict[str, str]:
    """Copies of a sound run in `folder`/sound, each with one thing lost: its name → what must be said of it."""
    harms: dict[str, tuple[Callable[[Path], object], str]] = {
        "cut": (
            lambda run: keep_rows(run / "metrics.jsonl", lambda step: step <= 400),
            "metrics.jsonl: its rows end at step 400, although the run is done at step 1,000",
        ),
        "emptied": (lambda run: (run / "metrics.jsonl").write_text(""), "metrics.jsonl: it has no rows at all"),
        "deleted": (lambda run: (run / "metrics.jsonl").unlink(), "metrics.jsonl: it has no rows at all"),
        "holed": (
            lambda run: keep_rows(run / "metrics.jsonl", lambda step: not 40 < step < 50),
            "metrics.jsonl: 9 steps have no row: 41–49",
        ),
        "torn": (
            lambda run: (run / "metrics.jsonl").write_bytes((run / "metrics.jsonl").read_bytes() + b'{"step": 100'),
            "metrics.jsonl: its last line is cut off",
        ),
        "unvalidated": (
            lambda run: (run / "metrics.jsonl").write_text(
                (run / "metrics.jsonl").read_text().rpartition(', "val/loss"')[0] + "}\n"
            ),
            "metrics.jsonl: the last step has no validation loss",
        ),
        "probes cut": (
            lambda run: keep_rows(run / "probes.jsonl", lambda step: step < 1000),
            "probes.jsonl: its rows end at step 900 (due: 1,000), although the run is done at step 1,000",
        ),
        "probes emptied": (lambda run: (run / "probes.jsonl").write_text(""), "probes.jsonl: it has no rows at all"),
        "probes deleted": (lambda run: (run / "probes.jsonl").unlink(), "probes.jsonl: it has no rows at all"),
    }
    for name, (act, _) in harms.items():
        shutil.copytree(folder / "sound", folder / name)
        act(folder / name)
    return {name: said for name, (_, said) in harms.items()}


def test_lost_rows_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if an analysis takes a log that was cut off or emptied for that of a young run, or says so of a sound one."""
    write_run(tmp_path / "sound", probes=probes(), **PROBED)
    assert main(["loss_curves", str(tmp_path)]) == 0
    assert "note" not in capsys.readouterr().out
    said = harm(tmp_path)
    assert main(["loss_curves", str(tmp_path)]) == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    for name, text in said.items():
        assert [text in note for note in notes if f"/{name}/" in note] == [True], name


def test_a_live_run_is_not_called_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if rows that are not written yet, or probes of updates that were left out, count as lost."""
    young = write_run(tmp_path / "young", upto=450, state="running", probes=probes(400), **PROBED)
    RunFolder(young).write_status("running", 400, 1000)
    with open(young / "metrics.jsonl", "a") as file:
        file.write('{"step": 451, "tok')
    skipped = write_run(tmp_path / "skipped", decay=0.1, probes=probes(900), **PROBED)
    with open(skipped / "metrics.jsonl", "a") as file:
        file.write('{"step": 1000, "tokens": 0, "event": "nonfinite", "nonfinite/skipped": 1}\n')
    RunFolder(write_run(tmp_path / "begun", decay=0.2, upto=0, state="running")).metrics.write_text("")
    assert main(["loss_curves", str(tmp_path)]) == 0
    assert "although" not in capsys.readouterr().out


def test_an_unknown_state_makes_no_claim(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if a run whose state has one letter flipped counts as ended, or differences with it as a finding."""
    for seed in range(3):
        write_run(tmp_path / f"a{seed}", seed=seed)
        last = write_run(tmp_path / f"b{seed}", lambda s: base_curve(s) - 0.1, decay=0.1, seed=seed)
    assert main(["loss_curves", str(tmp_path)]) == 0
    assert "helps" in capsys.readouterr().out
    (last / "status.json").write_text((last / "status.json").read_text().replace('"done"', '"dome"'))
    assert main(["loss_curves", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "helps" not in text
    assert "no claim: the state of b2 is unknown" in text
    assert "status.json says 'dome', which is none of running, done" in text
    assert "1 of 6 runs are not finished: b2 unknown at step 1000" in text
    assert main(["sweep", str(tmp_path)]) == 0
    assert "Over the 2 seeds that every λ has" in capsys.readouterr().out


def test_folders_that_cannot_be_read_are_left_out_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if one damaged folder ends the report of all, or is left out without its name and the reason."""
    write_run(tmp_path / "sound")
    write_run(tmp_path / "other", decay=0.1)
    for i, (file, text, why) in enumerate(
        [
            ("config.json", "null", "it holds no JSON object"),
            ("config.json", "{", "cannot be read"),
            ("config.json", "[" * 100_000, "cannot be read"),
            ("config.json", "{}", "optim.weight_decay is None, not a number"),
            ("config.json", '{"a": "\\ud800"}', "surrogates not allowed"),
            ("status.json", "5", "it holds no JSON object"),
            ("status.json", '{"state": "done", "step": true, "steps": 1000}', "step True of 1000"),
            ("experiment.json", "[]", "it holds no JSON object"),
        ]
    ):
        run = write_run(tmp_path / f"damaged{i}")
        (run / file).write_text(text)
        assert main(["loss_curves", str(tmp_path)]) == 0, text
        output = capsys.readouterr().out
        assert f"note: left out: {run} is not a readable run folder: " in output
        assert why in output
        assert "λ = 0.1 minus λ = 0" in output
        assert main(["loss_curves", str(run)]) == 2
        assert why in capsys.readouterr().err
        shutil.rmtree(run)


def sweep_of(tmp_path: Path, config: RunConfig) -> tuple[Path, Path]:
    """A sweep file of three λ, and the folder of its runs."""
    (tmp_path / "base.json").write_text(config.model_dump_json())
    axes = {"optim.weight_decay": [0.0, 0.1, 0.2]}
    given = {"name": "wd", "base": "base.json", "axes": axes, "set": {"schedule.steps": 1000, "data.epochs": 100}}
    (tmp_path / "sweep.json").write_text(json.dumps(given | {"set": given["set"] | {"log.probe_every": 100}}))
    return tmp_path / "sweep.json", tmp_path / "runs"


def test_status_says_what_is_lost(
    tiny_data: tuple[Path, Manifest], tiny_config: Callable[..., RunConfig], tmp_path: Path, capsys: Any
) -> None:
    """Breaks if slurm.status takes a cut log for a whole one, an unknown state for an end, or one bad folder hides the others."""
    cells = [cell.folder for cell in all_cells(expand(*sweep_of(tmp_path, tiny_config()), read_summary)[1])]
    command = [str(tmp_path / "sweep.json"), "--runs", str(tmp_path / "runs")]
    for path in cells:
        write_run(path, probes=probes(), **PROBED)
    assert status.main(command) == 0
    assert "although" not in capsys.readouterr().out
    keep_rows(cells[0] / "metrics.jsonl", lambda step: step <= 400)
    (cells[0] / "probes.jsonl").write_text("")
    (cells[1] / "status.json").write_text((cells[1] / "status.json").read_text().replace('"done"', '"dine"'))
    (cells[2] / "status.json").write_text("5")
    assert status.main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "its rows end at step 400, although the run is done at step 1,000" in lines[1]
    assert "probes.jsonl: it has no rows at all" in lines[1]
    assert "unknown" in lines[2]
    assert "says 'dine'" in lines[2]
    assert "its folder cannot be read" in lines[3]
    assert lines[-1] == "1 done, 1 unknown, 1 failed"
