"""A branch that goes on with other data, and what the analysis says of λ before and after."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.adaptation import analyse
from analysis.command import Options
from configs.errors import InputError
from configs.load import load_config
from data.manifest import Manifest
from data.options import Options as Prepared
from data.prepare import prepare
from data.sources import Source
from data.tokenizer import SentencePiece
from slurm import submit
from tests.processes import ConfigFile, finish, losses, start
from tests.recorded import load, write_run
from tests.test_prepare import tiny_files
from weights import evaluate


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory, tiny_data: tuple[Path, Manifest]) -> dict[str, Path]:
    """Other files by the same tokenizer, and by a tokenizer of their own with as large a vocabulary."""
    root, files = tmp_path_factory.mktemp("others"), tiny_files()[::2]
    model = (tiny_data[0] / "tokenizer.model").read_bytes()
    given = Prepared(tiny_data[1].vocab_size, 0.2, seed=0, tokenizer=hashlib.sha256(model).hexdigest())
    prepare(Source.local("text", files), root / "same", given, given=SentencePiece(model))
    prepare(Source.local("text", files), root / "own", Prepared(tiny_data[1].vocab_size, 0.2, seed=0))
    return {name: root / name for name in ("same", "own")}


@pytest.mark.engine
def test_a_branch_goes_on_with_other_data(
    config_file: ConfigFile, others: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks if it does not read the other data from its beginning with the trunk's weights, is not another experiment, cannot be
    moved, or goes on with what is not other, or means something else."""
    trunk = tmp_path / "trunk"
    config = config_file({"checkpoint": {"every": 6}, "schedule": {"kind": "constant", "warmup_steps": 0}})
    finish(start(config, trunk))
    data = {"branch.data": json.dumps({"path": str(others["same"])})}

    def branch(name: str, fields: dict[str, str], *options: str, code: int = 0) -> str:
        settings = [word for item in fields.items() for word in ("--set", "=".join(item))]
        return finish(start(config, tmp_path / name, "--branch", f"{trunk}@6", *settings, *options), code)

    assert "on other data" not in branch("plan", {}, "--dry-run")
    assert "on other data, from its beginning" in branch("plan", data, "--dry-run")
    branch("adapted", data)
    resolved = json.loads((tmp_path / "adapted/config.json").read_text())
    assert (resolved["data"]["path"], resolved["branch"]["data"]) == (str(others["same"]), "other")
    # its first loss is the trunk's model on the first windows of the other data, as a run from nothing would read them
    frozen = {"optim.lr": "1e-30", "optim.weight_decay": "0", "schedule.steps": "6"}
    branch("frozen", data | frozen)
    assert losses(tmp_path / "frozen")[0] == losses(tmp_path / "adapted")[0]
    assert evaluate.main([f"{trunk}@6", "--data", str(others["same"])]) == 0
    before = json.loads(capsys.readouterr().out)["val/loss"]
    assert evaluate.main([str(tmp_path / "adapted"), "--tokens", "10000000"]) == 0
    assert json.loads(capsys.readouterr().out)["val/loss"] < before, "it has learned from it"
    experiment = json.loads((tmp_path / "adapted/experiment.json").read_text())
    assert experiment["branch"]["data"] == "other"
    shutil.copytree(others["same"], tmp_path / "moved")
    branch("adapted", data, "--data", str(tmp_path / "moved"), "--resume", "must")
    assert json.loads((tmp_path / "adapted/config.json").read_text())["data"]["path"] == str(tmp_path / "moved")

    own = {"branch.data": json.dumps({"path": resolved["data"]["path"].replace("same", "own")})}
    assert "has another tokenizer than the trunk's data" in branch("no", own, code=2)
    assert "is the trunk's own data" in branch("no", {"branch.data": "other"}, code=2)
    assert "branch.data" in branch("no", {"branch.data": '{"folder": "x"}'}, code=2)
    sweep = {"name": "s", "base": str(config), "stages": [{"name": "adapt", "branch_at": [6]}]}
    sweep["stages"][0]["set"] = {"branch.data.path": str(others["same"]), "schedule.steps": 2}  # type: ignore[index]
    (tmp_path / "sweep.json").write_text(json.dumps(sweep))
    assert submit.main([str(tmp_path / "sweep.json"), "--local", "--dry-run"]) == 0
    assert "stage adapt: 1 run(s)" in capsys.readouterr().out
    given = {**json.loads(config.read_text()), "branch": {"origin": "x@1", "data": {"path": "there"}}}
    config.write_text(json.dumps(given))
    assert load_config(config, ["data.path=here"])[0].data.path.endswith("here"), "an option wins over the file"


