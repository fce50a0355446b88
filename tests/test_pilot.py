"""How each rule is tuned: the pilot's rounds, what a sweep says of them, and the files that begin them."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, get_args

import pytest

from analysis import best_decay, loss_curves
from analysis.arms import arms_of
from analysis.command import Options
from analysis.endpoint import endpoint_of
from analysis.pairing import group_runs
from analysis.tuning import CELLS, rule_by_rule, tuned
from configs.optimisation import Algorithm
from configs.schema import Optim
from record.run import RunFolder
from tests.processes import ROOT
from tests.recorded import cell_runs, load

pytestmark = pytest.mark.slow  # by its length alone: `make check` takes a minute

PLAIN = Options()
SWEEPS = ROOT / "configs" / "sweeps"
BASE = {"lr": 0.01, "weight_decay": 0.05}
Section = dict[str, Any]


def bowl(section: Section, best: Section) -> float:
    """A loss that is lowest at `best`, and rises with the logarithms of η and λ."""
    ratios = [section[name] / best[name] for name in ("lr", "weight_decay") if best[name]]
    return 3 + sum(0.04 * math.log2(ratio) ** 2 for ratio in ratios)


@pytest.mark.parametrize(
    ("start", "best", "inside"),
    [
        ({"lr": 0.01, "weight_decay": 0.05}, {"lr": 0.014, "weight_decay": 0.05}, True),
        ({"decay_rule": "swd", "lr": 0.01, "weight_decay": 5e-5}, {"lr": 0.02, "weight_decay": 1.5e-4}, True),
        ({"decay_rule": "hyperball", "lr": 0.01, "weight_decay": 0.0}, {"lr": 0.04, "weight_decay": 0.0}, True),
        ({"decay_rule": "selective_projection", "lr": 0.01, "weight_decay": 0.333}, {"lr": 0.01, "weight_decay": 5.0}, True),
        ({"algorithm": "lion", "betas": [0.9, 0.99], "lr": 0.001, "weight_decay": 0.1}, {"lr": 1.0, "weight_decay": 0.1}, False),
    ],
)  # fmt: skip
def test_the_procedure_finds_the_best(start: Section, best: Section, inside: bool, tmp_path: Path) -> None:
    """Breaks if the rounds do not end at the lowest cell, end without its neighbours, or take more cells than the budget."""
    coming, rounds = [start], 0
    while coming and rounds < 20:
        rounds += 1
        for section in coming:
            cell_runs(tmp_path, section, [bowl(section, best)] * 2, 100)
        groups = group_runs(load(*sorted(tmp_path.iterdir())))[0]
        (arm,) = arms_of(groups)
        state = tuned(arm, endpoint_of(groups))
        coming = state.coming
        assert all(set(section) == set(start) for section in coming)
    assert state.best is not None
    assert len(arm.cells) <= CELLS
    assert state.is_inside == inside
    rate = state.best.runs[0].fields["optim.lr"]
    if inside:
        assert rate == pytest.approx(best["lr"], rel=0.05)
        assert state.best.decay == pytest.approx(
            min(best["weight_decay"], 1.0) if best["weight_decay"] == 5.0 else best["weight_decay"], rel=0.05
        )
    else:
        assert "not inside (" in state.words
        assert "budget of 12 cells is used up" in state.words


def test_a_cell_that_is_lost_or_not_finished(tmp_path: Path) -> None:
    """Breaks if a diverged cell is run again or taken for the best, or cells are named before those that run have ended."""
    cell_runs(tmp_path, BASE, [3.0, 3.0], 100)
    high = cell_runs(tmp_path, BASE | {"lr": 0.02}, [2.0, 2.0], 100)
    for run in high:
        RunFolder(run.path).write_status("diverged", 60, 60)
    groups = group_runs(load(*sorted(tmp_path.iterdir())))[0]
    state = tuned(arms_of(groups)[0], endpoint_of(groups))
    assert state.best is not None
    assert state.best.runs[0].fields["optim.lr"] == 0.01
    assert state.words == "to run: η down, λ up, λ down"
    RunFolder(high[0].path).write_status("running", 30, 60)
    groups = group_runs(load(*sorted(tmp_path.iterdir())))[0]
    state = tuned(arms_of(groups)[0], endpoint_of(groups))
    assert (state.coming, state.words) == ([], "1 of its cells have not finished")
    RunFolder(high[0].path).write_status("diverged", 60, 60)
    cell_runs(tmp_path, BASE | {"lr": 0.005}, [2.0], 100)
    groups = group_runs(load(*sorted(tmp_path.iterdir())))[0]
    state = tuned(arms_of(groups)[0], endpoint_of(groups))
    assert (state.coming, state.words) == ([], "1 of its cells have not finished")


def rows_of(name: str) -> list[Section]:
    """The cells of a comparison, without seeds: of the axis, then those with a scale of the head, each as a section `optim`."""
    sweep = json.loads((SWEEPS / f"{name}.json").read_text())
    rows: list[Section] = list(sweep["axes"]["optim"])
    for cell in sweep["cells"]:
        assert cell["model.head_scale"] is True
        row = {field.removeprefix("optim."): value for field, value in cell.items() if field.startswith("optim.")}
        if row not in rows:
            rows.append(row)
    seeds = sweep["axes"]["seeds.*"]
    assert [cell["seeds.*"] for cell in sweep["cells"]] == seeds * (len(sweep["cells"]) // len(seeds))
    return rows


def test_the_shipped_pilot_is_the_procedures_first_round(tmp_path: Path) -> None:
    """Breaks if a rule of the schema is missing from the comparison, the pilot's cells are not the starts with one change each, or
    the page declares other starts than the files have."""
    starts = rows_of("small_rules")
    for name in ("small_rules", "gpt124m_rules"):
        names, pilot = rows_of(name), rows_of(f"{name}_tuning")
        # The sphere is for networks whose outputs do not depend on the weights' norm: a GPT's do.
        # K-FAC has few of the rules, and a comparison of its own (docs/rules.md).
        rules = set(get_args(Optim.model_fields["decay_rule"].annotation)) - {"sphere"}
        assert {row.get("decay_rule", "decoupled") for row in names} == rules
        assert {row.get("algorithm", "adam") for row in names} == set(get_args(Algorithm)) - {"kfac"}
        for i, start in enumerate(names):
            runs = cell_runs(tmp_path / name / str(i), start, [3.0, 3.0], 100)
            _, tables = rule_by_rule(runs, endpoint_of(group_runs(runs)[0]))
            expected = [start, *map(json.loads, tables["Cells to run next"]["cell"])]
            arm = {name: value for name, value in start.items() if name not in ("lr", "weight_decay")}
            mine = [
                row
                for row in pilot
                if {k: v for k, v in row.items() if k not in ("lr", "weight_decay")} == arm
                and (row["weight_decay"] > 0) == (start["weight_decay"] > 0)
            ]
            # later rounds stand behind the first
            assert mine[: len(expected)] == expected, start
    page = (ROOT / "docs" / "rules-study.md").read_text()
    table = re.findall(r"^\| `?([\w ]+)`? \| ([\d.e-]+) \| ([\d.e-]+|none) \|", page, re.MULTILINE)
    told = [(float(lr), 0.0 if decay == "none" else float(decay)) for _, lr, decay in table]
    assert told == [(row["lr"], row["weight_decay"]) for row in starts]
    names = [row.get("algorithm", row.get("decay_rule", "decoupled")) for row in starts]
    assert [name for name, _, _ in table] == ["no decay", *names[1:]]


def test_a_sweep_of_rules(tmp_path: Path) -> None:
    """Breaks if one change is told of the lowest of all rules alone, the pilot's standing is not told, a rule is asked for λ = 0
    that was not meant to have it, or lines of equal ηλ are drawn where η is no factor of the decay."""
    for section in (BASE, {"decay_rule": "independent"}):
        for lr in (0.01, 0.02):
            for decay in (0.05, 0.15):
                cell_runs(tmp_path, section | {"lr": lr, "weight_decay": decay}, [3 + lr + decay] * 2, 100)
    cell_runs(tmp_path, BASE | {"weight_decay": 0.0}, [3.5, 3.5], 100)
    runs = load(*sorted(tmp_path.iterdir()))
    result = best_decay.analyse(runs, PLAIN)
    table = result.tables["One change from the lowest"]
    assert list(table["runs"]) == ["decay_rule = decoupled"] * 4 + ["decay_rule = independent"] * 3
    assert list(table["change"]) == ["none: the lowest", "η", "λ", "λ", "none: the lowest", "η", "λ"]
    best = result.tables["Each rule at its best"].set_index("rule")
    assert list(best.index) == ["no decay", "decoupled", "independent"]
    assert best["its neighbours"]["independent"] == "to run: η down, λ down"
    coming = result.tables["Cells to run next"]
    assert '{"decay_rule": "independent", "lr": 0.005, "weight_decay": 0.05}' in list(coming["cell"])
    assert (
        "The pilot has the best of 0 of 3 rules and algorithms inside its cells; 6 cells are next." in result.findings
    )
    missing = [
        text
        for analysis in (best_decay, loss_curves)
        for text in analysis.analyse(runs, PLAIN).findings
        if "is missing" in text
    ]
    assert missing
    assert not any("independent" in text for text in missing)
    (heat,) = [figure for figure in result.figures if figure.name == "heat"]
    lines = {panel.title: len(panel.heat.equal_products()) for panel in heat.panels if panel.heat}
    assert lines["decay_rule = decoupled"] > 0
    assert lines["decay_rule = independent"] == 0
