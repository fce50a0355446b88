"""What only a CUDA device can show. Run with `python -m pytest -m gpu`, or with benchmarks/gpu.sh."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from configs.schema import RunConfig
from data.manifest import Manifest
from engine.attention_kernel import attention_kernel, name_kernel
from engine.devices import device_bytes
from engine.documents_apart import CLOSE, difference
from engine.dtypes import set_matmul_precision
from engine.launch import start_world
from engine.network import build_model
from model import loss
from tests.live import make_training, train_steps
from tests.plain import plain_run
from tests.ranks import run_ranks
from tests.test_checkpoint import assert_same_files, resumed_runs
from tests.test_fast import error, reference
from tests.test_parity import BOUNDS, CASE, CASES, engine_runs
from tests.test_rounding import assert_law, ends_without_gradient, law_cases

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
GPU_CASES = [*CASES, ("tf32", 0)]
GPU_BOUNDS = {**BOUNDS, "fp32": (1e-5, 1e-4), "tf32": BOUNDS["bf16-mixed"]}  # other kernels, other orders of summation


def test_every_precision_and_stage(tiny_data: tuple[Path, Manifest], tiny_config: Callable[..., RunConfig]) -> None:
    """Breaks if a label means something else on a GPU: autocast switched off, another dtype, another optimiser path."""
    losses, _, weights = plain_run(tiny_config(CASE), tiny_data[1])
    configs = [tiny_config(CASE, {"precision": p, "parallel": {"zero_stage": stage}}) for p, stage in GPU_CASES]
    for (precision, stage), found in zip(
        GPU_CASES, run_ranks(1, engine_runs, configs, tiny_data[1], gpu=True)[0], strict=True
    ):
        loss_bound, weight_bound = GPU_BOUNDS[precision]
        for step, (ours, theirs) in enumerate(zip(found["steps"], losses, strict=True)):
            assert abs(ours.loss - theirs) <= loss_bound * theirs, f"{precision}, stage {stage}, update {step}"
        for name, tensor in found["end"].items():
            error = (tensor.float() - weights[name]).norm() / weights[name].norm()
            assert error <= weight_bound, f"{precision}, stage {stage}: {name} is {error:.2e} from the reference"


def test_resume_is_bit_identical(
    tiny_data: tuple[Path, Manifest], tiny_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    """Breaks if, with parallel.deterministic, a checkpoint loses some of fused AdamW's state on the device, its step included."""
    configs = [
        tiny_config({"precision": p, "parallel": {"zero_stage": stage, "deterministic": True}})
        for p, stage in GPU_CASES
    ]
    for case, run in zip(
        GPU_CASES, run_ranks(1, resumed_runs, configs, tiny_data[1], tmp_path, gpu=True)[0], strict=True
    ):
        assert [s.loss for s in run["straight"]] == [s.loss for s in run["resumed"]], case
        assert_same_files(*run["files"])


def deterministic_run(config: RunConfig, manifest: Manifest) -> list[float]:
    world = start_world("deterministic", 120, None, deterministic=True)
    return [step.loss for step in train_steps(make_training(config, manifest, world), range(6))]


def test_deterministic_mode(tiny_data: tuple[Path, Manifest], tiny_config: Callable[..., RunConfig]) -> None:
    """Breaks if parallel.deterministic refuses an operation of the model, or two runs under it differ in a bit."""
    for precision in ("fp32", "bf16-mixed"):
        config = tiny_config({"precision": precision, "data": {"cross_document_attention": False}})
        first, second = (run_ranks(1, deterministic_run, config, tiny_data[1], gpu=True)[0] for _ in range(2))
        assert first == second, precision


def test_fused_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if the chunked loss, compiled or not, is not the reference's on a GPU, value and gradients."""
    torch.manual_seed(0)
    device = torch.device("cuda")
    set_matmul_precision("fp32", device)
    x, head, targets = (
        torch.randn(512, 64, device=device),
        0.2 * torch.randn(1000, 64, device=device),
        torch.arange(512),
    )
    targets = targets.to(device)
    monkeypatch.setattr(loss, "CHUNK_ELEMENTS", 200 * 1000)
    value, *exact = reference(x, head, targets, 0.01)
    for dtype, bound in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
        for compiled in (False, True):
            inputs = [t.clone().requires_grad_() for t in (x, head)]
            found = loss.cross_entropy_sum(inputs[0], inputs[1], targets, 0.01, dtype, compiled)
            assert found.item() == pytest.approx(value.item(), rel=bound)
            for gradient, wanted in zip(torch.autograd.grad(found, inputs), exact, strict=True):
                assert error(gradient, wanted) < bound


