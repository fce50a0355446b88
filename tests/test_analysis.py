"""Made-up run folders whose crossings, bias, variance and divergences are known: the analyses recover them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import best_decay, bias_variance, generalisation, loss_curves, precision_gap
from analysis.__main__ import main
from analysis.command import Options, write
from analysis.reading import load_run
from analysis.runs import find_runs
from tests.recorded import base_curve, crossing_runs, load, write_run

pytestmark = pytest.mark.slow  # by its length alone: `make check` takes a minute

PLAIN = Options()


def test_crossing_is_recovered(tmp_path: Path) -> None:
    """Breaks if where λ > 0 comes ahead is read off wrongly, its interval misses it, or one seed makes a claim."""
    result = loss_curves.analyse(load(*crossing_runs(tmp_path, 5)), PLAIN)
    row = result.tables["Losses"].iloc[1]
    assert row["training crossing"].startswith("step 750 [7")
    assert row["validation crossing"].startswith("step 750 [7")
    text = " ".join(result.findings)
    assert "λ = 0.3 minus λ = 0, validation loss at step 1,000: -0.0333" in text
    assert "(5 seeds): helps" in text
    alone = loss_curves.analyse(load(*crossing_runs(tmp_path, 1)), PLAIN)
    assert "one seed: no claim" in " ".join(alone.findings)
    assert "helps" not in " ".join(alone.findings)


def test_mid_run_is_judged_at_the_declared_place(tmp_path: Path) -> None:
    """Breaks if mid-run is read off elsewhere than at the first validation from 45 % on, before a run has come there, or if a
    crossing is told of a difference whose end decides nothing."""
    result = loss_curves.analyse(load(*crossing_runs(tmp_path / "whole", 3)), PLAIN)
    assert "validation loss in mid-run, step 450: +0.0400 [" in " ".join(result.findings)
    assert any("in mid-run" in text and "(3 seeds): higher (exploratory)." in text for text in result.findings)
    for seed in range(4):
        write_run(tmp_path / "young" / f"a{seed}", seed=seed, upto=440)
        write_run(tmp_path / "young" / f"b{seed}", seed=seed, upto=440, decay=0.3)
        ends = 0.05 * (-1) ** seed  # two seeds end above, the others below
        write_run(tmp_path / "split" / f"a{seed}", seed=seed)
        write_run(
            tmp_path / "split" / f"b{seed}",
            lambda s, k=ends: base_curve(s) + 0.1 - (0.101 + k) * s / 1000,
            decay=0.3,
            seed=seed,
        )  # type: ignore[misc]
    young = loss_curves.analyse(load(*sorted((tmp_path / "young").iterdir())), PLAIN)
    assert "mid-run" not in " ".join(young.findings)
    split = loss_curves.analyse(load(*sorted((tmp_path / "split").iterdir())), PLAIN)
    assert "undecided" in " ".join(split.findings)
    assert "Below zero" not in " ".join(split.findings)


def test_bias_and_variance_are_recovered(tmp_path: Path) -> None:
    """Breaks if the parts of a checkpoint's loss are not those that were put in, or the average is not set beside them."""
    bias = {0.0: 0.10, 0.3: 0.02}
    variance = {0.0: 0.05, 0.3: 0.20}
    paths = []
    for decay in (0.0, 0.3):
        for seed in range(3):
            trunk = tmp_path / f"trunk{decay}-{seed}"
            level = 3 + bias[decay] + 0.001 * seed
            whole = level + variance[decay]
            ema = {"val/loss_ema_0.99": lambda s, k=level: np.full(len(s), k + 0.01)}
            rates = {"optim/lr": lambda s: np.full(len(s), 0.1), "weights/norm": lambda s: np.full(len(s), 5.0)}
            paths.append(
                write_run(trunk, lambda s, k=whole: np.full(len(s), k), decay=decay, seed=seed, columns=ema | rates)  # type: ignore[misc]
            )
            for step in (500, 1000):
                path, origin = tmp_path / f"branch{decay}-{seed}-{step}", {"origin": f"{trunk}@{step}"}
                paths.append(
                    write_run(
                        path,
                        lambda s, k=level: np.full(len(s), k),
                        seed=seed,
                        steps=100,
                        branch=origin,
                        optim={"lr": 1e-4},
                    )  # type: ignore[misc]
                )
    result = bias_variance.analyse(load(*paths), PLAIN)
    table = result.tables["Checkpoints"].set_index(["run", "step"])
    for decay in (0.0, 0.3):
        row = table.loc[(f"λ = {decay:g}", 500)]
        assert row["variance part"] == pytest.approx(variance[decay], abs=1e-4)
        assert row["bias part"] == pytest.approx(bias[decay] - bias[0.3], abs=1e-4)
        assert row["seeds"] == 3
    text = " ".join(result.findings)
    assert "λ = 0.3 minus λ = 0, loss at the checkpoint of step 1,000: +0.0700" in text
    assert "variance part at the checkpoint of step 500: +0.1500 [+0.1500, +0.1500] (3 seeds): higher" in text
    assert "branch end at the checkpoint of step 500: -0.0800 [-0.0800, -0.0800] (3 seeds): lower" in text
    assert "over 100 updates removes +0.92 [+0.9" in text
    rates_panel = result.figures[2].panels[0]
    assert rates_panel.lines[0].x == pytest.approx([0.02, 0.02])
    assert result.notes == ["bias parts stand above the lowest branch end, which is that of λ = 0.3 at step 500"]
    # branches of the same effective learning rate: another question, never mixed with the first
    trunks, scaled = [path for path in paths if "trunk" in path.name], []
    for trunk in trunks:
        origin = {"origin": f"{trunk}@500", "lr_by_norm_of": str(trunks[0])}
        path = tmp_path / f"scaled-{trunk.name}"
        scaled.append(write_run(path, lambda s: np.full(len(s), 2.9), steps=100, branch=origin, optim={"lr": 1e-5}))
    both = bias_variance.analyse(load(*paths, *scaled), PLAIN)
    assert both.tables["Checkpoints"].equals(result.tables["Checkpoints"])
    assert "6 branches have a learning rate scaled by norms, and are left out here" in both.notes[0]
    alone = bias_variance.analyse(load(*trunks, *scaled), PLAIN)
    assert set(alone.tables["Checkpoints"]["branch end"]) == {2.9}
    assert "the branches' learning rate is scaled to the effective one of λ 0" in alone.notes
    with pytest.raises(ValueError, match="no branch of one of these runs"):
        bias_variance.analyse(load(paths[0]), PLAIN)


