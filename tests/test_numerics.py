"""What a run does about numbers that go wrong: spikes, divergence, steps left out, steps taken again."""

from __future__ import annotations

import json
import math
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.cadence import is_probed
from configs.plan import make_plan
from configs.precision import TABLE
from configs.schema import Log, Numerics, RunConfig
from configs.windows import order_batch
from data.loader import TrainData, step_batches
from data.manifest import Manifest
from engine.devices import no_cuda, not_here
from engine.dtypes import check_dtypes
from model.loss import cross_entropy_sum
from record.metrics import read_metrics
from record.progress import Progress
from record.watch import WINDOW, LossWatch
from tests.processes import ConfigFile, finish, finish_ranks, losses, start, status

engine = pytest.mark.engine


def test_spikes_are_found_and_only_they() -> None:
    """Breaks if a falling, noisy loss counts as spikes, a real one is missed, or one spike hides the next."""
    random.seed(1)
    values = [10 * math.exp(-step / 500) + random.gauss(0, 0.05) for step in range(1000)]
    watch, found = LossWatch(8.0, None), {}
    for step, value in enumerate(values):
        spiking = step in (400, 402, 700)
        row = watch.add(step, value + 3.0 * spiking, 1.0)
        found |= {step: row} if row else {}
    assert sorted(found) == [400, 402, 700]
    assert all(row.keys() == {"spike/loss"} and row["spike/loss"] > 8 for row in found.values())
    never = LossWatch(0.0, None)
    assert not any(never.add(step, 1e9 if step == 80 else 1.0, 1.0) for step in range(100))


def test_progress_survives_a_stop() -> None:
    """Breaks if something that must survive a stop is not in a checkpoint's counters, or is not read from them."""
    numerics = Numerics(spike_deviations=8.0)
    watch = LossWatch(8.0, None)
    for step in range(3):
        watch.add(step, 3.0 - step, 1.0)
    progress = Progress("ab", 7, watch, step=3, decay_sum=0.5, evaluated=2, skipped=4, numbers={"r": {"w": 1.5}})
    assert all(getattr(progress, field.name) != field.default for field in fields(Progress))
    again = Progress.of(json.loads(json.dumps(progress.counters())), numerics)
    assert again.counters() == progress.counters()
    assert {f.name: getattr(again, f.name) for f in fields(Progress) if f.name != "watch"} == {
        f.name: getattr(progress, f.name) for f in fields(Progress) if f.name != "watch"
    }


def test_another_dtype_than_the_table_is_refused() -> None:
    """Breaks if a precision's label is not compared with what the live engine has."""
    for precision, row in TABLE.items():
        seen = row.as_dict()
        check_dtypes(precision, seen)
        for name in seen:
            other = "bfloat16" if seen[name] != "bfloat16" else "float32"
            with pytest.raises(
                RuntimeError, match=f"precision {precision} is not what the engine does: {name} is {other}"
            ):
                check_dtypes(precision, seen | {name: other})


# Gradient norms of the first updates of two small runs, seed 1 and 0: initial weights too small for their learning rate,
# which throws the first attention layer at update 29, and of the right size.
# fmt: off
BROKEN = [
    0.53, 0.52, 0.58, 0.64, 0.68, 0.63, 0.61, 0.62, 0.62, 0.61, 0.64, 0.56, 0.59, 0.56, 0.49, 0.48, 0.51, 0.47, 0.46, 0.36,
    0.42, 0.39, 0.39, 0.30, 0.28, 0.28, 0.30, 0.26, 15.17, 0.35, 0.31, 0.42,
]
SOUND = [
    1.09, 1.04, 1.03, 1.01, 0.94, 1.05, 1.07, 1.00, 0.87, 0.90, 0.88, 0.82, 0.77, 0.73, 0.70, 0.71, 0.75, 0.72, 0.64, 0.65,
    0.61, 0.61, 0.59, 0.55, 0.67, 0.56, 0.54, 0.61, 0.52, 0.48, 0.51, 0.44, 0.42, 0.46,
]
# fmt: on


# One that breaks in its second update, and one that breaks a little too little to be told from noise.
AT_ONCE, NEARLY = [0.5, 4.0, 0.5, 0.5], [0.5, 2.4, 0.5, 0.5]


@pytest.mark.parametrize(
    ("norms", "spikes"), [(BROKEN, [29]), (SOUND, []), (AT_ONCE, [2]), (NEARLY, []), ([0.5, 0.5, 4.0], [3])]
)
@pytest.mark.parametrize("interrupt", [False, True])
def test_a_start_is_judged_from_its_first_updates(norms: list[float], spikes: list[int], interrupt: bool) -> None:
    """Breaks if a start that breaks within 30 updates goes unmarked, a sound one is marked, or a resume forgets what was usual."""
    watch, found = LossWatch(8.0, None), []
    for step, norm in enumerate(norms, 1):
        found += [step] if watch.add(step, 7.0 - step / 100, norm) else []
        if interrupt:
            watch = LossWatch(8.0, None, json.loads(json.dumps(watch.state)))
    assert found == spikes


