"""Branches: new runs from another run's checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from record.metrics import read_metrics
from tests.live import KINDS
from tests.processes import ConfigFile, finish, losses, rows_of, start, status

pytestmark = pytest.mark.engine


def counters_of(run: Path) -> dict[str, int]:
    return dict(json.loads((run / "checkpoints/step_00000004/manifest.json").read_text())["counters"])


def test_branches(config_file: ConfigFile, tmp_path: Path) -> None:
    """Breaks if a branch reads what its trunk read, applies the trunk's λ or η, loses the optimiser's state or keeps what
    should be dropped, or is not recorded; a branch that changes nothing is its trunk going on, bit for bit."""
    constant = {"schedule": {"kind": "constant", "warmup_steps": 0}, "checkpoint": {"every": 4}}
    trunk, whole = tmp_path / "trunk", tmp_path / "whole"
    finish(start(config_file(constant, {"schedule": {"steps": 8}}), trunk))
    finish(start(config_file(constant, {"schedule": {"steps": 12}}), whole))
    config = config_file(constant, {"schedule": {"steps": 4}})
    tiny = ["--set", "optim.weight_decay=0", "--set", "optim.lr=1e-5"]

    def branch(name: str, origin: str, *options: str, code: int = 0) -> str:
        return finish(start(config, tmp_path / name, "--branch", origin, *options), code)

    branch("same", f"{trunk}@8")
    assert [loss for _, loss in losses(tmp_path / "same")] == [loss for _, loss in losses(whole)[8:]]
    assert status(tmp_path / "same")["order_digest"] == status(whole)["order_digest"]
    assert status(tmp_path / "same")["step"] == 4
    for kind in KINDS:
        ours, theirs = (
            path / f"{kind}.safetensors"
            for path in (tmp_path / "same/checkpoints/step_00000004", whole / "checkpoints/step_00000012")
        )
        assert ours.read_bytes() == theirs.read_bytes(), kind
    branch("earlier", f"{trunk}@4")
    assert losses(tmp_path / "earlier")[0][1] == losses(whole)[4][1]
    branch("tiny", f"{trunk}@8", *tiny)
    rows = read_metrics(tmp_path / "tiny" / "metrics.jsonl")[0]
    assert {row["optim/lr"] for row in rows[1:]} == {1e-5}
    assert rows[-1]["optim/decay_sum"] == 0
    assert rows[1]["train/loss"] == losses(whole)[8][1]
    branch("dropped", f"{trunk}@8", *tiny, "--set", "branch.optimizer=drop")
    branch("restarted", f"{trunk}@8", *tiny, "--set", "branch.data=restart")
    branch("coarse", f"{trunk}@8", "--set", "precision=bf16-true", "--set", "parallel.zero_stage=2")
    assert losses(tmp_path / "coarse")[0][1] == pytest.approx(losses(whole)[8][1], abs=2e-2), (
        "the trunk's weights, rounded"
    )
    # without the moments another step follows the first gradient; from the beginning again it is another gradient
    assert losses(tmp_path / "dropped")[0] == losses(tmp_path / "tiny")[0]
    assert losses(tmp_path / "dropped")[1] != losses(tmp_path / "tiny")[1]
    assert losses(tmp_path / "restarted")[0] != losses(tmp_path / "tiny")[0]
    dropped, restarted = (counters_of(tmp_path / name) for name in ("dropped", "restarted"))
    assert dropped["optimizer_step"] == 4
    assert (dropped["windows"], restarted["windows"]) == (12 * 8, 4 * 8)
    names = ("same", "earlier", "tiny", "dropped", "restarted")
    assert len({(tmp_path / name / "experiment.json").read_text() for name in names}) == 5
    assert "of another model" in branch("wide", f"{trunk}@8", "--set", "model.n_layer=3", code=2)
    assert "or set branch.data to restart" in branch("reseeded", f"{trunk}@8", "--set", "seeds.data=5", code=2)
    assert "set branch.optimizer to drop" in branch("sgd", f"{trunk}@8", "--set", "optim.algorithm=sgd", code=2)
    assert "steps there: 4, 8" in branch("missing", f"{trunk}@5", code=2)
    assert "beyond what the trunk read" in branch("long", f"{trunk}@8", "--set", "schedule.steps=100000", code=2)
    assert "not there yet" in branch("planned", f"{tmp_path / 'future'}@5", "--dry-run")
    assert "expected RUN@STEP" in branch("newest", str(trunk), code=2)
    (tmp_path / "same" / "checkpoints" / "step_00000004" / "manifest.json").unlink()
    (trunk / "checkpoints").rename(tmp_path / "elsewhere")
    assert "has no complete checkpoint" in branch("late", f"{trunk}@8", code=2)
    branch("tiny", f"{trunk}@8", *tiny, "--resume", "must")
    (tmp_path / "elsewhere").rename(trunk / "checkpoints")
    branch("same", f"{trunk}@8")
    assert not any((tmp_path / name).exists() for name in ("wide", "sgd", "reseeded", "missing", "long", "planned"))


def test_branches_of_one_effective_learning_rate(config_file: ConfigFile, tmp_path: Path) -> None:
    """Breaks if branches of trunks with other norms do not share their effective learning rate where they were asked to, if η is
    scaled by other norms than the plan records, if a resume needs the other run again, or a run starts without the norms."""
    trunk, plain = tmp_path / "trunk", tmp_path / "undecayed"
    strong = {"optim": {"weight_decay": 5.0}, "checkpoint": {"every": 3}}
    finish(start(config_file(strong), trunk))
    finish(start(config_file(strong, {"optim": {"weight_decay": 0.0}}), plain))
    config = config_file(
        {"optim": {"lr": 1e-5, "weight_decay": 0.0}}, {"schedule": {"kind": "constant", "warmup_steps": 0}}
    )
    scaled = ("--set", f"branch.lr_by_norm_of={plain}", "--set", "branch.data=restart")

    norms = [rows_of(run)[3]["weights/norm"] for run in (trunk, plain)]
    assert norms[0] < 0.98 * norms[1]
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    output = finish(start(config, ours, "--branch", f"{trunk}@3", *scaled))
    assert f"{1e-5 * norms[0] / norms[1]:g}: 1e-05 times" in output
    finish(start(config, theirs, "--branch", f"{plain}@3", *scaled))
    for step in range(1, 7):
        assert rows_of(ours)[step]["optim/lr"] == pytest.approx(1e-5 * norms[0] / norms[1], rel=1e-12)
        assert rows_of(theirs)[step]["optim/lr"] == 1e-5, "scaled by its own norm"
    plan = json.loads((ours / "plan.json").read_text())
    assert plan["origin"]["norms"] == norms
    assert plan["lr_sum"] == pytest.approx(6e-5 * norms[0] / norms[1])
    unscaled = tmp_path / "unscaled"
    finish(start(config, unscaled, "--branch", f"{plain}@3", "--set", "branch.data=restart"))
    assert losses(unscaled) == losses(theirs)
    assert "norms" in json.loads((theirs / "experiment.json").read_text())["branch"]
    assert "norms" not in json.loads((unscaled / "experiment.json").read_text()).get("branch", {})

    before = losses(ours)
    (ours / "checkpoints" / "step_00000006" / "manifest.json").unlink()
    plain.rename(tmp_path / "moved")  # a begun run has the norms in its own folder
    finish(start(config, ours, "--branch", f"{trunk}@3", *scaled))
    assert losses(ours) == before
    assert "has no weights/norm after step 3" in finish(
        start(config, tmp_path / "late", "--branch", f"{trunk}@3", *scaled), 2
    )
    assert not (tmp_path / "late").exists()
