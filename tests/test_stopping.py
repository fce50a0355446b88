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

from configs.retention import is_kept, is_saved, most_at_once
from configs.schema import Checkpoint, RunConfig
from data.loader import TrainData, step_batches
from data.manifest import Manifest
from engine import checkpoint, export
from engine.launch import start_world
from model.gpt import GPT
from record.metrics import read_metrics
from tests.live import KINDS, make_trainer, train_steps
from tests.processes import LONG, ConfigFile, finish, losses, processes_with, start, status, wait
from tests.ranks import run_ranks
from tests.test_parity import CASES

engine = pytest.mark.engine


def test_retention() -> None:
    """Breaks if a policy saves or keeps other steps than it says."""

    def saved(**fields: Any) -> list[int]:
        return [step for step in range(1, 1001) if is_saved(Checkpoint.model_validate(fields), step, 1000)]

    assert saved() == [1000]
    assert saved(every=300) == [300, 600, 900, 1000]
    assert saved(at=(7, 450)) == [7, 450, 1000]
    assert saved(log_spaced=1) == [1, 10, 100, 1000]
    assert saved(log_spaced=3) == [1, 2, 5, 10, 22, 46, 100, 215, 464, 1000]
    policy = Checkpoint(every=100, keep_last=2, keep_every=400, at=(150,))
    assert [step for step in (100, 150, 200, 400, 800, 900) if is_kept(policy, step)] == [150, 400, 800]
    assert most_at_once(policy, 1000) == 6  # 150, 400, 800, the newest two, and the one being written
    assert most_at_once(Checkpoint(every=100), 1000) == 10


