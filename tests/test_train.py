"""train.py as its users run it: real processes, real folders, real signals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from configs.precision import TABLE
from configs.schema import RunConfig
from record.metrics import read_metrics
from tests.processes import LONG, ROOT, ConfigFile, finish, finish_ranks, losses, start, status, wait
from tests.ranks import free_port

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def straight(tiny_config: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run the others are compared to: six updates without interruption, in one process, started as its users do."""
    folder = tmp_path_factory.mktemp("straight")
    (folder / "config.json").write_text(tiny_config().model_dump_json())
    finish(start(folder / "config.json", folder / "run", cold=True))
    return folder / "run"


def test_run_folder(straight: Path, tiny_config: Callable[..., RunConfig]) -> None:
    """Breaks if a run does not leave behind what the house promises: description, status, every metric of every update."""
    names = {path.name for path in straight.iterdir()} - {".lock", "probes.jsonl"}
    assert names == {
        "config.json",
        "config.given.json",
        "experiment.json",
        "plan.json",
        "starts.jsonl",
        "status.json",
        "metrics.jsonl",
        "val_blocks.json",
        "checkpoints",
    }
    assert json.loads((straight / "config.json").read_text()) == tiny_config().model_dump(mode="json")
    assert (status(straight)["state"], status(straight)["step"]) == ("done", 6)
    begun = json.loads((straight / "starts.jsonl").read_text())
    assert begun["dtypes"] == TABLE["fp32"].as_dict()
    assert begun["ranks"] == 1
    assert (begun["attention"], begun["compiled"]) == ("flash_cpu", False)
    assert begun["packages"]["deepspeed"]
    rows, problems = read_metrics(straight / "metrics.jsonl")
    assert problems == []
    assert [(row["step"], row["tokens"]) for row in rows] == [(s, s * 128) for s in range(7)]
    for row in rows[1:]:
        assert {
            "train/loss",
            "optim/lr",
            "optim/decay_sum",
            "optim/grad_norm",
            "weights/norm",
            "weights/norm_decayed",
            "perf/tokens_per_s",
            "time/step_s",
        } <= set(row)
    assert "val/loss" in rows[0]
    assert "val/loss" in rows[6]
    plan = json.loads((straight / "plan.json").read_text())
    assert rows[6]["optim/decay_sum"] == pytest.approx(plan["decay_sum"], rel=1e-12)
    assert sum(row["optim/lr"] for row in rows[1:]) == pytest.approx(plan["lr_sum"], rel=1e-12)
    assert [path.name for path in (straight / "checkpoints").iterdir()] == ["step_00000006"]


def test_observation_changes_nothing(straight: Path, config_file: ConfigFile, tmp_path: Path) -> None:
    """Breaks if evaluating, saving, logging or wandb changes a single bit of training."""
    watched = config_file(
        {"eval": {"every": 1}, "checkpoint": {"every": 2, "keep_last": 2}, "log": {"every": 1, "wandb": "offline"}}
    )
    finish(start(watched, tmp_path / "watched"))
    assert losses(tmp_path / "watched") == losses(straight)
    assert len([row for row in read_metrics(tmp_path / "watched" / "metrics.jsonl")[0] if "val/loss" in row]) == 7
    assert sorted(path.name for path in (tmp_path / "watched" / "checkpoints").iterdir()) == [
        "step_00000004",
        "step_00000006",
    ]
    assert list((tmp_path / "watched" / "wandb").glob("offline-run-*"))
    weights = "checkpoints/step_00000006/weights.safetensors"
    assert (tmp_path / "watched" / weights).read_bytes() == (straight / weights).read_bytes()


def test_broken_wandb_does_not_stop_training(straight: Path, config_file: ConfigFile, tmp_path: Path) -> None:
    """Breaks if a failing dashboard can end a run, or fails silently."""
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "wandb.py").write_text("raise RuntimeError('no dashboard today')")
    output = finish(
        start(config_file({"log": {"wandb": "online"}}), tmp_path / "run", PYTHONPATH=str(tmp_path / "broken"))
    )
    assert "wandb failed (RuntimeError: no dashboard today)" in output
    assert losses(tmp_path / "run") == losses(straight)


