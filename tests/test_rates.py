"""Effective learning rates, and the equilibrium that rotation and size are compared with."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from analysis import effective_lr
from analysis.command import Options
from analysis.reading import load_run
from configs.equilibrium import predictions, rms, rotation
from tests.recorded import base_curve, load, write_run

PLAIN = Options()


def test_rates_and_equilibrium(tmp_path: Path) -> None:
    """Breaks if the effective learning rate is of another step's norm, a matched run is not set against its reference, or the
    equilibrium is compared with another prediction."""
    columns = {
        "optim/lr": lambda s: 0.1 * (s > 0),
        "weights/norm": lambda s: 5.0 + s,
        "optim/decay_sum": lambda s: 4.0 * s / 1000,
    }
    probes: list[dict[str, Any]] = [
        {
            "step": step,
            "tokens": 0,
            "probe/rotation/kind:mlp.fc": 0.022,
            "probe/predicted_rotation/blocks.0.mlp.fc.weight": 0.02,
            "probe/predicted_rotation/blocks.1.mlp.fc.weight": 0.02,
            "probe/rms/kind:mlp.fc": 0.3,
            "probe/predicted_rms/blocks.0.mlp.fc.weight": 0.2,
            "probe/adam_lr": 100.0,
            "probe/adam_lr_median": step / 1000,
            "probe/adam_idle": 0.25,
        }
        for step in range(100, 1001, 100)
    ]
    reference = write_run(tmp_path / "reference", decay=0.3, columns=columns, probes=probes)
    undecayed = write_run(
        tmp_path / "undecayed", lambda s: base_curve(s) + 0.2, columns={**columns, "weights/norm": lambda s: 9.0 + s}
    )
    match = {"match": {"reference": str(reference)}}
    matched = write_run(tmp_path / "matched", lambda s: base_curve(s) + 0.001, columns=columns, schedule=match)
    runs = load(reference, undecayed, matched)
    rate = effective_lr.effective_lr(runs[0])
    assert rate.index[0] == 1
    assert rate[1] == pytest.approx(0.1 / 5.0)
    assert rate[10] == pytest.approx(0.1 / 14.0)
    sgd = load_run(write_run(tmp_path / "sgd", columns=columns, optim={"algorithm": "sgd"}))
    assert effective_lr.effective_lr(sgd)[10] == pytest.approx(0.1 / 14.0**2)
    result = effective_lr.analyse(runs, PLAIN)
    row = result.tables["Matched runs"].iloc[0]
    assert row["effective LR apart (max, relative)"] == 0
    assert row["matched: at the end"] == pytest.approx(0.001, abs=1e-4)
    assert row["at its own rate: at the end"] == pytest.approx(0.2, abs=1e-4)
    assert "matched +0.0010 (1 seed); at its own rate +0.2000 (1 seed) nats. One seed: no claim." in result.findings[0]
    equilibrium = result.tables["Equilibrium"].iloc[0]
    assert equilibrium["rotation measured/predicted"] == pytest.approx(1.1)
    assert equilibrium["rms measured/predicted"] == pytest.approx(1.5)
    adam = result.tables["Adam effective LR at the end"]
    assert adam.to_dict("records") == [
        {"run": "λ = 0.3, follows = –", "median": 1.0, "mean": 100.0, "idle share": 0.25}
    ]
    # the mean, which elements without a gradient rule, is in the table alone
    assert [panel.ylabel for panel in result.figures[0].panels][1:] == [effective_lr.MEDIAN_LABEL]


def test_no_equilibrium_before_it_is_reached(tmp_path: Path) -> None:
    """Breaks if a run that has seen 1.65 e-folds of its decay is compared with an equilibrium that it cannot be in, or one of an
    earlier version, whose probes have no median, is passed over without a word."""
    probes = [
        {
            "step": step,
            "tokens": 0,
            "probe/rotation/kind:mlp.fc": 0.01,
            "probe/predicted_rotation/blocks.0.mlp.fc.weight": 0.02,
            "probe/rms/kind:mlp.fc": 0.3,
            "probe/predicted_rms/blocks.0.mlp.fc.weight": 0.1,
            "probe/adam_lr": 1.0,
        }
        for step in (500, 1000)
    ]
    columns = {"optim/decay_sum": lambda s: 1.65 * s / 1000}
    paths = [write_run(tmp_path / f"run{s}", seed=s, decay=0.15, columns=columns, probes=probes) for s in range(2)]
    result = effective_lr.analyse(load(*paths), PLAIN)
    assert "Equilibrium" not in result.tables
    assert result.findings == ["Equilibrium not reached, so not compared: λ = 0.15, η = 0.1 (1.65 e-folds of 3)."]
    assert "2 runs were recorded without a median, and have only the mean of Adam's: run0, run1" in result.notes


def test_each_algorithm_has_its_own_prediction() -> None:
    """Breaks if Lion, Muon or SGD is given AdamW's equilibrium, or a rule whose law needs the gradients' size is given one."""
    betas, lr, decay = (0.9, 0.99), 1e-3, 0.1
    known = partial(predictions, betas=betas, momentum=0.95, lr=lr, decay=decay)
    adamw = {"rms": rms(lr, decay), "rotation": rotation(lr, decay, 0.9)}
    assert known("adam", "decoupled", shape=None) == adamw
    # the embeddings under Muon take AdamW's step
    assert known("muon", "independent", shape=None) == adamw
    hidden, lion = known("muon", "decoupled", shape=(64, 256)), known("lion", "corrected", shape=None)
    assert lion["rms"] > 5 * adamw["rms"]
    assert lion["rotation"] < 0.9 * adamw["rotation"]
    assert hidden["rotation"] < 0.9 * adamw["rotation"]
    assert known("muon", "decoupled", shape=(64, 64))["rotation"] != hidden["rotation"]
    for rule, cosine in (("decoupled", 2 * lr * decay * 0.05 / 1.95), ("l2_coupled", 2 * lr * decay / 1.95)):
        assert known("sgd", rule, shape=None) == {"rotation": pytest.approx(math.sqrt(cosine), rel=0.01)}
    for algorithm, rule in (
        ("adam", "l2_coupled"),
        ("lion", "l2_loss"),
        ("adam", "swd"),
        ("sgd", "norm_projection"),
        ("torch.optim.NAdam", "decoupled"),
    ):
        assert known(algorithm, rule, shape=None) == {}, rule
    assert predictions("adam", "decoupled", betas, 0.95, lr, 0.0, None) == {}


def test_a_run_without_prediction_is_named(tmp_path: Path) -> None:
    """Breaks if a run of a rule without a prediction is passed over in silence, or SGD's rotation is dropped for want of a size."""
    row = {"tokens": 0, "probe/rotation/kind:mlp.fc": 0.022, "probe/rms/kind:mlp.fc": 0.3}
    predicted = {"probe/predicted_rotation/blocks.0.mlp.fc.weight": 0.02}
    columns = {"optim/decay_sum": lambda s: 4.0 * s / 1000}
    swd = write_run(
        tmp_path / "swd", decay=0.1, columns=columns, probes=[{"step": 1000, **row}], optim={"decay_rule": "swd"}
    )
    result = effective_lr.analyse(load(swd), PLAIN)
    (finding,) = [text for text in result.findings if "No equilibrium is predicted" in text]
    assert "swd with adam" in finding
    sgd = write_run(
        tmp_path / "sgd",
        decay=0.1,
        columns=columns,
        probes=[{"step": step, **row, **predicted} for step in (500, 1000)],
        optim={"algorithm": "sgd"},
    )
    table = effective_lr.analyse(load(sgd), PLAIN).tables["Equilibrium"]
    assert table["rotation measured/predicted"].tolist() == [pytest.approx(1.1)]
    assert "rms measured/predicted" not in table
