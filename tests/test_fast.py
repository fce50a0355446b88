"""Fast paths give what the slow ones give: the chunked loss, compiled blocks, recomputed activations, kept memory."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from configs.schema import Model, RunConfig
from data.manifest import Manifest
from engine.network import is_compiled
from model import linear, loss
from model.gpt import GPT
from record.metrics import read_metrics
from record.run import RunFolder
from tests.processes import ROOT
from tests.ranks import run_ranks
from tests.test_checkpoint import assert_same_files, resumed_runs
from tests.test_parity import BOUNDS, CASES

CPU = torch.device("cpu")
engine = pytest.mark.engine
compiles = pytest.mark.skipif(
    not (shutil.which("g++") and Path(sysconfig.get_path("include"), "Python.h").exists())
    and not os.environ.get("REQUIRE_COMPILER"),
    reason="no C++ compiler or no Python.h",
)


def reference(x: Tensor, head: Tensor, targets: Tensor, z_loss: float) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and gradients in float64, the logits whole."""
    x, head = (t.detach().double().requires_grad_() for t in (x, head))
    logits = F.linear(x, head)
    value = F.cross_entropy(logits, targets, reduction="sum")
    penalty = z_loss * logits[targets >= 0].logsumexp(-1).square().sum()
    return value, *torch.autograd.grad(value + penalty, (x, head))


def error(found: Tensor, exact: Tensor) -> float:
    return ((found.double() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=[compiles, engine])])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-6), (torch.bfloat16, 1e-2)])