def test_an_average_as_a_branch(tmp_path: Path) -> None:
    """Breaks if an average near its branch's end is not called the same, one that is farther off is, one average is taken for
    another, its horizon is wrong, or branches of one η are not said to differ in η/‖w‖."""
    paths = []
    for seed in range(5):
        for decay, norm in ((0.0, 6.0), (0.3, 3.0)):
            # within 0.01 of the branch at 4 updates, but not for λ = 0.3; 100 updates are too many for both
            near = 3.0 + (0.004 if decay == 0 else 0.02) + 1e-4 * seed
            ema = {
                "val/loss_ema_0.75": lambda s, k=near: np.full(len(s), k),
                "val/loss_ema_0.99": lambda s, k=seed: np.full(len(s), 3.2 + 1e-4 * k),
            }
            trunk = write_run(
                tmp_path / f"t{decay}-{seed}", lambda s: 0 * s + 3.1, decay=decay, seed=seed, steps=2000, columns=ema
            )
            size = {"weights/norm": lambda s, k=norm: 0 * s + k, "optim/lr": lambda s: 0 * s + 1e-4}
            made = {"branch": {"origin": f"{trunk}@1000"}, "optim": {"lr": 1e-4}, "steps": 100, "columns": size}
            path = tmp_path / f"b{decay}-{seed}"
            paths += [trunk, write_run(path, lambda s: 0 * s + 3.0, seed=seed, **made)]  # type: ignore[arg-type]
    result = bias_variance.analyse(load(*paths), PLAIN)
    verdicts = {claim.name: claim for claim in result.claims if "average" in claim.name}
    assert {name: claim.verdict for name, claim in verdicts.items()} == {
        "λ = 0: average over 4 updates (0.002 of the run) minus branch end": "the same within ±0.01",
        "λ = 0: average over 100 updates (0.05 of the run) minus branch end": "differs",
        "λ = 0.3: average over 4 updates (0.002 of the run) minus branch end": "differs",
        "λ = 0.3: average over 100 updates (0.05 of the run) minus branch end": "differs",
    }
    assert {claim.interval.n for claim in verdicts.values()} == {5}
    wide = bias_variance.analyse(load(*paths), Options(margin=10.0))
    assert {claim.verdict for claim in wide.claims if "average" in claim.name} == {"the same within ±10"}
    row = result.tables["Checkpoints"].iloc[0]
    assert row["average, 4 updates"] == pytest.approx(3.0042)
    assert row["average, 100 updates"] == pytest.approx(3.2002)
    assert (
        "the branches have one η, but at one step and seed their effective learning rates η/‖w‖ are up to 2 times apart"
        in (result.notes[0])
    )