@engine
def test_checkpoints_of_a_run(config_file: ConfigFile, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if policies are not followed, list or verify miss damage, or a named checkpoint is not the one continued from."""
    policy = {"every": 2, "keep_last": 1, "keep_every": 8, "at": [3]}
    config = config_file({"schedule": {"steps": 12}, "checkpoint": policy})
    finish(start(config, tmp_path / "run"))
    folder = tmp_path / "run" / "checkpoints"
    assert [path.name for path in sorted(folder.iterdir())] == ["step_00000003", "step_00000008", "step_00000012"]
    before = losses(tmp_path / "run")
    output = finish(start(config, tmp_path / "run", "--resume", "must", "--step", "3"))
    assert "resumes from" in output
    assert "step_00000003" in output
    assert losses(tmp_path / "run") == before
    assert "step_00000012 lies after step 3 and is set aside" in output
    assert "step_00000012 was set aside when the run went back to an earlier step" in output
    assert "damaged" not in output
    assert "steps there: 3, 8, 12" in finish(start(config, tmp_path / "run", "--resume", "must", "--step", "5"), 2)
    assert checkpoint.main(["verify", str(tmp_path / "run")]) == 0
    weights = folder / "step_00000008" / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    capsys.readouterr()
    assert checkpoint.main(["list", str(tmp_path / "run")]) == 0
    assert checkpoint.main(["verify", str(tmp_path / "run")]) == 1
    assert "weights.safetensors differs from its manifest" in capsys.readouterr().out
    with pytest.raises(ValueError, match="is damaged"):
        export.export(tmp_path / "run", 8, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def exported_and_live(configs: list[RunConfig], manifest: Manifest, folder: Path) -> list[Any]:
    """Train each case a little, save, export, and compare the exported model's logits with the live one's."""
    world = start_world("export", 120, None)
    found = []
    for index, config in enumerate(configs):
        trainer = make_trainer(config, manifest, world)
        train_steps(trainer, manifest, range(3))
        run = folder / str(index)
        checkpoint.save(run / "checkpoints", 3, trainer.fragments, {}, {})
        tokens = torch.arange(16)[None] % 512
        trainer.ds.eval()
        with torch.no_grad():
            live = trainer.ds(tokens, tokens).item()
        if world.rank == 0:
            (run / "config.json").write_text(config.model_dump_json())
            export.export(run, None, run / "out")
            model = GPT(config.model, trainer.ds.module.autocast)
            model.load_state_dict(load_file(run / "out" / "model.safetensors"))
            assert {p.dtype for p in model.parameters()} == {torch.float32}
            with torch.no_grad():
                found.append((live, model.to(next(trainer.ds.module.parameters()).dtype)(tokens, tokens).item()))
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
    run = start(config_file(slow_step), tmp_path / "step", ranks=ranks)
    wait(
        lambda: (tmp_path / "step" / "status.json").exists() and read_metrics(tmp_path / "step" / "metrics.jsonl")[0],
        run,
    )
    time.sleep(1)
    _stop(run, tmp_path / "step")
    assert status(tmp_path / "step")["state"] == "preempted"
    slow_validation = {"eval": {"tokens": 16 * 800, "every": 1}, "batch": {"tokens_per_step": 32, "micro_batch": 1}}
    config = config_file(slow_validation, {"schedule": {"steps": 4}})
    run = start(config, tmp_path / "eval", ranks=ranks)
    wait(lambda: any(row["step"] >= 1 for row in read_metrics(tmp_path / "eval" / "metrics.jsonl")[0]), run)
    time.sleep(0.2)
    _stop(run, tmp_path / "eval")
    stopped = status(tmp_path / "eval")
    assert stopped["state"] == "preempted"
    finish(start(config, tmp_path / "eval"))
    rows, _ = read_metrics(tmp_path / "eval" / "metrics.jsonl")
    assert [row["step"] for row in rows if "val/loss" in row] == [0, 1, 2, 3, 4], (
        "the abandoned validation was not taken up"
    )


def _stop(run: Any, folder: Path) -> None:
    """By signal for one process, by file for several; it must be quick."""
    begun = time.monotonic()
    if "deepspeed" in " ".join(run.args):
        (folder / "stop").touch()
    else:
        run.send_signal(signal.SIGTERM)
    run.communicate(timeout=60)
    assert time.monotonic() - begun < 15


def leave_out(configs: list[RunConfig], manifest: Manifest) -> list[dict[str, Any]]:
    """Updates 0 and 1, a poisoned update 2, update 3; and the same without update 2."""
    world = start_world("skip", 120, None)
    found = []
    for config in configs:
        poisoned, clean = (make_trainer(config, manifest, world) for _ in range(2))
        ends = []
        for trainer in (poisoned, clean):
            train_steps(trainer, manifest, range(2))
            if trainer is poisoned:
                parameter = list(trainer.ds.module.parameters())[3]
                hook = parameter.register_hook(lambda gradient: torch.full_like(gradient, float("nan")))
                data = TrainData(config.data.path, manifest, config)
                batch = next(step_batches(data, 2, None, trainer.plan.micro_batch, world.rank, world.ranks))
                assert not trainer.step(torch.from_numpy(batch.tokens), 1e-2, 2).applied
                hook.remove()
            train_steps(trainer, manifest, range(3, 4))
            ends.append({kind: trainer.fragments.gather(kind, 0) for kind in KINDS})
        steps = (poisoned.fragments.optimizer_step, clean.fragments.optimizer_step)
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
    assert checkpoint.main(["verify", str(tmp_path / "run")]) == 0
    assert not list(folder.glob(".step_*.tmp"))
    assert max(path.name for path in folder.iterdir()) == f"step_{status(tmp_path / 'run')['step']:08d}"


@engine
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
    counters = json.loads((tmp_path / "dropped/checkpoints/step_00000004/manifest.json").read_text())["counters"]
    assert counters["optimizer_step"] == 4
    assert counters["windows"] == 12 * 8
    ids = {
        json.dumps(json.loads((tmp_path / n / "experiment.json").read_text()))
        for n in ("same", "earlier", "tiny", "dropped", "restarted")
    }
    assert len(ids) == 5
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
