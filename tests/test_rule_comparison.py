"""Rules against rules: which beats decoupled decay at its own best, by the declared rule, and where the report says it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from analysis import loss_curves, rules
from analysis.__main__ import main
from analysis.command import Options
from analysis.runs import Run
from configs.decay_laws import LAWS
from configs.errors import InputError
from record.run import RunFolder
from tests.recorded import cell_runs, load

pytestmark = pytest.mark.slow  # by its length alone: `make check` takes a minute

PLAIN = Options()
OWN = (0.0, 0.1, 0.2)  # the level of each seed, which cancels in pairs


def seeds(level: float, *wiggles: float) -> list[float]:
    return [level + own + wiggle for own, wiggle in zip(OWN, wiggles or (0.0002, -0.0002, 0.0), strict=True)]


BASE = {"lr": 0.01, "weight_decay": 0.05}
SWD = {"decay_rule": "swd", "lr": 0.02, "weight_decay": 5e-5}
LION = {"algorithm": "lion", "betas": [0.9, 0.99], "lr": 0.002, "weight_decay": 0.25}
CAUTIOUS = {"decay_rule": "cautious", "lr": 0.01, "weight_decay": 0.15}
HYPERBALL = {"decay_rule": "hyperball", "lr": 0.007, "weight_decay": 0.0}


def compared(root: Path) -> list[Run]:
    runs = (
        cell_runs(root, BASE, seeds(3.0, 0.0, 0.0, 0.0))
        + cell_runs(root, SWD, seeds(2.9))
        + cell_runs(root, LION, seeds(3.1))
    )
    return runs + cell_runs(root, CAUTIOUS, seeds(3.0)) + cell_runs(root, HYPERBALL, seeds(3.0, 0.05, -0.05, 0.01))


def test_which_rules_beat_decoupled_decay(tmp_path: Path) -> None:
    """Breaks if a rule is compared with anything but decoupled decay in pairs of a seed, its verdict is not the declared one,
    "undecided" is called the same, or a rule is not told by its name and law."""
    result = rules.analyse(compared(tmp_path), PLAIN)
    table = result.tables["Rules at their own best"].set_index("rule")
    assert list(table.index) == ["decoupled", "cautious", "swd", "hyperball", "lion"]
    assert table["minus decoupled decay"]["swd"].startswith("-0.1000 [-0.1005, -0.0995] (3 seeds)")
    assert dict(table["verdict"]) == {
        "decoupled": "what the others are compared with",
        "swd": "beats decoupled decay",
        "lion": "is behind decoupled decay",
        "cautious": "no difference of interest: within ±0.005",
        "hyperball": "undecided: the interval holds zero",
    }
    assert table["the same?"]["cautious"] == "the same within ±0.01"
    assert table["the same?"]["hyperball"] == "undecided"
    assert table["law"]["swd"] == LAWS["swd"].law
    assert table["λ"]["hyperball"] == "–"
    # η·λ of each at its best, where it is what acts; and how an algorithm's η and λ stand to AdamW's
    assert dict(table["ηλ"]) == {"decoupled": 5e-4, "cautious": 1.5e-3, "swd": 1e-6, "hyperball": "–", "lion": 5e-4}
    assert "a third to a tenth of AdamW's" in table["its scale"]["lion"]
    assert table["its scale"]["swd"] == ""
    assert result.findings[0] == (
        "Of 4 rules and algorithms (Holm's correction over 4) beat decoupled decay: swd (η = 0.02, λ = 5e-05); are behind it: lion "
        "(η = 0.002, λ = 0.25); differ by nothing of interest: cautious (η = 0.01, λ = 0.15); are undecided: hyperball (η = 0.007)."
    )
    assert all(claim.primary for claim in result.claims)
    # the figure has each arm's difference under its name, and the common base is none of them
    (panel,) = result.figures[0].panels
    drawn = dict(zip(panel.ticks.values(), panel.lines[0].y, strict=True))
    assert drawn == {one.name.split(" (")[0]: one.estimate for one in result.claims}
    assert set(table["at the pilot's best"]) == {rules.NO_PILOT}


def test_holms_family_is_all_that_was_to_be_compared(tmp_path: Path) -> None:
    """Breaks if a rule that lost its runs makes the others' claims easier, or few comparisons are not corrected at all."""
    # by itself told from zero: 0.0085 below, with a standard error of 0.00087 t is 9.8, and p 0.0102
    ends = seeds(2.99, 0.0, 0.003, 0.0015)
    both = cell_runs(tmp_path, BASE, seeds(3.0, 0.0, 0.0, 0.0)) + cell_runs(tmp_path, SWD, ends)
    alone = rules.analyse(both, PLAIN)
    assert alone.claims[0].verdict == "beats decoupled decay"
    for i, rule in enumerate(("cautious", "corrected", "rotational", "independent", "l2_loss")):
        for run in cell_runs(tmp_path, {"decay_rule": rule, "lr": 0.01, "weight_decay": 0.1 + i}, seeds(3.0)):
            RunFolder(run.path).write_status("diverged", 60, 60)
    lost = rules.analyse(load(*sorted(tmp_path.iterdir())), PLAIN)
    assert lost.claims[0].verdict.startswith("undecided after Holm's correction over 6 comparisons")
    assert "Of 6 rules and algorithms (Holm's correction over 6) beat decoupled decay: none" in lost.findings[0]
    assert "have no run that ended: l2_loss, independent, corrected, cautious, rotational" in lost.findings[0]


