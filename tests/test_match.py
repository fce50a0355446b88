"""Matching another run's effective learning rate: P1's η′_t = η_t·‖w_t‖/R_t."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from configs.load import load_config
from configs.schedule import lr_at
from configs.schema import RunConfig
from configs.tensors import tensor_table
from record.metrics import read_metrics
from tests.processes import ConfigFile, finish, finish_ranks, losses, rows_of, start, status

pytestmark = pytest.mark.engine
LOGGED: dict[str, Any] = {"log": {"tensor_norms": True, "every": 1, "probe_every": 3}, "checkpoint": {"every": 2}}
PLAIN: dict[str, Any] = {"optim": {"weight_decay": 0.0}}


def effective(run: Path, key: str = "weights/norm") -> list[float]:
    rows = rows_of(run)
    return [rows[t + 1]["optim/lr"] / rows[t][key] for t in range(6)]


def assert_rates_by_tensor(run: Path, config: RunConfig, theirs: dict[int, dict[str, Any]]) -> None:
    """A run matched by tensor logs the mean of the tensors' rates, and in its probes what each tensor is held to."""
    ours, tensors = rows_of(run), tensor_table(config.model)
    rates = {
        name: [lr_at(config, t) * ours[t][f"norm/{name}"] / theirs[t][f"norm/{name}"] for t in range(6)]
        for name in tensors
    }
    sizes = {name: tensor.size for name, tensor in tensors.items()}
    mean = [sum(rates[n][t] * sizes[n] for n in tensors) / sum(sizes.values()) for t in range(6)]
    assert [ours[t + 1]["optim/lr"] for t in range(6)] == pytest.approx(mean, rel=1e-6)
    probes = read_metrics(run / "probes.jsonl")[0]
    for row in probes:
        t = row["step"] - 1
        for name in tensors:
            expected_rate = lr_at(config, t) / theirs[t][f"norm/{name}"]
            assert row[f"probe/effective_lr/{name}"] == pytest.approx(expected_rate, rel=1e-6), (t, name)
    assert len(probes) == 2


def test_matched_runs(config_file: ConfigFile, tmp_path: Path) -> None:
    """Breaks if a matched run's effective learning rate is not its leader's, in closed or open loop; if matching a run
    to itself changes a bit, also with a group per tensor; or if a resume does."""
    reference, undecayed = tmp_path / "reference", tmp_path / "undecayed"
    strong = {"optim": {"weight_decay": 5.0}}
    finish(start(config_file(LOGGED, strong), reference))
    finish(start(config_file(LOGGED, PLAIN), undecayed))

    def match(**fields: Any) -> dict[str, Any]:
        return {"schedule": {"match": {"reference": str(reference), **fields}}}

    finish(start(config_file(LOGGED, PLAIN, match()), tmp_path / "closed"))
    assert effective(tmp_path / "closed") == pytest.approx(effective(reference), rel=1e-12)
    assert losses(tmp_path / "closed") != losses(undecayed)
    decayed = "weights/norm_decayed"
    stage_3 = {"parallel": {"zero_stage": 3}}
    finish_ranks(2, config_file(LOGGED, PLAIN, stage_3, match(norm=decayed)), tmp_path / "two")
    assert effective(tmp_path / "two", decayed) == pytest.approx(effective(reference, decayed), rel=1e-6)

    config = config_file(LOGGED, PLAIN, match(own=str(undecayed)))
    finish(start(config, tmp_path / "open"))
    ours, theirs, rows = rows_of(undecayed), rows_of(reference), rows_of(tmp_path / "open")
    loaded = load_config(config)[0]
    expected = [lr_at(loaded, t) * ours[t]["weights/norm"] / theirs[t]["weights/norm"] for t in range(6)]
    assert [rows[t + 1]["optim/lr"] for t in range(6)] == pytest.approx(expected, rel=1e-12)
    plan = json.loads((tmp_path / "open" / "plan.json").read_text())
    assert plan["lr_sum"] == pytest.approx(sum(expected), rel=1e-12), "the open loop's Ση is known before the run"
    assert json.loads((tmp_path / "closed" / "plan.json").read_text())["lr_sum"] is None

    for scope in ("model", "tensor"):
        finish(start(config_file(LOGGED, strong, match(scope=scope)), tmp_path / scope))
        assert losses(tmp_path / scope) == losses(reference), scope
        assert len({(tmp_path / name / "experiment.json").read_bytes() for name in (scope, "reference")}) == 2
    by_tensor = config_file(LOGGED, PLAIN, match(scope="tensor"), {"parallel": {"zero_stage": 2}})
    finish_ranks(2, by_tensor, tmp_path / "tensors")
    assert losses(tmp_path / "tensors") != losses(tmp_path / "closed")
    for stage in (1, 3):
        options = ("--set", f"parallel.zero_stage={stage}")
        finish_ranks(2, by_tensor, tmp_path / f"stage{stage}", *options)
        for (_, one), (_, two) in zip(losses(tmp_path / f"stage{stage}"), losses(tmp_path / "tensors"), strict=True):
            assert one == pytest.approx(two, rel=1e-6), f"stage {stage}"
    assert_rates_by_tensor(tmp_path / "tensors", loaded, theirs)

    before = losses(tmp_path / "closed")
    shutil.rmtree(tmp_path / "closed" / "checkpoints" / "step_00000006")
    reference.rename(tmp_path / "moved")  # a begun run has what it follows in its own folder
    config_of_new = config_file(LOGGED, PLAIN, match())
    assert "is no run folder to match" in finish(start(config_of_new, tmp_path / "late"), 2)
    finish(start(config_file(LOGGED, PLAIN, match()), tmp_path / "closed"))
    assert losses(tmp_path / "closed") == before
    assert status(tmp_path / "closed")["state"] == "done"


def test_references_that_do_not_fit(config_file: ConfigFile, tmp_path: Path) -> None:
    """Breaks if a run starts whose reference lacks norms, has other steps, or is not there."""
    finish(start(config_file(), tmp_path / "run"))
    cases = [
        ({"reference": str(tmp_path / "none")}, {}, "is no run folder to match"),
        ({"reference": str(tmp_path / "run"), "scope": "tensor"}, {}, "record it with log.tensor_norms true"),
        ({"reference": str(tmp_path / "run")}, {"steps": 5}, "a matched run takes the same steps"),
        ({"reference": str(tmp_path / "run")}, {"final_lr_fraction": 0.5}, "run has its leader's schedule"),
        ({"reference": str(tmp_path / "run"), "scope": "tensor", "norm": "weights/norm_decayed"}, {}, "leave norm out"),
    ]
    for match, schedule, message in cases:
        if "leave norm out" in message:
            with pytest.raises(ValueError, match=message):
                config_file({"schedule": {"match": match}})
            continue
        config = config_file({"schedule": {**schedule, "match": match}})
        assert message in finish(start(config, tmp_path / "new"), 2)
        assert message in finish(start(config, tmp_path / "new", "--dry-run"))
    wider = config_file({"schedule": {"match": {"reference": str(tmp_path / "run")}}, "model": {"n_embd": 64}})
    assert "model.n_embd: asked 64, found 32" in finish(start(wider, tmp_path / "new"), 2)
    assert not (tmp_path / "new").exists()
    log = tmp_path / "run" / "metrics.jsonl"
    log.write_text("\n".join(log.read_text().splitlines()[:4]))
    config = config_file({"schedule": {"match": {"reference": str(tmp_path / "run")}}})
    assert "are missing); let it finish first" in finish(start(config, tmp_path / "new"), 2)
