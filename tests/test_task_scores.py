"""Scores at tasks: of whatever lies in a run's folder, what is read, what is compared with what, and what an archive keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from analysis import task_scores
from analysis.catalogue import CATALOGUE
from analysis.command import Options, Result
from configs.errors import InputError
from record.archive import main as archive
from record.evaluations import Evaluation, Score, read_evaluations, write_evaluation
from record.run import RunFolder
from tests.recorded import load, write_run


def evaluation(value: float | None, step: int = 100, hash_: str = "h", **fields: Any) -> Evaluation:
    score = Score(
        task="arc", metric="acc", filter="none", value=value, stderr=0.02, higher_is_better=True, shots=0, documents=500,
        hash=hash_, version="1.0",
    )  # fmt: skip
    given = {
        "source": f"run@{step}",
        "step": step,
        "weights": "weights",
        "sha256": "s",
        "precision": "fp32",
        "tasks": ["arc"],
    }
    given |= {"include": None, "limit": None, "shots": None, "batch": 8, "device": "cpu", "time": "2026-01-01"}
    return Evaluation(**given | {"revision": None, "packages": {}, "notes": [], "scores": [score]} | fields)


def scored(root: Path, decay: float, seed: int, *evaluations: Evaluation) -> Path:
    path = write_run(root / f"wd{decay}-{seed}", decay=decay, seed=seed, steps=100)
    for one in evaluations:
        write_evaluation(RunFolder(path).evaluations / one.file_name, one)
    return path


def three_seeds(root: Path) -> list[Path]:
    """λ = 0.1 is 0.03 above λ = 0, up to 0.001 of the seed's own, which is far less than seeds differ."""
    paths = []
    for seed, (base, own) in enumerate(((0.30, 0.001), (0.40, -0.001), (0.50, 0.0))):
        paths.append(scored(root, 0.0, seed, evaluation(base)))
        paths.append(
            scored(root, 0.1, seed, evaluation(base + 0.03 + own), evaluation(0.9, step=50, time="2026-02-01"))
        )
    return paths


def differences(result: Result) -> list[dict[str, Any]]:
    table = result.tables.get("Differences in pairs of seeds")
    return [] if table is None else table.to_dict("records")


def test_pairs_over_seeds(tmp_path: Path) -> None:
    """Breaks if scores are not paired by seeds, an older step is taken for the newest, or a table loses a run."""
    found = task_scores.analyse(load(*three_seeds(tmp_path)), Options())
    (row,) = differences(found)
    assert row["comparison"] == "λ = 0.1 minus λ = 0"
    assert (row["task"], row["metric"], row["shots"], row["verdict"]) == ("arc", "acc", "0", "better")
    assert row["difference"].startswith("+0.0300 [+0.0275, +0.0325] (3 seeds")
    assert found.findings[0].startswith("6 scores at 1 task; 1 of 1 paired differences exclude zero")
    scores = found.tables["Scores"]
    assert list(scores["score"][scores["run"] == "λ = 0"]) == [0.30, 0.40, 0.50]
    assert set(scores["standard error"]) == {0.02}
    assert set(scores["step"]) == {100}
    assert {"filter", "weights"} & set(scores.columns) == set()


def test_unlike_is_not_compared(tmp_path: Path) -> None:
    """Breaks if scores over other documents, of another step or of two seeds make a difference, or without a word."""
    paths = three_seeds(tmp_path)
    write_evaluation(RunFolder(paths[1]).evaluations / "step_00000100_other.json", evaluation(0.7, hash_="other"))
    found = task_scores.analyse(load(*paths[:4]), Options())
    assert [row["verdict"] for row in differences(found)] == ["2 seeds: too few for a claim (3 at least)"]
    assert found.notes[-1].startswith("arc: runs were asked 2 different sets of documents or prompts")
    assert len(found.tables["Scores"]) == 5
    late = scored(tmp_path, 0.1, 3, evaluation(0.5, step=50))
    found = task_scores.analyse(load(late, scored(tmp_path, 0.0, 3, evaluation(0.4))), Options())
    assert not differences(found)
    assert "1 pairs of scores are of different steps, and were not compared" in found.notes
    with pytest.raises(InputError, match=r"no run has scores at tasks; `python -m weights\.lm_eval"):
        task_scores.analyse(load(scored(tmp_path, 0.2, 0)), Options())


def test_a_command_replaces_only_its_own_file(tmp_path: Path) -> None:
    """Breaks if other tasks, shots or precision overwrite a score, or the same command leaves two."""
    path = scored(tmp_path, 0.0, 0, evaluation(0.1), evaluation(0.2, batch=2, time="2026-01-02"))
    folder = RunFolder(path)
    ((_, kept),) = read_evaluations(folder)[0].items()
    assert kept.scores[0].value == 0.2
    for other in ({"tasks": ["b"]}, {"shots": 5}, {"precision": "bf16-mixed"}, {"weights": "ema_0.99"}, {"limit": 9}):
        one = evaluation(0.3, **other)
        write_evaluation(folder.evaluations / one.file_name, one)
    assert len(read_evaluations(folder)[0]) == 6


def test_damaged_files_are_named_and_archives_carry_the_rest(tmp_path: Path) -> None:
    """Breaks if a damaged file ends an analysis or is passed over in silence, or an archive has other scores than the folder."""
    paths = three_seeds(tmp_path / "runs")
    plain = write_run(tmp_path / "plain", steps=100)
    bad = RunFolder(paths[0]).evaluations
    (bad / "torn.json").write_text("{")
    (bad / "nan.json").write_text(json.dumps({**evaluation(0.1).model_dump(), "scores": [{"value": "0.3"}]}))
    (bad / "newer.json").write_text(json.dumps({**evaluation(0.1).model_dump(), "format": 2}))
    runs = load(*paths)
    assert CATALOGUE["lm_eval"].fits(runs)
    assert not CATALOGUE["lm_eval"].fits(load(plain))
    problems = runs[0].late_problems
    assert [Path(text.split()[2]).name for text in problems] == ["nan.json", "newer.json", "torn.json"]
    assert archive([*map(str, paths), str(plain), "--out", str(tmp_path / "out")]) == 0
    archives = load(*sorted((tmp_path / "out").glob("wd*.parquet")))
    assert [run.evaluations[0] for run in sorted(archives, key=lambda run: run.path.name)] == [
        run.evaluations[0] for run in sorted(runs, key=lambda run: run.path.name)
    ]
    assert len(next(run for run in archives if run.path.name == "wd0.0-0").problems) == 3
    assert b'"lm_eval"' not in (tmp_path / "out" / "plain.parquet").read_bytes()
