"""Figures as data: where a heat map's cells and lines stand, what its colours span, and how few seeds are drawn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.endpoint import endpoint_of
from analysis.figures import Style, seeds_together
from analysis.grid import NOISES, Heat
from analysis.landscape import heat_maps
from analysis.pairing import group_runs
from analysis.runs import Run, shown
from analysis.trained import facts
from tests.recorded import load, write_run


def test_cells_stand_at_their_logarithms() -> None:
    """Breaks if unevenly spaced values get cells of one size, cells leave gaps, or λ = 0 is put on the logarithmic axis."""
    heat = Heat([0.001, 0.002, 0.008], [0.0, 0.1, 1.0], np.arange(9.0).reshape(3, 3), "loss")
    assert heat.across.places == pytest.approx(np.log10([0.001, 0.002, 0.008]))
    assert heat.across.edges[1:, 0] == pytest.approx(heat.across.edges[:-1, 1])
    widths = np.diff(heat.across.edges, axis=1)[:, 0]
    assert widths[2] == pytest.approx(2 * widths[0]), "a factor of four is twice as wide as one of two"
    assert heat.up.zero
    assert heat.up.edges[0, 1] < heat.up.edges[1, 0], "a gap beside 0"


def test_lines_of_equal_product_are_straight() -> None:
    """Breaks if a line over the map joins cells whose ηλ differ, or leaves the cells."""
    heat = Heat([0.001, 0.002, 0.008], [0.0, 0.1, 1.0], np.zeros((3, 3)), "loss")
    lines = heat.equal_products()
    assert len(lines) >= 2
    for product, ends in lines:
        assert ends.sum(axis=1) == pytest.approx(np.log10(product))
        for axis, column in ((heat.across, 0), (heat.up, 1)):
            positive = axis.edges[int(axis.zero) :]
            assert (ends[:, column] >= positive.min() - 1e-9).all()
            assert (ends[:, column] <= positive.max() + 1e-9).all()


def test_colours_span_more_than_the_noise() -> None:
    """Breaks if cells that only seeds tell apart get other colours, or one bad corner takes all colours."""
    alike = Heat([1, 2], [1, 2], np.array([[3.0, 3.001], [3.002, 3.003]]), "loss", noise=0.01)
    low, high = alike.range()
    assert high - low == pytest.approx(NOISES * 0.01)
    corner = Heat([1, 2], [1, 2], np.array([[3.0, 3.1], [3.2, 9.0]]), "loss", noise=0.001)
    assert corner.range()[1] < 3.5


def _runs(root: Path, ends: dict[tuple[float, float], list[float]]) -> list[Run]:
    paths = []
    for (rate, decay), losses in ends.items():
        for seed, loss in enumerate(losses):
            path = root / f"{rate}-{decay}-{seed}"
            paths.append(
                write_run(
                    path,
                    lambda s, level=loss: level + 0 * s,
                    decay=decay,
                    seed=seed,
                    steps=60,
                    noise=0,
                    optim={"lr": rate},
                )
            )
    return load(*paths)


def test_the_lowest_is_not_named_alone(tmp_path: Path) -> None:
    """Breaks if a cell that the lowest cannot be told from is not marked, or one that can be is."""
    runs = _runs(
        tmp_path,
        {
            (0.1, 0.1): [3.0, 3.02, 3.04],
            (0.1, 0.2): [3.01, 3.0, 3.06],
            (0.2, 0.1): [3.5, 3.52, 3.54],
            (0.2, 0.2): [3.5, 3.53],
        },
    )
    groups = group_runs(runs)[0]
    heat = heat_maps(groups, endpoint_of(groups))[0].panels[0].heat
    assert heat is not None
    assert heat.words == [["lowest", ""], ["≈", "≈"]], "two seeds tell nothing apart"


def test_what_was_trained(tmp_path: Path) -> None:
    """Breaks if the page does not say the data, the model, the length, the code or the machine, or hides what some runs lack."""
    paths = [write_run(tmp_path / str(seed), seed=seed, steps=60) for seed in range(3)]
    start = {
        "revision": "0123456789abcdef",
        "device": "cpu",
        "ranks": 2,
        "threads_per_rank": 1,
        "machine": "x86_64",
        "python": "3.11.7",
        "packages": {"torch": "2.13.0", "deepspeed": "0.19.8"},
        "data": {"digest": "f" * 64, "source": "text", "tokenizer": "gpt2"}
        | dict.fromkeys(("train_tokens", "val_tokens", "train_documents", "val_documents"), 1234),
    }
    for path in paths[:2]:
        (path / "starts.jsonl").write_text(json.dumps(start) + "\n")
    told = dict(facts(load(*paths)))
    assert told["data"].startswith(
        "text, 1,234 training and 1,234 validation tokens in 1,234 and 1,234 documents, tokenizer gpt2"
    )
    assert "0123456789ab (1 of 3 runs did not record it)" in told["code"]
    assert "3.84 tokens per parameter" in told["length"]
    assert "1,000 parameters" in told["model"]
    assert "2 rank(s) of 1 thread(s)" in told["machine"]
    assert "torch 2.13.0" in told["versions"]
    assert "init" in told["the runs differ in"]
    # a branch is counted, and is no training of its own
    branch = write_run(tmp_path / "branch", steps=7, branch={"origin": f"{paths[0]}@500"})
    told = dict(facts(load(*paths, branch)))
    assert told["branches"] == "1, of 7 updates, from checkpoints of these"
    assert "7 updates" not in told["length"]


def test_a_value_of_64_letters() -> None:
    """Breaks if a text is cut as a digest is because it has as many letters."""
    assert shown("0123456789abcdef" * 4) == "0123456789ab"
    text = "λ 0.151 η 0.01, of a run whose name has as many letters as it is"
    assert len(text) == 64
    assert shown(text) == text


def test_two_seeds_are_two_lines(tmp_path: Path) -> None:
    """Breaks if two seeds get a band, or if three get none."""
    style = Style("#000000", "solid", {})
    runs = _runs(tmp_path, {(0.1, 0.1): [3.0, 3.1, 3.2]})
    each = [(run, pd.Series([run.column("val/loss").iloc[-1]] * 5)) for run in runs]
    two = seeds_together([curve for _, curve in each[:2]], each[:2], "λ", style)
    assert [line.low for line in two] == [None, None]
    assert all(line.thin_line and line.entry == "λ" for line in two)
    three = seeds_together([curve for _, curve in each], each, "λ", style)
    assert three[0].low is not None
    assert [line.faint for line in three] == [False, True, True, True]