def test_two_ranks_under_the_launcher(straight: Path, config_file: ConfigFile, tmp_path: Path) -> None:
    """Breaks if `deepspeed train.py` fails, oversubscribes the cores, compiles anything, trains
    something else than one rank does, or is changed by being evaluated at stage 3."""
    extensions = str(tmp_path / "extensions")
    sharded = {"parallel": {"zero_stage": 3}}
    mine, cores = os.sched_getaffinity(0), set(range(os.cpu_count() or 1))
    os.sched_setaffinity(0, cores)  # a test worker may have one core, where nothing can be oversubscribed
    run = start(config_file(sharded), tmp_path / "two", ranks=2, TORCH_EXTENSIONS_DIR=extensions, OMP_NUM_THREADS="")
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, mine)
    finish(run)
    finish_ranks(2, config_file(sharded, {"eval": {"every": 1}}), tmp_path / "watched")
    assert status(tmp_path / "two")["state"] == "done"
    assert losses(tmp_path / "two") == losses(tmp_path / "watched")
    for (_, ours), (_, theirs) in zip(losses(tmp_path / "two"), losses(straight), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6)
    assert not Path(extensions).exists()
    begun = json.loads((tmp_path / "two" / "starts.jsonl").read_text())
    assert begun["threads_per_rank"] == max(1, len(cores) // 2)


def test_two_launchers_as_two_nodes(straight: Path, config_file: ConfigFile, tmp_path: Path) -> None:
    """Breaks if a cluster without SLURM cannot be trained on, one `deepspeed --no_ssh` started on each node."""
    (tmp_path / "hosts").write_text("node0 slots=1\nnode1 slots=1\n")
    launcher = ["--hostfile", str(tmp_path / "hosts"), "--no_ssh", "--master_addr", "127.0.0.1"]
    launcher += ["--master_port", str(free_port())]
    config = config_file({"parallel": {"zero_stage": 2}})
    nodes = [start(config, tmp_path / "run", launcher=[*launcher, "--node_rank", str(rank)]) for rank in range(2)]
    for node in nodes:
        finish(node)
    assert status(tmp_path / "run")["state"] == "done"
    for (_, ours), (_, theirs) in zip(losses(tmp_path / "run"), losses(straight), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6)


def test_checkpoint_of_another_experiment(straight: Path, config_file: ConfigFile, tmp_path: Path) -> None:
    """Breaks if a checkpoint's λ silently wins over the configuration's, or `never` resumes."""
    shutil.copytree(straight / "checkpoints", tmp_path / "run" / "checkpoints")
    assert "never" in finish(start(config_file(), tmp_path / "run", "--resume", "never"), 2)
    other = start(config_file(), tmp_path / "run", "--set", "optim.weight_decay=0")
    output = finish(other, 2)
    assert "step_00000006 is of another experiment" in output
    assert "optim.weight_decay: asked 0, found 0.5" in output or "optim.weight_decay: asked 0.0, found 0.5" in output
    assert losses(tmp_path / "run") == []


def test_damaged_checkpoint_is_written_again(config_file: ConfigFile, tmp_path: Path) -> None:
    """Breaks if a damaged newest checkpoint is resumed from, passed over without a word, or stays damaged once its step is
    reached again; or if rows that the log has lost are not told."""
    config = config_file({"checkpoint": {"every": 4}})
    finish(start(config, tmp_path / "run"))
    weights = tmp_path / "run" / "checkpoints" / "step_00000006" / "weights.safetensors"
    sound = weights.read_bytes()
    weights.write_bytes(sound[:100])
    log = tmp_path / "run" / "metrics.jsonl"
    log.write_text("".join(row for row in log.read_text().splitlines(keepends=True) if '"step": 2,' not in row))
    output = finish(start(config, tmp_path / "run"))
    assert "step_00000006 is damaged: weights.safetensors has 100 bytes" in output
    assert "step_00000004 is used" in output
    assert "metrics.jsonl: 1 step has no row: 2; they were lost before this start" in output
    assert weights.read_bytes() == sound


def test_divergence_is_recorded(config_file: ConfigFile, tmp_path: Path) -> None:
    """Breaks if a non-finite loss is logged as a number, saved, or called done (that it never reaches the weights:
    tests/test_parity.py)."""
    finish(start(config_file({"model": {"init_std": 1e30}}), tmp_path / "run"), 3)
    assert status(tmp_path / "run")["state"] == "diverged"
    rows, _ = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0]
    assert rows[0]["event"] == "nonfinite"
    assert {"nonfinite/loss", "val/loss"} <= set(rows[0]["nonfinite"])
    assert rows[0]["nonfinite/loss"] is None
    assert rows[0]["nonfinite/lr"] > 0
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_bad_input(straight: Path, config_file: ConfigFile, tmp_path: Path, tiny_data: tuple[Path, Any]) -> None:
    """Breaks if a mistake is a traceback, trains something, or leaves a folder behind."""
    before = {path: path.stat().st_mtime_ns for path in straight.rglob("*") if path.is_file()}
    cases = [
        (["--set", "optim.weight_decay=0.25"], straight, "optim.weight_decay: asked 0.25, found 0.5"),
        (["--resume", "never"], straight, "holds a run"),
        (["--resume", "must"], tmp_path / "new", "holds no run"),
        (["--set", "optim.weight_decy=1"], tmp_path / "new", "did you mean 'weight_decay'"),
        (["--set", "batch.tokens_per_step=100"], tmp_path / "new", "nearest: 96 or 112"),
        (["--set", "schedule.steps=1000000"], tmp_path / "new", "at most"),
        (["--set", "model.vocab_size=500"], tmp_path / "new", "set model.vocab_size to at least 512"),
        (["--set", f"data.path={tmp_path / 'absent'}"], tmp_path / "new", "prepare it with: python -m data.prepare"),
        ([], tmp_path / "config.json", "config.json is no folder; a run needs one"),
        ([], tmp_path, "holds no run (there is no experiment.json in it), but config.json"),
        (["--set", "precision=tf32"], tmp_path / "new", "tf32 needs a CUDA device"),
    ]
    config = config_file()  # written once: they all read it at one time
    processes = [start(config, run_dir, *options) for options, run_dir, _ in cases]
    for process, (_, _, message) in zip(processes, cases, strict=True):
        output = finish(process, 2)
        assert message in output
        assert "Traceback" not in output
        assert output.count("\n") < 6, "the plan came first"
    assert not (tmp_path / "new").exists()
    assert before == {path: path.stat().st_mtime_ns for path in straight.rglob("*") if path.is_file()}


