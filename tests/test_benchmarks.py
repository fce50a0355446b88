"""The benchmarks run: a benchmark that broke measures nothing, and nobody notices until its figure is needed."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.cost_tables import estimate
from benchmarks.outcome import RESULTS
from benchmarks.pages import MARKED, TABLES, filled, pages
from tests.pictures import prepared_pictures
from tests.processes import ROOT

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
            # at stage 0 one rank exchanges nothing, and there would be no communication to time
            ["--set", "parallel.zero_stage=1", "--steps", "6", "--rounds", "1", "--peer", SLOWER, "--peer", PEER],
            {"ratio", "launch_to_first_step_s", "mfu"},
        ),
        ("memory_estimate", ["--cases", "0"], {"cases"}),
        ("rank_scaling", ["--steps", "3", "--stages", "0"], {"ratio_to_one_rank"}),
        ("means", ["--updates", "1", "--rounds", "1", "--means", "whole"], {"time_over_shipped", "peak_bytes"}),
        (
            "hashing",
            ["--pairs", "1", "--updates", "2"],
            {"ratio", "ratio_range", "seconds_per_gb", "bytes_per_s_beside"},
        ),
        ("checkpoint_times", ["--rounds", "1"], {"ours_save_s", "deepspeed_save_s", "ours_load_s", "ours_bytes"}),
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


def test_images_against_a_plain_loop(tmp_path: Path) -> None:
    """Breaks if the benchmark of images no longer fits what it measures, or its ratio is not of its own seconds."""
    folder, _ = prepared_pictures(tmp_path, (3, 9, 9), [40, 30])
    network = {"kind": "mlp", "image_size": 9, "channels": 3, "classes": 2, "width": 8}
    changes = {"model": network, "batch": {"images_per_step": 16, "micro_batch": 8}, "data.path": str(folder)}
    command = [sys.executable, "-m", "benchmarks.images_step", "--steps", "5", "--rounds", "2"]
    for key, value in changes.items():
        command += ["--set", f"{key}={json.dumps(value)}"]
    out = tmp_path / "result.json"
    found = subprocess.run([*command, "--out", str(out)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-2000:]
    result = json.loads(out.read_text())
    median = {
        name: statistics.median(s for updates in rounds for s in updates) for name, rounds in result["seconds"].items()
    }
    assert {name: 16 / s for name, s in median.items()} == pytest.approx(result["images_per_s"])
    assert result["ratio"] == pytest.approx(median["plain"] / median["train.py"])
    assert [len(rounds) for rounds in result["seconds"].values()] == [2, 2]
    assert {len(updates) for rounds in result["seconds"].values() for updates in rounds} == {3}
    assert {"forward", "backward", "statistics", "averages"} <= set(result["share_of_time"])
    other = [*command, "--set", "optim.decay_rule=decoupled", "--out", str(out)]
    found = subprocess.run(other, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "the plain loop has SGD" in found.stderr


@pytest.mark.parametrize("path", pages(), ids=lambda path: path.name)
def test_page_is_what_the_results_say(path: Path) -> None:
    """Breaks if a table of a page and the code or the committed results drift apart, or its markers do not close."""
    text = path.read_text()
    assert len(MARKED.findall(text)) == text.count("<!-- table:") == text.count("<!-- end -->")
    assert text == filled(text), "run python -m benchmarks.pages"


def test_every_table_stands_on_a_page() -> None:
    """Breaks if a page loses a table, its name, or a marker, and the test above passes on air."""
    names = [name for path in pages() for _, name, _ in MARKED.findall(path.read_text())]
    assert sorted(names) == sorted(TABLES)


def test_a_page_keeps_its_words() -> None:
    """Breaks if filling a table touches anything but what stands between its markers, or a wrong name is a traceback."""
    page = "Words | a |\n<!-- table: gpus -->\nold\n<!-- end -->\nmore\n"
    assert filled(page) == page.replace("old", TABLES["gpus"]())
    with pytest.raises(SystemExit, match="no table 'gpu'"):
        filled(page.replace("gpus", "gpu"))


@pytest.mark.parametrize("path", sorted(RESULTS.glob("memory-*.json")), ids=lambda path: path.stem)
def test_memory_of_the_plan_is_what_runs_took(path: Path) -> None:
    """Breaks if the plan's memory of some shape, precision and ZeRO stage is a tenth off what was measured, on either side."""
    result = json.loads(path.read_text())
    for case, found in result["cases"].items():
        assert sum(estimate(result["command"], case)) == pytest.approx(found["measured_bytes"], rel=0.1), case


def test_report_benchmark(tmp_path: Path) -> None:
    """Breaks if the benchmark of the report no longer fits what it measures."""
    command = [sys.executable, "-m", "benchmarks.analysis", "--runs", "2", "--steps", "300"]
    subprocess.run([*command, "--out", str(tmp_path / "out.json")], cwd=ROOT, check=True, capture_output=True)
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["page_bytes"] > 4_000_000
    assert result["peak_bytes"] > 0
