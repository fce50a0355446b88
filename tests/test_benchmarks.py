"""The benchmarks run: a benchmark that broke measures nothing, and nobody notices until its figure is needed."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.outcome import RESULTS
from benchmarks.scaling import estimate

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.engine
PEER, SLOWER = (
    f"{sys.executable} -c \"print('step 1: time 900.00ms\\n' * 2 + 'step 3: time {ms}.00ms\\n' * 3)\""
    for ms in (250, 300)
)


@pytest.mark.parametrize(
    ("module", "options", "keys"),
    [
        (
            "train_step",
            ["--steps", "6", "--rounds", "1", "--peer", SLOWER, "--peer", PEER],
            {"ratio", "launch_to_first_step_s", "mfu"},
        ),
        ("memory", ["--cases", "0"], {"cases"}),
        ("ranks", ["--steps", "3", "--stages", "0"], {"ratio_to_one_rank"}),
        ("means", ["--updates", "1", "--rounds", "1", "--means", "whole"], {"time_over_shipped", "peak_bytes"}),
        ("checkpoint", ["--rounds", "1"], {"ours_save_s", "deepspeed_save_s", "ours_load_s", "ours_bytes"}),
    ],
)
def test_benchmark(module: str, options: list[str], keys: set[str], tmp_path: Path) -> None:
    """Breaks if a benchmark no longer fits the code it measures."""
    command = [sys.executable, "-m", f"benchmarks.{module}", "--config", "configs/quickstart.json", *options]
    out = tmp_path / "result.json"
    found = subprocess.run([*command, "--out", str(out)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-2000:]
    result = json.loads(out.read_text())
    assert keys <= set(result)
    assert result["command"].startswith(f"python -m benchmarks.{module}")
    if module == "train_step":
        assert (result["peer"], result["peers_tried_s"]) == (PEER, {SLOWER: 0.3, PEER: 0.25})
        assert result["tokens_per_s"]["peer"] == result["tokens_per_step"] / 0.25
        assert result["ratio_to_peer"] == result["tokens_per_s"]["train.py"] / result["tokens_per_s"]["peer"]
        assert result["spans_over_update"] == pytest.approx(1, abs=0.2)  # of the same updates
        assert {"forward", "backward", "optimiser", "data", "logging", "communication"} <= set(result["share_of_time"])
        assert 0.1 < result["fraction_of_matmul"] < 1.5


@pytest.mark.parametrize("page", ["scaling", "speed"])
def test_page_is_what_the_results_say(page: str) -> None:
    """Breaks if a page of figures and the code or the committed results drift apart."""
    module = importlib.import_module(f"benchmarks.{page}")
    assert module.DOC.read_text() == module.render(), f"run python -m benchmarks.{page}"


def test_memory_of_the_plan_is_what_runs_took() -> None:
    """Breaks if the plan's memory of some precision and ZeRO stage is a tenth off what was measured, on either side."""
    (path,) = RESULTS.glob("memory-*.json")
    for case, found in json.loads(path.read_text())["cases"].items():
        assert sum(estimate(case)) == pytest.approx(found["measured_bytes"], rel=0.1), case


def test_report_benchmark(tmp_path: Path) -> None:
    """Breaks if the benchmark of the report no longer fits what it measures."""
    command = [sys.executable, "-m", "benchmarks.analysis", "--runs", "2", "--steps", "300"]
    subprocess.run([*command, "--out", str(tmp_path / "out.json")], cwd=ROOT, check=True, capture_output=True)
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["page_bytes"] > 4_000_000
    assert result["peak_bytes"] > 0
