"""The plan's five claims, on made-up runs whose differences are known, and on the study's own records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis import declared
from analysis.command import Options, load_runs
from analysis.statistics import interval
from configs.errors import InputError
from record.run import RunFolder
from tests.processes import ROOT
from tests.recorded import base_curve, load, write_run

pytestmark = pytest.mark.slow  # by its length alone: `make check` takes a minute

DECAY = 0.0165  # over 1,000 updates at η = 0.1: Σ = 1.65


def write(root: Path, seed: int, kind: str, decay: float, above: Any, branch: float, **schedule: Any) -> list[Path]:
    """A trunk that lies `above` the base curve, and its branch from 60 %, which ends by `branch` above the base curve's end."""
    luck = 0.002 * np.random.default_rng([seed, round(1e4 * decay), len(kind)]).standard_normal()
    trunk = root / f"{kind}-{decay}-{seed}{'-matched' if schedule else ''}"
    folds = {"optim/decay_sum": lambda s: decay * 0.1 * s}
    paths = [
        write_run(
            trunk,
            lambda s: base_curve(s) + above(s) + luck,
            decay=decay,
            seed=seed,
            columns=folds,
            schedule={"kind": kind, **schedule},
        )
    ]
    if not schedule:
        fields = {"schedule": {"kind": "constant"}, "branch": {"origin": f"{trunk}@600"}, "optim": {"lr": 0.001}}
        end = float(base_curve(np.array([1000.0]))[0]) + branch + luck
        paths.append(write_run(root / f"{trunk.name}-b", lambda s: end + 0 * s, seed=seed, steps=200, **fields))
    return paths


def five(root: Path, seeds: int = 5, matched: float = 0.001) -> list[Path]:
    """Every claim as the paper has it: behind by 0.08 until 80 %, ahead by 0.02 at the end, branches closer by 0.06."""
    paths, order = [], lambda s: np.where(s < 800, 0.08, -0.02)
    for seed in range(seeds):
        for kind in ("cosine", "constant"):
            paths += write(root, seed, kind, 0.0, lambda s: 0 * s, 0.0)
            paths += write(root, seed, kind, DECAY, order, -0.02 if kind == "constant" else 0.02)
        leader = {"match": {"reference": str(root / f"cosine-{DECAY}-{seed}")}}
        paths += write(root, seed, "cosine", 0.0, lambda s: order(s) + matched, 0.0, **leader)
    return paths


def verdicts(paths: list[Path]) -> pd.Series:
    table = declared.analyse(load(*paths), Options()).tables["Claims"]
    return table.set_index(table["claim"].str.partition(":")[0])["verdict"]


def test_all_as_the_paper_has_them(tmp_path: Path) -> None:
    """Breaks if a claim is read off other runs or at another place, or a sign is turned."""
    paths = five(tmp_path)
    result = declared.analyse(load(*paths), Options())
    table = result.tables["Claims"].set_index(result.tables["Claims"]["claim"].str.partition(":")[0])
    assert list(table["verdict"]) == ["holds"] * 5
    means = {key: [float(part.split()[0]) for part in text.split("; ")] for key, text in table["difference"].items()}
    for key, expected in {"1a": [0.08], "1b": [-0.02], "2": [-0.06], "4": [0.08, -0.02]}.items():
        assert means[str(key)] == pytest.approx(expected, abs=0.004), key
    assert means["3"][0] < 0.01
    assert len(result.findings) == 5


def test_what_is_missing_counts(tmp_path: Path) -> None:
    """Breaks if Holm's correction is over the claims that have run alone, or two seeds give a verdict."""
    paths = [
        path for path in five(tmp_path) if path.name.startswith("cosine") and not path.name.endswith(("-b", "-matched"))
    ]
    table = declared.analyse(load(*paths), Options()).tables["Claims"]
    assert list(table["verdict"]) == ["holds", "holds", "not run", "not run", "not run"]
    p, after = (table[name].dropna().astype(float).min() for name in ("p", "p after Holm"))
    assert after == pytest.approx(5 * p, rel=0.1)
    assert verdicts([path for path in paths if path.name[-1] in "01"])["1a"] == "no claim: 2 seeds"
    with pytest.raises(InputError, match=r"0 and 1\.65 at one η"):
        declared.analyse(load(*[path for path in paths if "0.0165" in path.name]), Options())