def test_loss_in_chunks(dtype: torch.dtype, bound: float, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if a chunk's tokens are lost, counted twice, or get another's gradient; whatever divides the tokens."""
    torch.manual_seed(0)
    torch.compiler.reset()
    x, head = torch.randn(50, 24), 0.3 * torch.randn(96, 24)
    targets = torch.randint(96, (50,))
    targets[[3, 49]] = -100
    value, of_x, of_head = reference(x, head, targets, 0.01)
    for chunk, cache in ((1 << 27, 1 << 21), (50 * 96, 7 * 96), (7 * 96, 1 << 21), (13 * 96, 5 * 96), (1, 1)):
        monkeypatch.setattr(loss, "CHUNK_ELEMENTS", chunk)
        monkeypatch.setattr(loss, "CACHE_ELEMENTS", cache)
        torch.compiler.reset()
        inputs = [t.clone().requires_grad_() for t in (x, head)]
        found = loss.cross_entropy_sum(inputs[0], inputs[1], targets, 0.01, dtype, compiled)
        gradients = torch.autograd.grad(found * 0.5, inputs)
        assert found.dtype == torch.float32
        assert found.item() == pytest.approx(value.item(), rel=bound)
        assert error(2 * gradients[0], of_x) < bound
        assert error(2 * gradients[1], of_head) < bound
        with torch.no_grad():
            assert loss.cross_entropy_sum(x, head, targets, 0.01, dtype).item() == pytest.approx(found.item(), rel=1e-6)


@pytest.mark.parametrize("bias", [False, True])
def test_linear_is_torchs(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if the product in place of torch's own has another value or gradient, or rounds more."""
    torch.manual_seed(0)
    assert linear.ONEDNN
    ours = linear.Linear(96, 40, bias=bias)
    exact = torch.nn.Linear(96, 40, bias=bias).double()
    exact.load_state_dict(ours.state_dict())
    x, scale = torch.randn(3, 50, 96).requires_grad_(), torch.randn(3, 50, 40)
    wide = x.detach().double().requires_grad_()
    (exact(wide) * scale).sum().backward()
    for available in (True, False):
        monkeypatch.setattr(linear, "ONEDNN", available)
        x.grad = None
        ours.zero_grad()
        y = ours(x)
        (y * scale).sum().backward()
        assert error(y.detach(), exact(wide).detach()) < 1e-6
        for found, expected in zip((x, *ours.parameters()), (wide, *exact.parameters()), strict=True):
            assert found.grad is not None
            assert expected.grad is not None
            assert error(found.grad, expected.grad) < 1e-6
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(x).dtype == torch.bfloat16


class Largest(TorchDispatchMode):
    """Remembers the elements of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if isinstance(found, Tensor):
            self.elements = max(self.elements, found.numel())
        return found


def test_logits_never_exist_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if training, validation or a probe holds the logits of all tokens at once: 50304 × 1024 × micro-batch of them."""
    for limit in ("CHUNK_ELEMENTS", "CUDA_ELEMENTS"):
        monkeypatch.setattr(loss, limit, 16 * 4096)
    model = GPT(Model(n_layer=1, n_head=1, n_embd=8, seq_len=32, vocab_size=4096))
    model.init_weights(0)
    tokens = torch.randint(4096, (8, 33))
    with Largest() as seen:
        model(tokens[:, :-1], tokens[:, 1:]).backward()
    with Largest() as seen_by_probe, torch.no_grad():
        model(tokens[:, :-1], tokens[:, 1:], statistics=True)
    assert max(seen.elements, seen_by_probe.elements) == 16 * 4096


@engine
@compiles
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_stage_and_resume(
    stage: int, tiny_data: tuple[Path, Manifest], tiny_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    """Breaks if compiled or recomputed blocks train otherwise than plain ones in some precision, or do not resume bit-exactly."""
    both = {"compile": True, "recompute": True}
    cases: list[tuple[str, dict[str, Any]]] = [("fp32", {}), ("fp32", {"recompute": True}), ("fp32", both)]
    cases += [(p, way) for p, at in CASES if at == stage and p != "fp32" for way in ({}, both)]
    settings = [{"precision": precision, "parallel": {"zero_stage": stage, **way}} for precision, way in cases]
    configs = [tiny_config({"optim": {"lr": 2e-3}, "model": {"init_std": 0.02}}, setting) for setting in settings]
    found = run_ranks(2, resumed_runs, configs, tiny_data[1], tmp_path, timeout_s=600)[0]
    plain: list[float] = []
    for (precision, way), run in zip(cases, found, strict=True):
        losses = [step.loss for step in run["straight"]]
        plain = plain if way else losses
        bound = BOUNDS[precision][0] if way.get("compile") else 0.0  # recomputing alone changes no bit
        for ours, theirs in zip(losses, plain, strict=True):
            assert abs(ours - theirs) <= bound * (theirs if precision == "fp32" else 1), (precision, way)
        assert losses == [step.loss for step in run["resumed"]], (precision, way)
        assert_same_files(*run["files"])


@engine
@compiles
@pytest.mark.parametrize(("precision", "stage"), [("bf16-mixed", 3), ("bf16-master", 1)])
def test_compiled_run(precision: str, stage: int, config_file: Callable[..., Path], tmp_path: Path) -> None:
    """Breaks if validation, probes or averages are otherwise where the blocks are compiled."""
    seen = {"log": {"probe_every": 3}, "eval": {"every": 3}, "averages": {"ema": [0.9]}, "optim": {"lr": 2e-3}}
    seen |= {"model": {"init_std": 0.02}}  # where the bounds below were measured
    found = []
    for compiled in (False, True):
        config = config_file(seen, {"precision": precision, "parallel": {"zero_stage": stage, "compile": compiled}})
        run = RunFolder(tmp_path / f"compiled_{compiled}")
        command = [sys.executable, "train.py", "--config", str(config), "--run-dir", str(run.path)]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        assert (run.last_start() or {})["compiled"] == compiled
        found.append([*read_metrics(run.metrics)[0], *read_metrics(run.probes)[0]])
    for plain, fast in zip(*found, strict=True):
        assert set(plain) == set(fast)
        for key in (
            "train/loss",
            "val/loss",
            "val/loss_ema_0.9",
            "probe/loss",
            "probe/loss_ema_0.9",
            "probe/logsumexp",
        ):
            if key in plain:
                assert fast[key] == pytest.approx(plain[key], abs=BOUNDS[precision][0]), key


@compiles
def test_compiled_model_keeps_its_names() -> None:
    """Breaks if compiling renames tensors (`_orig_mod.`): checkpoints and decay masks go by name."""
    config = Model(n_layer=2, n_head=2, n_embd=8, seq_len=4, vocab_size=16)
    assert list(GPT(config, compiled=True).state_dict()) == list(GPT(config).state_dict())


def test_compiling_is_refused_or_said(
    tiny_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Breaks if a run that cannot compile finds out in its first step, or silently does not."""
    asked = tiny_config({"parallel": {"compile": True}})
    assert not is_compiled(tiny_config(), CPU)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match=r"needs a C\+\+ compiler \(no-such-compiler"):
        is_compiled(asked, CPU)
    # left open, a GPU compiles where it can, and says so where it cannot
    assert not is_compiled(tiny_config({"parallel": {"compile": None}}), torch.device("cuda"))
    assert "(no-such-compiler is not on the path; CXX names one)" in caplog.text
    assert "the blocks are not compiled" in caplog.text
    monkeypatch.setenv("CXX", " ")  # set to nothing is as not set
    assert not is_compiled(tiny_config(), CPU)
    with pytest.raises(ValueError, match="draw other masks"):
        tiny_config({"parallel": {"compile": True}, "model": {"dropout": 0.1}})


def test_recomputed_blocks_draw_the_same_masks() -> None:
    """Breaks if the second run of a block under recompute drops other elements than the first."""
    config, gradients = Model(n_layer=2, n_head=2, n_embd=8, seq_len=8, vocab_size=16, dropout=0.5), []
    tokens = torch.randint(16, (4, 9))
    for recompute in (False, True):
        model = GPT(config, recompute=recompute)
        model.init_weights(0)
        torch.manual_seed(1)
        model(tokens[:, :-1], tokens[:, 1:]).backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@engine
def test_trace(config_file: Callable[..., Path], tmp_path: Path) -> None:
    """Breaks if --profile traces other updates than it says, or leaves none."""
    config, folder = config_file(), tmp_path / "run"
    command = [sys.executable, "train.py", "--config", str(config), "--run-dir", str(folder), "--profile", "9"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    path = folder / "trace_step_00000003.json.gz"
    names = {event.get("name", "") for event in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]}
    assert sum(name.startswith("ProfilerStep") for name in names) == 4  # six updates, the first two left out
    assert [p.name for p in folder.glob("*trace*")] == [path.name]