def test_occupied_port(config_file: ConfigFile, tmp_path: Path) -> None:
    """Breaks if a second run on one host hangs, joins the first, or dies without naming --master_port."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        run = start(config_file(), tmp_path / "run", ranks=2, master_port=str(taken.getsockname()[1]))
        output, _ = run.communicate(timeout=180)
    assert "choose one with `deepspeed --master_port PORT`" in output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("ranks", [1, 2])
def test_second_writer(ranks: int, config_file: ConfigFile, tmp_path: Path) -> None:
    """Breaks if two processes can write one run folder, or the second's other ranks wait for the one that was told."""
    run = start(config_file(LONG), tmp_path / "run")
    wait(lambda: len(losses(tmp_path / "run")) > 20, run)
    output = finish_ranks(ranks, config_file(LONG), tmp_path / "run", code=2)
    assert f"process {run.pid} on {socket.gethostname()} (since" in output
    assert "Traceback" not in output
    run.send_signal(signal.SIGINT)
    finish(run, 75)


def test_the_end_of_a_process_changes_nothing() -> None:
    """Breaks if a library that aborts while the interpreter is torn down turns a finished run into a failed one."""
    program = "import atexit, os, train; atexit.register(os.abort); print('said'); train.leave(75)"
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (75, "said\n")


def test_data_options_of_a_run(
    straight: Path, short_documents: tuple[Path, Any], config_file: ConfigFile, tmp_path: Path
) -> None:
    """Breaks if epochs, a token limit, document order or separate documents cannot be trained and resumed."""
    options = {
        "path": str(short_documents[0]),
        "epochs": 2,
        "train_tokens": 1000,
        "order": "documents",
        "cross_document_attention": False,
    }
    config = config_file({"data": options, "schedule": {"steps": 15}, "checkpoint": {"every": 8}})
    finish(start(config, tmp_path / "run"))
    digest, before = status(tmp_path / "run")["order_digest"], losses(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_00000015")
    finish_ranks(2, config, tmp_path / "run", "--set", "parallel.zero_stage=1")
    assert status(tmp_path / "run")["order_digest"] == digest
    # the digest is of the windows' numbers, the losses are of what was read
    assert [loss for _, loss in losses(tmp_path / "run")] == pytest.approx([loss for _, loss in before], rel=1e-6)
    assert digest != status(straight)["order_digest"]
    assert losses(tmp_path / "run")[0] != losses(straight)[0]