def test_probes_are_dense_in_the_start() -> None:
    """Breaks if what a start decides, in its first hundred updates, is not looked at, or probing cannot be switched off."""
    due = [step for step in range(1, 401) if is_probed(Log(), step)]
    assert due == [10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 200, 300, 400]
    assert not any(is_probed(Log(probe_every=None), step) for step in range(1, 401))


@pytest.mark.parametrize("interrupt", [False, True])
def test_divergence_is_judged_at_the_end(interrupt: bool) -> None:
    """Breaks if a loss that came back counts as diverged, one that did not does not, or a resume forgets."""

    def judge(values: list[float]) -> str:
        watch = LossWatch(8.0, 0.5)
        for step, value in enumerate(values, 1):
            watch.add(step, value, 1.0)
            if interrupt:
                watch = LossWatch(8.0, 0.5, json.loads(json.dumps(watch.state, allow_nan=False)))
        return watch.divergence

    calm = [3.0] * 200
    assert judge(calm) == ""
    assert judge(calm + [9.0] * 100 + [3.0] * 100) == "", "it came back"
    assert "since step 232" in judge(calm + [9.0] * 100), "half of the window of 64 after it rose"
    assert "not finite, its lowest 3.0000" in judge(calm + [math.nan] * WINDOW)
    assert "not finite, its lowest not finite" in judge([math.inf] * 80)
    assert judge([math.inf] * 80 + calm) == ""
    assert judge([9.0] * 10) == ""


def test_left_out_steps(tiny_data: tuple[Path, Manifest], tiny_config: Callable[..., RunConfig]) -> None:
    """Breaks if a range left out is read, anything else is not, or more is read than there is."""
    config = tiny_config({"data": {"skip_steps": [[2, 3], [5, 5]]}})
    assert [order_batch(config, t) + 1 for t in range(6)] == [1, 4, 6, 7, 8, 9]
    plain = tiny_config({"schedule": {"steps": 9}})
    ids, whole = (
        [batch.ids for batch in step_batches(TrainData(c.data.path, tiny_data[1], c), 0, None, 2, 0, 1)]
        for c in (config, plain)
    )
    for ours, theirs in zip(ids, [whole[k] for k in (0, 3, 5, 6, 7, 8)], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    summary = tiny_data[1].summary()
    assert make_plan(config, 1, summary).run_id != make_plan(tiny_config(), 1, summary).run_id
    limited = {"train_tokens": 9 * 128 + 1}
    make_plan(tiny_config({"data": {**limited, "skip_steps": [[2, 3], [5, 5]]}}), 1, summary)
    with pytest.raises(ValueError, match=r"need 80 windows of 16 tokens, the data in .* has 72"):
        make_plan(tiny_config({"data": {**limited, "skip_steps": [[2, 3], [5, 6]]}}), 1, summary)
    for wrong in ([[3, 2]], [[0, 1]], [[4, 5], [5, 6]], [[4, 5], [1, 2]]):
        with pytest.raises(ValueError, match="that start at 1 or later, rise and do not overlap"):
            tiny_config({"data": {"skip_steps": wrong}})


def test_z_loss_is_a_gradient_only() -> None:
    """Breaks if the z-loss is not the formula's, or changes the loss that is reported."""
    torch.manual_seed(0)
    logits, head = torch.randn(6, 7).requires_grad_(), torch.eye(7)
    targets = torch.randint(7, (6,))
    found = cross_entropy_sum(logits, head, targets, 0.1)
    assert found.item() == cross_entropy_sum(logits, head, targets).item()
    (gradient,) = torch.autograd.grad(found, logits)
    exact = logits.detach().double().requires_grad_()
    log_z = exact.logsumexp(-1)
    picked = exact.gather(-1, targets[:, None]).squeeze(-1)
    (expected,) = torch.autograd.grad((log_z - picked + 0.1 * log_z.square()).sum(), exact)
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-5, atol=1e-6)


@engine
def test_divergence_as_an_outcome(config_file: ConfigFile, tmp_path: Path) -> None:
    """Breaks if a diverging run is not trained to its end and called diverged, a spike is not in its row, or observing
    either changes the run."""
    wild = {"schedule": {"steps": 200, "kind": "constant"}, "optim": {"lr": 0.003, "grad_clip": 0}, "log": {"every": 1}}
    wild |= {"checkpoint": {"at": [100]}}
    finish(start(config_file(wild), tmp_path / "trunk"))
    hot = {"optim": {"lr": 3.0, "weight_decay": 0.1}, "schedule": {"steps": 100}}
    margin = {"numerics": {"divergence_margin": 1.0, "spike_deviations": 4.0}}
    branch = ["--branch", f"{tmp_path / 'trunk'}@100"]
    finish(start(config_file(wild, hot, {"numerics": {"spike_deviations": 0}}), tmp_path / "plain", *branch))
    assert status(tmp_path / "plain")["state"] == "done"
    finish(start(config_file(wild, hot, margin), tmp_path / "watched", *branch), 3)
    found = status(tmp_path / "watched")
    assert (found["state"], found["step"]) == ("diverged", 100)
    assert "more than 1 above it since step" in found["reason"]
    rows = read_metrics(tmp_path / "watched" / "metrics.jsonl")[0]
    assert any("spike/loss" in row or "spike/grad_norm" in row for row in rows)
    assert losses(tmp_path / "watched") == losses(tmp_path / "plain")