def test_the_other_verdicts() -> None:
    """Breaks if the wrong side, or a small difference that is certain, is undecided, or a scattered one is not."""
    for values, side, expected in (
        ([0.02, 0.021, 0.022], -1, "does not hold"),
        ([-0.02, -0.021, -0.022], -1, "holds"),
        ([0.001, -0.001, 0.0005], -1, "does not hold"),
        ([-0.05, 0.03, -0.02], -1, "undecided"),
    ):
        test = declared.Comparison(((interval(values), side),))
        assert test.verdict(test.p) == expected, values
        assert (test.p == 1.0) == (interval(values).mean * side < 0)
    for values, expected in (
        ([0.01, 0.011, 0.012], "holds"),
        ([0.05, 0.051, 0.052], "does not hold"),
        ([0.01, 0.02, 0.03], "undecided"),
    ):
        test = declared.Comparison(((interval(values), 0),), margin=0.02)
        assert test.verdict(test.p) == expected, values
    # the level at which the 90 % interval touches the margin
    edge = interval([0.01, 0.012, 0.014])
    assert declared.Comparison(((edge, 0),), margin=edge.mean + edge.half(0.9)).p == pytest.approx(0.05)


def test_of_the_records() -> None:
    """Breaks if the study's own 24 tokens per parameter cannot be read."""
    runs, _ = load_runs([str(ROOT / "docs/study/records/study_s24")], None)
    table = declared.analyse(runs, Options()).tables["Claims"]
    assert list(table["n"]) == [8, 8, 8, 0, 0]
    assert table["difference"][0].startswith("+0.0869 [+0.0787, +0.0951]")


def test_runs_of_one_setting_are_judged(tmp_path: Path) -> None:
    """Breaks if λ = 0 of one setting is set against λ > 0 of another, or a pilot's seeds enter a claim."""
    mine = [path for path in five(tmp_path / "a") if path.name.startswith("cosine") and path.name[-1].isdecimal()]
    before = verdicts(mine)
    pilots = [
        path
        for seed in (100, 101)
        for decay, above in ((0.0, 0.0), (DECAY, 9.0))
        for path in write(tmp_path / "p", seed, "cosine", decay, lambda s, up=above: up + 0 * s, 0.0)
    ]
    assert list(verdicts([*mine, *pilots])) == list(before)
    found = declared.analyse(load(*mine, *pilots), Options())
    assert "4 runs of a pilot's seeds (100 and above) enter no claim" in found.notes
    assert list(found.tables["Claims"]["n"])[:2] == [5, 5]
    # two lengths are two settings
    longer = write_run(tmp_path / "longer", steps=2000, schedule={"kind": "cosine"})
    with pytest.raises(InputError, match=r"several settings: they differ in schedule\.steps"):
        declared.analyse(load(*mine, longer), Options())
    other = write_run(tmp_path / "other", model={"n_layer": 4}, schedule={"kind": "cosine"})
    with pytest.raises(InputError, match=r"several settings: they differ in model\.n_layer"):
        declared.analyse(load(*mine, other), Options())


def test_other_settings_beside_the_main_one() -> None:
    """Breaks if runs that differ from the plan's main setting in one field alone are judged as it, or together with it."""
    cells = [f"study_{name}/seeds[0-2]-*" for name in ("s48", "documents")]
    main, documents = (load_runs([str(ROOT / "docs/study/records" / cell)], None)[0] for cell in cells)
    alone, both, other = (declared.analyse(runs, Options()) for runs in (main, [*main, *documents], documents))
    assert both.tables["Claims"].equals(alone.tables["Claims"])
    assert any(note.endswith("runs of other settings are left out") for note in both.notes)
    assert (both.title, other.title) == ("The plan's primary claims", "The plan's rules, on other runs")


@pytest.mark.parametrize("match", [{"scope": "tensor"}, {"own": "another"}, {"take": "norms"}])
def test_only_what_claim_3_names(match: dict[str, Any], tmp_path: Path) -> None:
    """Breaks if claim 3 is read off runs matched tensor by tensor, in open loop, or by the norms of layers."""
    paths = five(tmp_path)
    for path in paths:
        if path.name.endswith("-matched"):
            config = json.loads((path / "config.json").read_text())
            config["schedule"]["match"] |= match
            (path / "config.json").write_text(json.dumps(config))
    assert verdicts(paths)["3"] == "not run"


def test_a_pair_on_its_way(tmp_path: Path) -> None:
    """Breaks if claim 3 has a verdict before all of its pairs have ended."""
    paths = five(tmp_path)
    assert verdicts(paths)["3"] == "holds"
    young = next(path for path in paths if path.name.endswith("-matched"))
    RunFolder(young).write_status("running", 700, 1000)
    assert verdicts(paths)["3"] == "no claim yet: 1 of 5 pairs have not ended"