def test_precision(tmp_path: Path) -> None:
    """Breaks if the runs that diverged are not named, enter the gaps, or a gap is not paired."""
    paths = []
    for seed in range(2):
        for decay in (0.0, 0.1):
            paths.append(write_run(tmp_path / f"f{seed}{decay}", decay=decay, seed=seed))
            lost = decay == 0 and seed == 1
            curve = (
                (lambda s: base_curve(s) + np.where(s > 700, 3.0, 0.002))
                if lost
                else (lambda s: base_curve(s) + 0.002 * (1 + s * 0))
            )
            paths.append(write_run(tmp_path / f"b{seed}{decay}", curve, decay=decay, seed=seed, precision="bf16-mixed"))
    result = precision_gap.analyse(load(*paths), PLAIN)
    assert result.findings[0] == "1 of 8 runs diverged."
    cells = result.tables["Runs"].set_index("run")
    assert 700 < cells.loc["b10.0", "diverged at"] < 740
    assert cells["diverged at"].notna().sum() == 1
    table = result.tables["Loss gap to float32"]
    gaps = table[table["loss"] == "training"].set_index("run")["gap"]
    assert gaps["λ = 0, precision = bf16-mixed"] == "+0.0020 (1 seed)"
    assert gaps["λ = 0.1, precision = bf16-mixed"] == "+0.0020 (2 seeds)"


def test_sweep_finds_the_best_decay(tmp_path: Path) -> None:
    """Breaks if the best λ is not the parabola's, a failed run takes part, or the heat map puts a loss in another's place."""
    paths = []
    for rate in (0.1, 0.2):
        for decay in (0.0, 0.02, 0.1, 0.5):
            for seed in range(4):
                level = 3 + 0.01 * np.log10(max(decay, 1e-4) / 0.1) ** 2 + 0.001 * seed + rate
                path = tmp_path / f"{rate}-{decay}-{seed}"
                paths.append(
                    write_run(path, lambda s, k=level: np.full(len(s), k), decay=decay, seed=seed, optim={"lr": rate})
                )  # type: ignore[misc]
    failed = write_run(
        tmp_path / "failed", lambda s: np.full(len(s), 1.0), decay=0.1, seed=9, optim={"lr": 0.1}, state="failed"
    )
    result = best_decay.analyse(load(*paths, failed), PLAIN)
    best = result.tables["Best λ"]
    assert list(best["decay"]) == pytest.approx([0.1, 0.1], rel=1e-3)
    assert list(best["seeds"]) == [4, 4]
    assert list(best["low"]) == pytest.approx([0.1, 0.1], rel=1e-3), "the seeds' own minima are one"
    heat = result.figures[1].panels[0].heat
    assert heat is not None
    assert (heat.x, heat.y) == ([0.1, 0.2], [0.0, 0.02, 0.1, 0.5])
    assert heat.z[2] == pytest.approx([3.1015, 3.2015])
    assert len(result.tables["Runs"]) == 33
    assert (tmp_path / "out" / "heat.svg") in write(result, tmp_path / "out")
    numbers = pd.read_csv(tmp_path / "out" / "heat.csv")
    assert numbers[(numbers["x"] == 0.2) & (numbers["row"] == 0.1)]["y"].item() == pytest.approx(3.2015)


