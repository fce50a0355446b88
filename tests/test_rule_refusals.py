"""Decay rules that are asked for what they have no meaning for: refused with the reason, and before a job is queued."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import train
from benchmarks.noise_equilibrium import measured, setting
from configs.errors import InputError
from configs.plan import make_plan
from configs.schema import RunConfig
from slurm.submit import main as submit

Config = Callable[..., RunConfig]
SCHEDULE = {"kind": "linear", "start": 1.0, "end": 0.5}


@pytest.mark.parametrize("rule", ["norm_projection", "hyperball"])
def test_a_schedule_of_no_decay(rule: str, tiny_config: Config) -> None:
    """Breaks if a schedule of λ is taken, and named in the run's identity, by a rule that has no λ."""
    with pytest.raises(InputError, match=f"decay_schedule does nothing under decay_rule {rule}"):
        tiny_config({"optim": {"decay_rule": rule, "weight_decay": 0.0, "decay_schedule": SCHEDULE}})


def test_decays_beyond_their_law(tiny_config: Config) -> None:
    """Breaks if rotational takes an angle of more than a turn, or a share of more than 1 goes without a word."""
    config = tiny_config({"optim": {"decay_rule": "rotational", "lr": 0.01, "weight_decay": 200.0}})
    with pytest.raises(InputError, match="would not stay above zero"):
        make_plan(config, 1, None)
    config = tiny_config({"optim": {"decay_rule": "selective_projection", "weight_decay": 3.0}})
    assert any("it is a share of that" in caution for caution in make_plan(config, 1, None).cautions)


def test_swd_with_a_decoupled_lambda() -> None:
    """Breaks if a λ that is not divided by √v̄ turns the weights over, update by update, until nothing is finite."""
    config = setting("swd", "adam", "fp32")
    assert config is not None
    too_large = config.model_copy(update={"optim": config.optim.model_copy(update={"weight_decay": 60.0})})
    with pytest.raises(InputError, match=r"optim\.decay_rule swd, update 1: λ = 60 over √v̄.*so below 50 here"):
        measured(too_large, (10, 10), 0.1)


def test_refused_before_it_is_queued(tmp_path: Path, tiny_config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if a sweep with a cell whose rule refuses its algorithm is submitted, to fail one job after another."""
    (tmp_path / "base.json").write_text(tiny_config().model_dump_json())
    path = tmp_path / "sweep.json"
    rows: list[dict[str, Any]] = [
        {"optim.lr": 0.01},
        {"optim.decay_rule": "swd", "optim.weight_decay": 1e-4, "optim.algorithm": "sgd"},
    ]
    path.write_text(json.dumps({"name": "refused", "base": "base.json", "cells": rows}))
    assert submit([str(path), "--runs", str(tmp_path / "runs"), "--dry-run"]) == 2
    assert "optim.decay_rule swd is a law for optim.algorithm adam, this run has sgd" in capsys.readouterr().err


@pytest.mark.parametrize("algorithm", ["torch.optim.NAdam", "kfac"])
@pytest.mark.parametrize("stage", [0, 1])
def test_no_stage_suits_both(algorithm: str, stage: int, tiny_config: Config) -> None:
    """Breaks if one message sends to stage 1 and the next one back to stage 0."""
    given = {"optim": {"algorithm": algorithm}, "precision": "bf16-master", "parallel": {"zero_stage": stage}}
    with pytest.raises(
        InputError, match="and precision bf16-master at 1, 2 and 3: use precision fp32, tf32, bf16-mixed"
    ):
        tiny_config(given)


def test_a_dry_run_tries_the_optimiser_out(
    tmp_path: Path, tiny_config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks if a plan is printed for an optimiser that torch has not."""
    path = tmp_path / "run.json"
    path.write_text(tiny_config({"optim": {"lr": 0.01}}).model_dump_json())
    command = ["--config", str(path), "--dry-run", "--set", "optim.algorithm=torch.optim.Nadam"]
    code = train.main(command)
    assert code == 2
    assert "torch.optim.NAdam" in capsys.readouterr().err


def test_a_decay_that_falls_below_the_rounding(tiny_config: Config) -> None:
    """Breaks if a decay that bfloat16 masters lose late in the run, or in one of its groups, goes without a word."""
    bf16 = {"precision": "bf16-true", "parallel": {"zero_stage": 1}, "optim": {"lr": 0.05, "weight_decay": 0.1}}
    falls = {"schedule": {"kind": "cosine", "final_lr_fraction": 0.01}}
    (said,) = [text for text in make_plan(tiny_config(bf16, falls), 1, None).cautions if "falls to" in text]
    assert "η·λ reaches 0.005 and falls to" in said
    assert "late in the run" in said
    stays = {"schedule": {"kind": "constant"}}
    assert not any("falls to" in text for text in make_plan(tiny_config(bf16, stays), 1, None).cautions)
    small = {"optim": {"decay_overrides": [{"pattern": "*.mlp.*", "weight_decay": 0.001}]}}
    assert any("falls to 5e-05" in text for text in make_plan(tiny_config(bf16, stays, small), 1, None).cautions)