@engine
@pytest.mark.parametrize("ranks", [1, 2])
def test_replay(ranks: int, config_file: ConfigFile, tmp_path: Path) -> None:
    """Breaks if a replay takes another step than the run did, misses what was not finite, or writes anything."""
    options = {"checkpoint": {"every": 2}, "parallel": {"zero_stage": ranks}}
    config, run = config_file(options), tmp_path / "run"
    finish_ranks(ranks, config, run)
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in run.rglob("*")}
    output = finish_ranks(ranks, config, run, "--replay", "4")
    loss = dict(losses(run))[4]
    assert "replay of step 4 from" in output
    assert "step_00000002" in output
    assert f"loss {loss:.6f}, gradient norm" in output
    assert f"applied; recorded loss {loss:.6f}" in output
    assert len([line for line in output.splitlines() if line.startswith("blocks.0.attn.qkv.weight")]) == 1
    assert before == {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in run.rglob("*")}
    if ranks == 1:
        assert "the run has steps 1 to 6" in finish(start(config, run, "--replay", "7"), 2)
        assert "holds no run" in finish(start(config, tmp_path / "none", "--replay", "1"), 2)
        bad = config_file({"model": {"init_std": 1e30}})
        finish(start(bad, tmp_path / "bad"), 3)
        (row,) = read_metrics(tmp_path / "bad" / "metrics.jsonl")[0]
        assert len(row["nonfinite/windows"]) == 8
        output = finish(start(bad, tmp_path / "bad", "--replay", "1"))
        assert "not applied; no loss of this step is recorded" in output
        (line,) = [line for line in output.splitlines() if line.startswith("wte.weight")]
        assert float(line.split()[5]) > 0, "elements of the gradient that are not finite"


@engine
def test_train_longer(config_file: ConfigFile, tmp_path: Path) -> None:
    """Breaks if a finished run of constant learning rate cannot be trained on, or one with a horizon can."""
    constant = {"schedule": {"kind": "constant"}}
    finish(start(config_file(constant), tmp_path / "run"))
    finish(start(config_file(constant, {"schedule": {"steps": 9}}), tmp_path / "run"))
    finish(start(config_file(constant, {"schedule": {"steps": 9}}), tmp_path / "straight"))
    assert losses(tmp_path / "run") == losses(tmp_path / "straight")
    assert status(tmp_path / "run")["step"] == 9
    assert "is past schedule.steps 6" in finish(start(config_file(constant), tmp_path / "run"), 2)
    fading = {"optim": {"decay_schedule": {"kind": "linear"}}}
    finish(start(config_file(constant, fading), tmp_path / "fading"))
    longer = config_file(constant, fading, {"schedule": {"steps": 9}})
    assert "schedule.steps: asked 9, found 6" in finish(start(longer, tmp_path / "fading"), 2)
    finish(start(config_file(), tmp_path / "cosine"))
    output = finish(start(config_file({"schedule": {"steps": 9}}), tmp_path / "cosine"), 2)
    assert "schedule.steps: asked 9, found 6" in output


def test_tf32_without_cuda_is_refused_at_once(config_file: ConfigFile, tmp_path: Path) -> None:
    """Breaks if tf32 is refused only once torch is imported, leaves a folder, or cannot be planned on a login node."""
    code = "import sys, train; code = train.main(sys.argv[1:]); assert 'torch' not in sys.modules; sys.exit(code)"
    folder = tmp_path / "run"
    command = [
        sys.executable,
        "-c",
        code,
        "--config",
        str(config_file({"precision": "tf32"})),
        "--run-dir",
        str(folder),
    ]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    refused, planned = (
        subprocess.run([*command, *more], env=environment, capture_output=True, text=True)
        for more in ([], ["--dry-run"])
    )
    assert refused.returncode == 2, refused.stderr
    assert re.search(r"error: precision tf32 needs a CUDA device, and .*; use fp32 or bf16-mixed here", refused.stderr)
    assert not folder.exists()
    assert planned.returncode == 0, planned.stderr
    assert "not on this machine: precision tf32 needs a CUDA device" in planned.stderr
    assert "tokens of the run" in planned.stdout


def test_where_cuda_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if a machine that may have a CUDA device is turned away, or another precision is."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert not_here("bf16-mixed") == not_here("fp32") == ""
    monkeypatch.setattr("engine.devices.metadata.version", lambda _: "2.13.0+rocm7")
    assert no_cuda() == ""
    monkeypatch.setattr("engine.devices.metadata.version", lambda _: "2.13.0+cpu")
    assert no_cuda() == "this torch is built for CPUs only"
    monkeypatch.setattr("engine.devices.metadata.version", lambda _: "2.13.0")
    monkeypatch.setattr("engine.devices.ctypes.CDLL", lambda _: None)
    assert no_cuda() == ""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert no_cuda() == "CUDA_VISIBLE_DEVICES shows none"