def test_chosen_by_the_same_seeds(tmp_path: Path) -> None:
    """Breaks if a rule that was searched with the seeds that judge it makes a primary claim, or its search is not told."""
    runs = compared(tmp_path) + cell_runs(tmp_path, SWD | {"lr": 0.04}, seeds(2.8))
    result = rules.analyse(runs, PLAIN)
    (swd,) = [claim for claim in result.claims if claim.name.startswith("swd")]
    assert swd.name == "swd (η = 0.04, λ = 5e-05) minus decoupled (η = 0.01, λ = 0.05)"
    assert not swd.primary
    assert swd.condition == "η and λ chosen by the seeds that are compared"
    assert sum(claim.primary for claim in result.claims) == 3


def test_the_pilot_says_whether_a_rule_is_tuned(tmp_path: Path) -> None:
    """Breaks if a pilot's seed enters a claim, or a rule that is judged elsewhere than at its pilot's best passes for tuned."""
    runs = compared(tmp_path)
    pilot = [one for lr in (0.01, 0.02) for one in cell_runs(tmp_path, SWD | {"lr": lr}, [2 + lr, 2 + lr], 100)]
    for lr in (0.0071, 0.005, 0.01, 0.0141, 0.02):
        pilot += cell_runs(tmp_path, BASE | {"lr": lr}, [3 + abs(math.log(lr / 0.01))] * 2, 100)
    for decay in (0.0167, 0.15):
        pilot += cell_runs(tmp_path, BASE | {"weight_decay": decay}, [3.5, 3.5], 100)
    result = rules.analyse(runs + pilot, PLAIN)
    table = result.tables["Rules at their own best"].set_index("rule")
    assert table["at the pilot's best"]["decoupled"] == "yes"
    assert table["at the pilot's best"]["swd"] == "no: the pilot's best is η = 0.01, λ = 5e-05"
    assert table["at the pilot's best"]["lion"] == "no: no run of the pilot is of it"
    assert set(table["n"]) == {3}
    assert "swd not at the pilot's best, inside its cells" in result.claims[1].conditions
    assert "decoupled not" not in result.claims[1].conditions
    with pytest.raises(InputError, match="seeds of a pilot, which choose η and λ and enter no claim"):
        rules.analyse(pilot, PLAIN)


def test_which_seeds_are_a_pilots(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if runs of a seed such as 1337 are left out of the claims without a word, or --pilot-seeds-from does not mend it."""
    for section, level in ((BASE, 3.0), (LION, 3.1)):
        cell_runs(tmp_path / "three", section, seeds(level))
    cell_runs(tmp_path / "three", SWD, seeds(2.9), 1337)
    folder = str(tmp_path / "three")
    assert main(["rules", folder]) == 0
    text = capsys.readouterr().out
    assert "3 runs are taken as the pilot's, for their seeds.init is 100 or above (1337, 1338, 1339)" in text
    mend = "all its 3 runs have seeds of a pilot (1337, 1338, 1339); if they are no pilot, --pilot-seeds-from 1340 compares them"
    assert f"swd is not compared: {mend}" in text
    assert "Of 1 rules and algorithms" in text
    assert main(["rules", folder, "--pilot-seeds-from", "1340"]) == 0
    text = capsys.readouterr().out
    assert "pilot's, for" not in text
    assert "Of 2 rules and algorithms" in text
    # one arm is left: the refusal says which were taken for a pilot's, and what would work
    cell_runs(tmp_path / "two", BASE, seeds(3.0))
    cell_runs(tmp_path / "two", SWD, seeds(2.9), 1337)
    assert main(["rules", str(tmp_path / "two")]) == 2
    told = capsys.readouterr().err
    assert "the 3 runs that are no pilot's are of one decay rule and algorithm" in told
    assert f"swd is not compared: {mend}" in told
    assert main(["rules", folder, "--pilot-seeds-from", "0"]) == 2
    assert "leaves no seed for claims" in capsys.readouterr().err


def test_the_report_has_the_section(tmp_path: Path) -> None:
    """Breaks if a report of several rules does not say which beat decoupled decay, or one of a single rule has the section."""
    compared(tmp_path / "runs")
    assert main(["report", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "index.html").read_text()
    assert "Decay rules" in page
    assert "beats decoupled decay" in page
    assert LAWS["swd"].law in page
    cell_runs(tmp_path / "one", BASE, seeds(3.0))
    assert main(["report", str(tmp_path / "one"), "--out", str(tmp_path / "out")]) == 0
    assert "Rules at their own best" not in (tmp_path / "out" / "index.html").read_text()


def test_rules_at_one_decay_are_compared_with_decoupled(tmp_path: Path) -> None:
    """Breaks if runs of several rules at one λ are compared with whichever rule comes first in the alphabet."""
    same = {"lr": 0.01, "weight_decay": 0.05}
    for rule, level in (("cautious", 2.9), ("decoupled", 3.0), ("swd", 3.1)):
        cell_runs(tmp_path, {"decay_rule": rule, **same}, seeds(level))
    result = loss_curves.analyse(load(*sorted(tmp_path.iterdir())), PLAIN)
    assert {claim.name.partition(" minus ")[2] for claim in result.claims} == {"decay_rule = decoupled"}