def test_generalisation(tmp_path: Path) -> None:
    """Breaks if the gap is not validation minus training loss at the same place."""
    # a training loss that falls by 0.001 an update, and in the middle of the last 2 % lies 0.03 below validation's end
    falling = [
        write_run(tmp_path / f"{seed}", lambda s: 4 - 0.001 * s, seed=seed, noise=0.0, columns=None)
        for seed in range(2)
    ]
    for path in falling:
        rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        for row in rows:
            row |= {"val/loss": row["val/loss"] + 0.03} if "val/loss" in row else {}
        (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    # the mean of the last 20 updates is that of 9.5 updates before the end
    assert [generalisation.gap(run) for run in load(*falling)] == pytest.approx([0.03 - 0.0095] * 2, abs=1e-6)
    runs = load(
        *(write_run(tmp_path / f"f{seed}", lambda s: np.full(len(s), 3.0), seed=seed, noise=0.0) for seed in range(2))
    )
    assert [generalisation.gap(run) for run in runs] == pytest.approx([0.0, 0.0], abs=1e-12)
    result = generalisation.analyse(runs, PLAIN)
    assert result.figures[0].panels[0].diagonal
    assert "+0.0000 to +0.0000 nats over 2 runs" in result.findings[0]


def test_damaged_and_unfinished_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if a torn line, a missing column, an empty run, null rows, or rows that a resume superseded go uncounted or are
    fatal; or unfinished runs are compared where their twins have not come to."""
    whole = write_run(tmp_path / "runs" / "whole")
    torn = write_run(tmp_path / "runs" / "torn", decay=0.1, upto=400, state="running")
    with open(torn / "metrics.jsonl", "a") as file:
        file.write(
            'garbage\n{"step": 401, "tokens": 1, "train/loss": null, "nonfinite": ["train/loss"]}\n{"step": 402, "tra'
        )
    resumed = write_run(tmp_path / "runs" / "resumed", decay=0.2)
    with open(resumed / "metrics.jsonl", "a") as file:
        file.write('{"step": 990, "tokens": 1, "event": "resume"}\n')
    empty = write_run(tmp_path / "runs" / "empty", decay=0.3, upto=0, state="running")
    (empty / "metrics.jsonl").unlink()
    bare = write_run(tmp_path / "runs" / "bare", decay=0.4)
    rows = [json.loads(line) for line in (bare / "metrics.jsonl").read_text().splitlines()]
    (bare / "metrics.jsonl").write_text("".join(json.dumps({"step": r["step"], "tokens": 0}) + "\n" for r in rows))
    for analysis in ("loss_curves", "sweep", "effective_lr", "generalisation", "precision"):
        assert main([analysis, str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0, analysis
    text = capsys.readouterr().out
    assert "metrics.jsonl:402: not a row" in text
    assert "10 rows were superseded" in text
    assert "nothing recorded yet (running)" in text
    assert "2 of 5 runs are not finished" in text
    assert "1 rows hold values that were not finite" in text
    assert "1001 rows without a training loss" in text
    assert "λ = 0.1 minus λ = 0, training loss at step 400" in text
    assert load_run(resumed).last_step == 990
    assert load_run(whole).superseded == 0
    for name in ("loss.png", "loss.svg", "loss.csv", "generalisation.png", "loss_curves_table1.csv"):
        assert (tmp_path / "out" / name).stat().st_size > 100, name


def test_what_names_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if a folder of runs, a glob or a sweep file names other runs, or a folder that is no run is a traceback."""
    paths = [write_run(tmp_path / "wd" / name) for name in ("a", "b")]
    assert find_runs([str(tmp_path / "wd")])[0] == paths
    assert find_runs([str(tmp_path / "wd" / "*"), str(paths[0])])[0] == paths
    with pytest.raises(ValueError, match="names no run folder"):
        find_runs([str(tmp_path / "nothing*")])
    given = {
        "name": "wd",
        "base": str(Path("configs/quickstart.json").resolve()),
        "set": {"data.path": "not/prepared"},
        "axes": {"optim.weight_decay": [0.0, 0.1]},
    }
    (tmp_path / "sweep.json").write_text(json.dumps(given))
    with pytest.raises(ValueError, match="names no run folder"):
        find_runs([str(tmp_path / "sweep.json")], tmp_path)
    write_run(tmp_path / "wd" / "weight_decay0.1-0123456789", decay=0.1)
    found, notes = find_runs([str(tmp_path / "sweep.json")], tmp_path)
    assert [path.name for path in found] == ["weight_decay0.1-0123456789"]
    assert "1 of its 2 runs have no folder" in notes[0]
    assert main(["loss_curves", str(tmp_path / "nothing*"), "--out", str(tmp_path / "x")]) == 2
    (paths[0] / "config.json").write_text("{")
    assert main(["loss_curves", str(paths[0]), "--out", str(tmp_path / "x")]) == 2
    assert "is not a readable run folder" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
