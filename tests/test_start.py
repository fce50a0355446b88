"""The start of a run: initial weights of the width, and what the plan says of settings that are hardly meant."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis import gate
from analysis.command import Options
from analysis.pairing import Group
from analysis.reading import load_run
from analysis.runs import find_runs
from configs.identity import experiment, run_id
from configs.plan import make_plan
from configs.prepared import DataSummary
from configs.schema import RunConfig
from data import prepare
from slurm import submit
from tests.processes import ROOT
from tests.recorded import load, write_run

DATA = DataSummary("d" * 64, 512, 10**7, 10**5)


def test_initial_weights_follow_the_width(tiny_config: Callable[..., RunConfig]) -> None:
    """Breaks if a narrow network gets the standard deviation of a wide one, or a run of P1's width another name."""
    wide = {"model": {"n_embd": 768, "n_head": 12}}
    assert tiny_config({"model": {"n_embd": 48}}).model.init_std == pytest.approx(0.08)
    assert tiny_config(wide).model.init_std == 0.02
    assert tiny_config({"model": {"init_std": 0.05}}).model.init_std == 0.05

    def name(*overrides: dict[str, Any]) -> str:
        return run_id(experiment(tiny_config(*overrides), "d" * 64))

    explicit = {"model": {"init_std": 0.02}}
    assert name(wide) == name(wide, explicit), "0.02 by the rule and by hand are one experiment"
    assert "init_std" not in experiment(tiny_config(explicit), "d" * 64)["model"], (
        "runs before the rule keep their names"
    )
    assert name() != name(explicit), "a narrow network by the rule is not one of 0.02"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ({"optim": {"lr": 0.01}, "model": {"init_std": 0.02}}, "0.5 times model.init_std 0.02"),
        ({"optim": {"lr": 1e-5}}, "leave their random start slowly"),
    ],
)
def test_warned_of(tiny_config: Callable[..., RunConfig], override: dict[str, Any], words: str) -> None:
    """Breaks if a legal setting that is hardly meant goes by without a word."""
    assert [text for text in make_plan(tiny_config(override), 1, DATA).cautions if words in text]
    assert not make_plan(tiny_config(), 1, DATA).cautions, "the tiny configuration itself is sound"


def test_a_vocabulary_far_above_the_tokenizers(tiny_config: Callable[..., RunConfig]) -> None:
    """Breaks if a model that is mostly rows for no token goes by without a word, or a padded vocabulary does not."""
    small = tiny_config({"model": {"vocab_size": 50304, "n_embd": 64}})
    found = make_plan(small, 1, DataSummary("d" * 64, 2048, 10**7, 10**5)).cautions
    assert len(found) == 1
    assert (
        "model.vocab_size 50,304 over a tokenizer of 2,048: 48,256 rows of the embedding stand for no token" in found[0]
    )
    assert "3,088,384 of 3,319,104 parameters (93%); set model.vocab_size to 2,048" in found[0]
    untied = tiny_config({"model": {"vocab_size": 50304, "n_embd": 64, "tied_head": False}})
    assert "6,176,768 of 6,538,560" in make_plan(untied, 1, DataSummary("d" * 64, 2048, 10**7, 10**5)).cautions[0]
    assert not make_plan(small, 1, DataSummary("d" * 64, 50257, 10**7, 10**5)).cautions, "P1's padding"
    padded = tiny_config({"model": {"vocab_size": 128}})
    assert not make_plan(padded, 1, DataSummary("d" * 64, 65, 10**7, 10**5)).cautions, "65 characters, in whole tiles"
    assert not make_plan(small, 1, None).cautions


def test_effective_rank() -> None:
    """Breaks if the measure of a collapsed embedding is not 1 for one direction and all of them for equal ones."""
    rows = np.random.default_rng(0).standard_normal((50, 1))
    assert gate.effective_rank(rows * np.array([1.0, -2.0, 0.5])) == pytest.approx(1)
    assert gate.effective_rank(np.eye(7)) == pytest.approx(7)
    two = np.diag([3.0, 3.0, 0.0, 0.0])
    assert gate.effective_rank(two) == pytest.approx(2)


def test_seeds_are_compared_on_the_same_windows(tmp_path: Path) -> None:
    """Breaks if the windows that each seed trains on count as a difference of starts where all were evaluated on the same ones, or
    one that was not evaluated is compared by another loss than the rest."""
    group = Group("setting", {}, load(write_run(tmp_path / "run", steps=60)))
    starts = [gate.Start(4.0 + 0.1 * seed, 4.2 + 0.01 * seed, 1.0, 0.5) for seed in range(3)]
    for alike, lost, spread, verdict in (
        (True, False, 0.02, "sound"),
        (False, False, 0.2, "failed"),
        (True, True, 0.2, "failed"),
    ):
        given = [replace(starts[0], validation=float("nan")), *starts[1:]] if lost else starts
        row, _ = gate._judge(group, given, alike)
        assert (row["range over seeds"], row["start"]) == (pytest.approx(spread), verdict), (alike, lost)


@pytest.mark.engine
@pytest.mark.timeout(1800)
def test_the_quickstarts_start_is_sound(tmp_path: Path) -> None:
    """Breaks if the shipped quickstart starts as badly as it once did, or the gate lets such a start through."""
    prepare.main(f"--source python-source --vocab-size 1024 --out {tmp_path / 'python'}".split())
    sweep = json.loads((ROOT / "configs" / "sweeps" / "small_gate.json").read_text())
    sweep["base"] = str(ROOT / "configs" / "quickstart.json")
    sweep["axes"] = {"seeds.*": sweep["axes"]["seeds.*"]}  # AdamW's alone: SGD's is judged when its sweep is run
    sweep["set"] |= {"data.path": str(tmp_path / "python"), "schedule.steps": 200, "eval.tokens": 4096}
    small = {"model.init_std": 0.02, "schedule.warmup_steps": 60, "schedule.steps": 150}
    sweep["cells"] = [small | {"seeds.*": seed} for seed in (0, 1)]
    (tmp_path / "gate.json").write_text(json.dumps(sweep))
    words = [str(tmp_path / "gate.json"), "--runs", str(tmp_path), "--local", "--jobs", "1"]
    assert submit.main(words) == 0
    runs = [load_run(path) for path in find_runs([str(tmp_path / "small_gate")])[0]]
    table = gate.analyse(runs, Options(by=["model.init_std"])).tables["Starts"].set_index("seeds")
    assert table.loc[5, "start"] == "sound"
    assert table.loc[5, "range over seeds"] < 0.05
    assert table.loc[2, "start"] == "failed"
    assert table.loc[2, "largest gradient norm"] > 5