def test_compiled_and_recomputed(
    tiny_data: tuple[Path, Manifest], tiny_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    """Breaks if compiled or recomputed blocks train otherwise on a GPU at some stage, or do not resume bit-exactly."""
    ways = [(stage, {"compile": both, "recompute": both}) for stage in range(4) for both in (False, True)]
    exact = {"precision": "bf16-mixed", "parallel": {"deterministic": True}}
    configs = [tiny_config(CASE, exact, {"parallel": {"zero_stage": stage, **way}}) for stage, way in ways]
    runs = run_ranks(1, resumed_runs, configs, tiny_data[1], tmp_path, gpu=True)[0]
    for (stage, way), run in zip(ways, runs, strict=True):
        losses = [step.loss for step in run["straight"]]
        assert losses == pytest.approx([s.loss for s in runs[0]["straight"]], rel=GPU_BOUNDS["bf16-mixed"][0]), (
            stage,
            way,
        )
        assert losses == [s.loss for s in run["resumed"]], (stage, way)
        assert_same_files(*run["files"])


def test_tf32_is_its_own_label() -> None:
    """Breaks if fp32 runs multiply in TF32: its products are wrong in the fourth digit, float32's in the seventh."""
    device = torch.device("cuda")
    a, b = (torch.randn(1024, 1024, dtype=torch.float64, device=device) for _ in range(2))
    exact, errors = a @ b, {}
    for precision in ("fp32", "tf32"):
        set_matmul_precision(precision, device)
        errors[precision] = ((a.float() @ b.float()).double() - exact).norm().item() / exact.norm().item()
    set_matmul_precision("fp32", device)
    assert errors["fp32"] < 2e-6
    assert errors["tf32"] > 1e-4


def test_zero_gradient_law(tiny_data: tuple[Path, Manifest], tiny_config: Callable[..., RunConfig]) -> None:
    """Breaks if a decay is lost to rounding in a kernel of the GPU's, which are others than the CPU's."""
    stages = {"tf32": (0, 1, 2, 3), "bf16-mixed": (0, 1, 2, 3), "bf16-master": (1, 2, 3), "bf16-true": (1, 2, 3)}
    stages["bf16-stochastic"] = (1, 2, 3)
    configs = [tiny_config(case) for case in law_cases(stages)]
    for config, ends in zip(
        configs, run_ranks(1, ends_without_gradient, configs, tiny_data[1], gpu=True)[0], strict=True
    ):
        assert_law(config, *ends)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16-mixed"])
@pytest.mark.parametrize("whole", [True, False])
def test_kernel_of_a_run(precision: str, whole: bool, compiled: bool, tiny_config: Callable[..., RunConfig]) -> None:
    """Breaks if the kernel recorded at a start is not the one that the network runs, its blocks compiled or not."""
    device = torch.device("cuda", 0)
    fields = {"data": {"cross_document_attention": whole}, "parallel": {"compile": compiled}}
    config = tiny_config({"precision": precision, **fields})
    model = build_model(config, 0, device).to(device)
    recorded = attention_kernel(config, 2, device, model.by_blocks)
    model.init_weights(0)
    tokens = torch.zeros(2, config.model.seq_len + 1, dtype=torch.long, device=device)
    model(tokens[:, :-1], tokens[:, 1:]).backward()
    with profile(activities=[ProfilerActivity.CPU]) as trace:
        model(tokens[:, :-1], tokens[:, 1:])
    names = {event.name for event in trace.events()}
    assert recorded != "unknown"
    if recorded == "flex":  # made by the compiler, so no operator of torch's has its name
        assert not any("scaled_dot_product" in name for name in names)
    else:
        assert name_kernel(names) == recorded


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("length", [64, 200, 1024])
def test_documents_apart_by_blocks(precision: str, length: int, tiny_config: Callable[..., RunConfig]) -> None:
    """Breaks if FlexAttention's outputs or gradients are not the dense mask's, for a window of less than a block or of many."""
    device = torch.device("cuda", 0)
    set_matmul_precision(precision, device)
    fields = {"precision": precision, "data": {"cross_document_attention": False}}
    config = tiny_config(
        fields, {"model": {"seq_len": length, "n_embd": 64, "n_head": 2}}, {"parallel": {"zero_stage": 1}}
    )
    apart = difference(config, device)
    set_matmul_precision("fp32", device)
    assert apart < (1e-5 if precision == "fp32" else CLOSE)


def test_memory_of_the_device() -> None:
    """Breaks if a plan is made for another memory than the device has."""
    sizes = [torch.cuda.get_device_properties(index).total_memory for index in range(torch.cuda.device_count())]
    assert device_bytes() == min(sizes)
