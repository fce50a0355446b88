"""Which attention kernel a run took: recorded at its start, and said where runs that are compared differ in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from analysis import best_decay, bias_variance, effective_lr, generalisation, loss_curves, precision_gap
from analysis.command import Analysis, Options
from configs.schema import RunConfig
from engine.attention_kernel import attention_kernel, name_kernel
from engine.network import build_model
from record.run import RunFolder
from tests.recorded import base_curve, load, write_run

pytestmark = pytest.mark.slow  # by its length alone: `make check` takes a minute

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "flash_cpu"),
        ({"precision": "bf16-mixed"}, "flash_cpu"),
        ({"precision": "bf16-true", "parallel": {"zero_stage": 1}}, "flash_cpu"),
        ({"data": {"cross_document_attention": False}}, "flash_cpu"),
        ({"model": {"dropout": 0.1}}, "math"),
    ],
)
def test_kernel_of_a_run(fields: dict[str, Any], expected: str, tiny_config: Callable[..., RunConfig]) -> None:
    """Breaks if the kernel named is not the one that the network itself runs, or if looking draws from torch's generator."""
    config = tiny_config(fields)
    before = torch.get_rng_state()
    assert attention_kernel(config, 2, CPU) == expected
    assert torch.equal(torch.get_rng_state(), before)
    with sdpa_kernel(SDPBackend.MATH):
        assert attention_kernel(config, 2, CPU) == "math", "what is switched off in this process counts"
    model = build_model(config, 0, CPU)
    model.init_weights(0)
    if config.precision == "bf16-true":
        model.bfloat16()
    tokens = torch.zeros(2, config.model.seq_len + 1, dtype=torch.long)
    with profile(activities=[ProfilerActivity.CPU]) as trace:
        model(tokens[:, :-1], tokens[:, 1:])
    assert name_kernel({event.name for event in trace.events()}) == expected


def test_unknown_kernel() -> None:
    """Breaks if a kernel that is not known, or none at all, is given another's name."""
    assert name_kernel({"aten::_scaled_dot_product_fused_attention_overrideable"}) == "unknown"
    assert name_kernel({"aten::_scaled_dot_product_flash_attention", "aten::bmm"}) == "flash"
    assert name_kernel({"aten::bmm", "aten::_softmax", "aten::_scaled_dot_product_attention_math"}) == "math"
    assert name_kernel({"aten::bmm"}) == "unknown"


def recorded(path: Path, *starts: dict[str, Any], **fields: Any) -> Path:
    write_run(path, **fields)
    for start in starts:
        RunFolder(path).record_start(start)
    return path


@pytest.mark.parametrize(
    "analyse",
    [loss_curves.analyse, best_decay.analyse, generalisation.analyse, precision_gap.analyse, effective_lr.analyse],
    ids=lambda analyse: analyse.__module__,
)
def test_said_by_analyses(analyse: Analysis, tmp_path: Path) -> None:
    """Breaks if an analysis pairs runs of other kernels without a word, or says so of runs that did not record theirs."""

    def notes(*starts: list[dict[str, Any]]) -> list[str]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        paths = [recorded(folder / f"wd{i}", *rows, decay=0.1 * i, steps=200) for i, rows in enumerate(starts)]
        return [note for note in analyse(load(*paths), Options()).notes if "pairs of runs differ in" in note]

    flash, math = ({"attention": kernel, "compiled": False} for kernel in ("flash", "math"))
    assert notes([flash], [flash]) == []
    assert notes([], []) == notes([{"compiled": True}], [{}]) == notes([{}], [math]) == []
    assert len(notes([flash], [flash | {"compiled": True}])) == 1
    (note,) = notes([flash], [math])
    assert "1 of 1 pairs of runs differ in the attention kernel: wd1 had math, wd0 flash; in bfloat16" in note
    (note,) = notes([flash, math], [flash, math])
    assert "wd1 had flash and math, wd0 flash and math" in note, (
        "changed at a resume: which steps were which is not known"
    )


def test_said_where_other_runs_are_paired(tmp_path: Path) -> None:
    """Breaks if a branch is set against its trunk, a precision against float32, or a matched run against its reference unsaid."""
    flash, math = {"attention": "flash"}, {"attention": "math"}
    trunk = recorded(tmp_path / "trunk", flash, steps=200)
    branch = {"branch": {"origin": f"{trunk}@100"}, "optim": {"lr": 0.001}}
    ended = recorded(tmp_path / "end", math, curve=lambda s: base_curve(s + 100), steps=100, **branch)
    mixed = recorded(tmp_path / "mixed", math, steps=200, precision="bf16-mixed")
    norms = {"weights/norm": base_curve}
    model = {"columns": norms | {"optim/lr": base_curve}, "steps": 200}
    reference = recorded(tmp_path / "reference", flash, decay=0.1, **model)
    schedule = {"schedule": {"steps": 200, "match": {"reference": str(reference)}}}
    matched = recorded(tmp_path / "matched", math, **model | schedule)
    for analyse, paths, words in [
        (bias_variance.analyse, (trunk, ended), "trunk had flash, end math"),
        (precision_gap.analyse, (trunk, mixed), "mixed had math, trunk flash"),
        (effective_lr.analyse, (reference, matched), "matched had math, reference flash"),
    ]:
        assert any(words in note for note in analyse(load(*paths), Options()).notes), (analyse.__module__, words)
