"""Stopping in the middle of things, leaving out updates, and what one can do with checkpoints afterwards."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from configs.schema import RunConfig
from data.manifest import Manifest
from engine import checkpoint
from engine.launch import start_world
from engine.update import update
from model.gpt import GPT
from record import checkpoints
from record.metrics import read_metrics
from tests.live import KINDS, batch_of, make_training, train_steps
from tests.processes import (
    LONG,
    ConfigFile,
    Process,
    finish,
    finish_all,
    losses,
    processes_with,
    start,
    start_ranks,
    status,
    wait,
)
from tests.ranks import run_ranks
from tests.test_parity import CASES
from weights import export

engine = pytest.mark.engine
MIDDLE: dict[str, Any] = {"schedule": {"steps": 400}, "log": {"every": 1}}


def exported_and_live(configs: list[RunConfig], manifest: Manifest, folder: Path) -> list[Any]:
    """Train each case a little, save, export, and compare the exported model's logits with the live one's."""
    world = start_world("export", 120, None)
    found = []
    for index, config in enumerate(configs):
        training = make_training(config, manifest, world)
        train_steps(training, range(3))
        run = folder / str(index)
        checkpoint.save(run / "checkpoints", 3, training.engine.fragments, {}, {})
        tokens = torch.arange(16)[None] % 512
        training.engine.ds.eval()
        with torch.no_grad():
            live = training.engine.ds(tokens, tokens).item()
        if world.rank == 0:
            (run / "config.json").write_text(config.model_dump_json())
            export.export(run, None, run / "out")
            model = GPT(config.model, training.engine.ds.module.autocast)
            model.load_state_dict(load_file(run / "out" / "model.safetensors"))
            assert {p.dtype for p in model.parameters()} == {torch.float32}
            with torch.no_grad():
                found.append(
                    (live, model.to(next(training.engine.ds.module.parameters()).dtype)(tokens, tokens).item())
                )
    return found


@engine
def test_export_equals_the_live_model(
    tiny_data: tuple[Path, Manifest], tiny_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    """Breaks if an export loses, duplicates or rounds a weight, in any precision or stage."""
    configs = [tiny_config({"precision": p, "parallel": {"zero_stage": stage}}) for p, stage in CASES]
    for case, (live, exported) in zip(
        CASES, run_ranks(2, exported_and_live, configs, tiny_data[1], tmp_path)[0], strict=True
    ):
        assert live == exported, case
    assert json.loads((tmp_path / "0" / "out" / "config.json").read_text()) == configs[0].model.model_dump(mode="json")
    assert export.main([str(tmp_path / "0@3"), "--out", str(tmp_path / "again")]) == 0
    assert export.main([str(tmp_path / "0@4"), "--out", str(tmp_path / "other")]) == 2
    assert export.main([str(tmp_path / "0"), "--out", str(tmp_path / "again")]) == 2


@engine
@pytest.mark.parametrize("ranks", [1, 2])
def test_stop_during_evaluation_and_accumulation(ranks: int, config_file: ConfigFile, tmp_path: Path) -> None:
    """Breaks if a stop waits for the end of a long validation or of a long step, or either leaves a half-done state."""
    slow_step = {
        "batch": {"tokens_per_step": 16 * 4096, "micro_batch": 1},
        "schedule": {"steps": 10},
        "data": {"epochs": 100},
    }
    run = start_ranks(ranks, config_file(slow_step), tmp_path / "step")
    wait(
        lambda: (tmp_path / "step" / "status.json").exists() and read_metrics(tmp_path / "step" / "metrics.jsonl")[0],
        run[0],
    )
    time.sleep(1)
    _stop(run, tmp_path / "step")
    assert status(tmp_path / "step")["state"] == "preempted"
    slow_validation = {"eval": {"tokens": 16 * 800, "every": 1}, "batch": {"tokens_per_step": 32, "micro_batch": 1}}
    config = config_file(slow_validation, {"schedule": {"steps": 4}})
    run = start_ranks(ranks, config, tmp_path / "eval")
    wait(lambda: any(row["step"] >= 1 for row in read_metrics(tmp_path / "eval" / "metrics.jsonl")[0]), run[0])
    time.sleep(0.2)
    _stop(run, tmp_path / "eval")
    stopped = status(tmp_path / "eval")
    assert stopped["state"] == "preempted"
    finish(start(config, tmp_path / "eval"))
    rows, _ = read_metrics(tmp_path / "eval" / "metrics.jsonl")
    assert [row["step"] for row in rows if "val/loss" in row] == [0, 1, 2, 3, 4], (
        "the abandoned validation was not taken up"
    )


def _stop(run: list[Process], folder: Path) -> None:
    """By signal for one process, by file for several; it must be quick."""
    if len(run) > 1:
        (folder / "stop").touch()
    else:
        run[0].send_signal(signal.SIGTERM)
    finish_all(run, 75, timeout_s=15)


def leave_out(configs: list[RunConfig], manifest: Manifest) -> list[dict[str, Any]]:
    """Updates 0 and 1, a poisoned update 2, update 3; and the same without update 2."""
    world = start_world("skip", 120, None)
    found = []
    for config in configs:
        poisoned, clean = (make_training(config, manifest, world) for _ in range(2))
        ends = []
        for training in (poisoned, clean):
            train_steps(training, range(2))
            if training is poisoned:
                parameter = list(training.engine.ds.module.parameters())[3]
                hook = parameter.register_hook(lambda gradient: torch.full_like(gradient, float("nan")))
                assert update(training, iter([batch_of(training, 2)])).ended != "applied"
                hook.remove()
            train_steps(training, range(3, 4))
            ends.append({kind: training.engine.fragments.gather(kind, 0) for kind in KINDS})
        steps = (poisoned.engine.fragments.optimizer_step, clean.engine.fragments.optimizer_step)
        same = world.rank > 0 or all(torch.equal(ends[0][k][n], ends[1][k][n]) for k in ends[0] for n in ends[0][k])
        found.append({"same": same, "steps": steps})
    return found


@engine
@pytest.mark.parametrize("ranks", [1, 2])
def test_left_out_updates_leave_no_trace(
    ranks: int, tiny_data: tuple[Path, Manifest], tiny_config: Callable[..., RunConfig]
) -> None:
    """Breaks if, in any precision or stage, a left-out update decays weights, moves moments, counts a step of Adam's, or
    leaves gradients behind: the next update must be that of a run without it, bit for bit."""
    configs = [tiny_config({"precision": p, "parallel": {"zero_stage": stage}}) for p, stage in CASES]
    for case, result in zip(CASES, run_ranks(ranks, leave_out, configs, tiny_data[1])[0], strict=True):
        assert result == {"same": True, "steps": (3, 3)}, case


@engine
def test_skipping_has_a_limit(config_file: ConfigFile, tmp_path: Path) -> None:
    """Breaks if skipped updates are not counted, not recorded, or never end the run."""
    numerics = {"nonfinite": "skip", "max_skipped": 3}
    finish(start(config_file({"model": {"init_std": 1e30}, "numerics": numerics}), tmp_path / "run"), 3)
    rows, _ = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [row.get("nonfinite/skipped") for row in rows] == [None, 1, 2, 3]
    assert status(tmp_path / "run")["state"] == "diverged"
    assert status(tmp_path / "run")["step"] == 3


@engine
def test_killed_ranks(config_file: ConfigFile, tmp_path: Path) -> None:
    """Breaks if a killed rank leaves the others running, or a status that says done."""
    for victim in (0, 1):
        folder = tmp_path / str(victim)
        run = start(config_file(LONG), folder, ranks=2)
        wait(lambda f=folder: len(losses(f)) > 20, run)
        found = processes_with(f"--local_rank={victim}")
        os.kill(next(pid for pid, command in found.items() if str(folder) in command), signal.SIGKILL)
        wait(lambda f=folder: not processes_with(str(f)))
        run.communicate(timeout=60)
        assert status(folder)["state"] != "done"


@engine
def test_signal_during_a_save(config_file: ConfigFile, tmp_path: Path) -> None:
    """Breaks if a signal tears a checkpoint, or is lost while one is written."""
    big = {
        "model": {"n_embd": 256, "n_layer": 4},
        "checkpoint": {"every": 1, "keep_last": 2},
        "schedule": {"steps": 500},
    }
    run = start(config_file(big), tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    wait(lambda: list(folder.glob("step_*")), run)
    while not list(folder.glob(".step_*.tmp")):
        assert run.poll() is None
    run.send_signal(signal.SIGUSR1)
    finish(run, 75)
    assert status(tmp_path / "run")["reason"] == "SIGUSR1"
    assert checkpoints.main(["verify", str(tmp_path / "run")]) == 0
    assert not list(folder.glob(".step_*.tmp"))
    assert max(path.name for path in folder.iterdir()) == f"step_{status(tmp_path / 'run')['step']:08d}"


@engine
def test_preempted_and_resumed(config_file: ConfigFile, tmp_path: Path) -> None:
    """Breaks if SIGTERM loses work, or the resumed run is not the uninterrupted one, bit for bit."""
    long = config_file(MIDDLE)
    finish(start(long, tmp_path / "straight"))
    run = start(long, tmp_path / "run")
    wait(lambda: len(losses(tmp_path / "run")) > 20, run)
    run.send_signal(signal.SIGTERM)
    finish(run, 75)
    stopped = status(tmp_path / "run")
    assert (stopped["state"], stopped["reason"]) == ("preempted", "SIGTERM")
    assert 20 < stopped["step"] < 400
    assert f"resumes from {tmp_path / 'run'}/checkpoints/step_{stopped['step']:08d}" in finish(
        start(long, tmp_path / "run")
    )
    assert status(tmp_path / "run")["state"] == "done"
    assert losses(tmp_path / "run") == losses(tmp_path / "straight")
    for name in ("weights", "exp_avg", "exp_avg_sq"):
        file = f"checkpoints/step_00000400/{name}.safetensors"
        assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "straight" / file).read_bytes()
    counters = [
        json.loads((tmp_path / r / "checkpoints/step_00000400/manifest.json").read_text())["counters"]
        for r in ("run", "straight")
    ]
    assert counters[0] == counters[1]


@engine
def test_stop_file_and_other_ranks(config_file: ConfigFile, tmp_path: Path) -> None:
    """Breaks if ranks disagree about stopping, or a run cannot go on with another number of ranks and stage."""
    two = config_file(MIDDLE, {"parallel": {"zero_stage": 1}, "optim": {"lr": 1e-4}})
    run = start_ranks(2, two, tmp_path / "run")
    wait(lambda: len(losses(tmp_path / "run")) > 20, run[0])
    (tmp_path / "run" / "stop").touch()
    finish_all(run, 75)
    assert status(tmp_path / "run")["state"] == "preempted"
    assert not (tmp_path / "run" / "stop").exists(), "the next start would stop again"
    finish(start(two, tmp_path / "run", "--set", "parallel.zero_stage=0"))
    assert status(tmp_path / "run")["state"] == "done"
    finish(start(two, tmp_path / "straight"))
    for ours, theirs in zip(losses(tmp_path / "run"), losses(tmp_path / "straight"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6), "other sums round otherwise, no more"


@engine
@pytest.mark.parametrize("victim", ["runner killed", "runner terminated", "launcher killed"])
def test_no_process_outlives_its_launcher(victim: str, config_file: ConfigFile, tmp_path: Path) -> None:
    """Breaks if a rank outlives DeepSpeed's runner or its child launcher, or its work is lost."""
    run = start(config_file(LONG), tmp_path / "run", ranks=2)
    wait(lambda: len(losses(tmp_path / "run")) > 20, run)
    if victim == "launcher killed":
        children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGKILL)
    else:
        run.send_signal(signal.SIGKILL if victim == "runner killed" else signal.SIGTERM)
    wait(lambda: not processes_with(str(tmp_path / "run")))
    run.communicate(timeout=60)
    assert status(tmp_path / "run")["state"] == "preempted"
