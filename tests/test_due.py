"""What is said of comparisons while planned seeds still run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from analysis import loss_curves
from analysis.__main__ import main
from analysis.command import Options, load_runs
from analysis.due import dues, provisional
from configs.prepared import read_summary
from configs.sweep import all_cells, expand
from record.archive import main as archive
from tests.recorded import base_curve, write_run

pytestmark = pytest.mark.slow  # by its length alone: `make check` takes a minute

SEEDS = 5


def sweep(root: Path) -> Path:
    """A sweep file of λ = 0 and 0.3 over SEEDS seeds, whose data is not here: its runs are known by their labels."""
    given = {
        "name": "wd",
        "base": str(Path("configs/quickstart.json").resolve()),
        "set": {"data.path": "not/prepared"},
        "axes": {"optim.weight_decay": [0.0, 0.3], "seeds.*": list(range(SEEDS))},
    }
    (root / "wd.json").write_text(json.dumps(given))
    return root / "wd.json"


def write(root: Path, seeds: int, upto: int | None = None, state: str = "done") -> None:
    """The runs of the first `seeds` seeds; of the last one λ = 0.3 has come to `upto`."""
    for seed in range(seeds):
        for decay in (0.0, 0.3):
            last = seed == seeds - 1 and decay > 0
            path = root / "wd" / f"weight_decay{decay}-seeds{seed}-{seed:010x}"
            write_run(
                path,
                lambda s, k=0.1 * decay + 0.001 * seed * (1 + decay): base_curve(s) + k,
                decay=decay,
                seed=seed,
                steps=100,
                upto=upto if last else None,
                state=state if last else "done",
            )


def test_no_verdict_before_the_planned_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if seeds that a sweep file plans and that have not ended, or not begun, leave a verdict final, or are not counted."""
    write(tmp_path, 4, upto=50, state="running")
    given = [str(sweep(tmp_path))]
    runs, _ = load_runs(given, tmp_path)
    (due,) = dues(given, tmp_path, runs)
    assert (due.finished, due.planned) == (3, SEEDS)
    final = loss_curves.analyse(runs, Options())
    early = provisional(final, [due])
    assert any(claim.decided for claim in final.claims)
    assert not any(claim.decided for claim in early.claims)
    assert all(claim.verdict.startswith("no verdict before 5 seeds; so far: ") for claim in early.claims)
    assert "3 of 5 seeds finished" in early.findings[0]
    assert early.cautions[0] == early.findings[0]
    assert {claim.sentence for claim in early.claims} <= set(early.findings)
    assert main(["loss_curves", *given, "--runs-root", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert f"{given[0]}: 3 of 5 seeds finished; the plan's verdict is due at 5." in text.splitlines()[1]
    assert "harms" not in text.replace("so far: harms", "")
    assert main(["report", *given, "--runs-root", str(tmp_path), "--out", str(tmp_path / "page")]) == 0
    assert "3 of 5 seeds finished" in capsys.readouterr().out
    assert "3 of 5 seeds finished" in (tmp_path / "page" / "index.html").read_text()


def test_a_finished_plan_has_verdicts(tmp_path: Path) -> None:
    """Breaks if a sweep whose seeds are all there is still called unfinished, as folders or as archives."""
    write(tmp_path, SEEDS)
    given = [str(sweep(tmp_path))]
    assert archive([*given, "--runs-root", str(tmp_path), "--out", str(tmp_path / "archived" / "wd")]) == 0
    for root in (tmp_path, tmp_path / "archived"):
        runs, notes = load_runs(given, root)
        assert len(runs) == 2 * SEEDS
        assert not notes
        assert not dues(given, root, runs)
        assert all(run.file.suffix == ".parquet" for run in runs) == (root != tmp_path)
    result = loss_curves.analyse(runs, Options())
    assert provisional(result, []) is result


def test_a_folder_knows_its_plan(tmp_path: Path) -> None:
    """Breaks if a sweep's folder counts only the seeds that have begun, or a run by itself is waited for."""
    write(tmp_path, 3, upto=50, state="preempted")
    given = [str(tmp_path / "wd")]
    runs, _ = load_runs(given, tmp_path)
    (due,) = dues(given, tmp_path, runs)
    assert (due.finished, due.planned) == (2, 3)
    cells = all_cells(expand(sweep(tmp_path), tmp_path, read_summary)[1])
    folder = tmp_path / "wd" / "cells"
    folder.mkdir()
    for cell in cells:
        seed, decay = cell.config.seeds.init, cell.config.optim.weight_decay
        (folder / f"weight_decay{decay}-seeds{seed}-{seed:010x}.json").write_text(json.dumps(cell.given))
    (folder / "damaged.json").write_text("{")
    (due,) = dues(given, tmp_path, runs)
    assert (due.finished, due.planned) == (2, SEEDS)
    assert not dues([str(run.file) for run in runs], tmp_path, runs)


def test_a_comparison_of_all_seeds_is_final(tmp_path: Path) -> None:
    """Breaks if a comparison that has all its seeds waits for others that have not."""
    write(tmp_path, SEEDS)
    write_run(tmp_path / "wd" / "other", decay=0.7, seed=0, steps=100, upto=50, state="running")
    given = [str(tmp_path / "wd")]
    runs, _ = load_runs(given, tmp_path)
    early = provisional(loss_curves.analyse(runs, Options()), dues(given, tmp_path, runs))
    decided = {claim.name for claim in early.claims if claim.decided}
    assert decided == {"λ = 0.3 minus λ = 0"}


def test_runs_root_without_a_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if --runs-root is taken beside folders or archives, where it does nothing."""
    write(tmp_path, 1)
    assert main(["loss_curves", str(tmp_path / "wd"), "--runs-root", str(tmp_path)]) == 2
    assert "says where the runs of a sweep file lie, and no RUN is one" in capsys.readouterr().err
    assert archive([str(tmp_path / "wd"), "--runs-root", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "no RUN is one" in capsys.readouterr().err