def adapted(root: Path, before: dict[float, float], after: dict[float, float], seeds: int = 3) -> list[Path]:
    """Trunks and branches that end at these losses; a seed moves all of them, and each a little by itself."""
    paths = []
    for decay in before:
        for seed in range(seeds):
            trunk, shift = root / f"trunk{decay}-{seed}", 0.1 * seed + 0.0004 * ((7 * seed + round(100 * decay)) % 3)
            fields: dict[str, Any] = {"branch": {"origin": f"{trunk}@1000", "data": "other"}, "optim": {"lr": 1e-3}}
            levels = ((trunk, before, {}), (root / f"adapted{decay}-{seed}", after, fields))
            for path, level, more in levels:
                curve = lambda s, k=level[decay] + shift: np.full(len(s), k)  # noqa: E731
                paths.append(write_run(path, curve, decay=decay, seed=seed, noise=0.0, **more))  # type: ignore[arg-type]
    return paths


def test_the_best_before_and_after(tmp_path: Path) -> None:
    """Breaks if losses are not taken at the branch's step and at its end, seeds are not paired, or a λ that is better after is
    not said to be."""
    before, after = {0.0: 3.0, 0.1: 2.9, 0.3: 2.95, 1.0: 3.1}, {0.0: 2.5, 0.1: 2.4, 0.3: 2.3, 1.0: 2.6}
    result = analyse(load(*adapted(tmp_path, before, after)), Options())
    table = result.tables["Before and after"].set_index("trunks")
    assert table.loc["λ = 0.3", "before, minus the best"].startswith("+0.05")
    assert table.loc["λ = 0.3", "after, minus it"].startswith("-0.10")
    assert "λ = 0.1 is lowest before, and λ = 0.3 lower after: the best λ does not stay the best" in result.findings[0]
    assert "Spearman's ρ of the two orders over 4 λ: +0.8" in result.findings[0]
    assert all(not claim.primary for claim in result.claims)
    same = analyse(load(*adapted(tmp_path / "same", before, before)), Options())
    assert "λ = 0.1 is lowest before and after: the best λ stays the best" in same.findings[0]
    close = analyse(load(*adapted(tmp_path / "close", before, dict.fromkeys(before, 2.5))), Options())
    assert "has the lowest mean after: undecided" in close.findings[0]


def test_a_branch_of_another_kind_is_another_setting(tmp_path: Path) -> None:
    """Breaks if branches at a λ of their own, or with the optimiser's state, are averaged with others."""
    paths = []
    for decay in (0.0, 0.1):
        trunk = write_run(tmp_path / f"trunk{decay}", lambda s: 3.0 + 0 * s, decay=decay, noise=0.0)
        paths.append(trunk)
        for own, optimizer, end in ((0.0, "drop", 2.0), (0.5, "drop", 4.0), (0.5, "keep", 5.0), (decay, "drop", 2.0)):
            branch = {"origin": f"{trunk}@1000", "data": "other", "optimizer": optimizer}
            path = tmp_path / f"b{decay}-{own}-{optimizer}"
            if not path.exists():
                paths.append(write_run(path, lambda s, k=end: k + 0 * s, decay=own, noise=0.0, branch=branch))  # type: ignore[misc]
    table = analyse(load(*paths), Options()).tables["Before and after"]
    ends = {(row["setting"], row["trunks"]): row["after"].split()[0] for _, row in table.iterrows()}
    assert len(set(ends)) == len(table)
    assert {end for (setting, _), end in ends.items() if "λ 0.5 after" in setting and "drop" in setting} == {"+4.0000"}
    assert {end for (setting, _), end in ends.items() if "keep" in setting} == {"+5.0000"}
    assert {end for (setting, _), end in ends.items() if "the trunk's λ after" in setting} == {"+2.0000"}


def test_without_branches_on_other_data(tmp_path: Path) -> None:
    """Breaks if ordinary branches are taken for adapted ones."""
    trunk = write_run(tmp_path / "trunk")
    branch = write_run(tmp_path / "branch", branch={"origin": f"{trunk}@1000"})
    with pytest.raises(InputError, match="no branch on other data is among these runs"):
        analyse(load(trunk, branch), Options())
