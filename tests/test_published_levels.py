"""Published losses under runs: where the experiment is the same, with what counts as equal, and nowhere else."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis import best_decay, loss_curves
from analysis.command import Options
from analysis.outside_tables import Place, places
from analysis.published_levels import notes_on_levels, published_levels
from analysis.reading import load_run
from analysis.runs import Run
from configs.load import merge
from tests.recorded import write_run

PLAIN = Options()


def place(name: str) -> Place:
    return next(place for place in places() if place.name == name)


MARIN = "T1 Llama 130M, 2.7 B tokens, AdamW"
SMALL = "T2 Llama 60M, 1.3 B tokens, AdamW"


def run_of(path: Path, name: str, decay: float, change: dict[str, Any] | None = None, tokens: object = None) -> Run:
    """A run of a published setting, but for `change`. `tokens`: what its start recorded of the data."""
    config = place(name).config
    assert config is not None
    given = config.model_dump(mode="json")
    fields = {section: given[section] for section in ("model", "batch", "schedule", "optim", "precision")}
    fields = merge(merge(fields, {"optim": {"weight_decay": decay}}), change or {})
    write_run(path, lambda s: 4 + 0 * s, decay=decay, steps=fields["schedule"]["steps"], upto=20, **fields)
    if tokens is not None:
        (path / "starts.jsonl").write_text(json.dumps({"data": tokens}) + "\n")
    return load_run(path)


@pytest.mark.parametrize(
    ("name", "decay", "nats", "band"),
    [
        (MARIN, 0.1, 3.529, 0.003),
        ("T1 Llama 130M, 21.5 B tokens, AdamW", 0.0, 3.310, 0.003),
        ("T1 Llama 520M, 10.7 B tokens, AdamW", 0.2, 3.110, 0.003),
        ("T1 Llama 130M, 2.7 B tokens, Lion", 0.6, 3.549, 0.003),
        (SMALL, 0.05, math.log(32.31), None),
        ("T2 Llama 135M, 2.6 B tokens, Adam with L2", 1e-5, math.log(22.99), None),
    ],
)
def test_a_run_of_the_setting_has_its_level(
    name: str, decay: float, nats: float, band: float | None, tmp_path: Path
) -> None:
    """Breaks if a published value is not under a run of its own setting and λ, in nats, with the band that counts as equal."""
    run = run_of(tmp_path / "run", name, decay)
    (level,) = published_levels([run], PLAIN)
    assert level.y == pytest.approx(np.full(3, nats))
    assert level.x[-1] == run.fields["schedule.steps"]
    assert published_levels([run], Options(tokens=True))[0].x[-1] == pytest.approx(place(name).case.tokens, rel=0.01)
    if band is None:
        assert level.low is None
        assert "states none" in " ".join(notes_on_levels([run]))
    else:
        assert level.low is not None
        assert level.y - level.low == pytest.approx(np.full(3, band))
        assert "0.003 nats count as equal" in " ".join(notes_on_levels([run]))
    assert level.keys == {"λ": f"{decay:g}"}


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"n_layer": 31}},
        {"model": {"qk_norm": True}},
        {"batch": {"tokens_per_step": 262144}},
        {"schedule": {"steps": 5121}},
        {"schedule": {"warmup_steps": 1000}},
        {"schedule": {"kind": "linear"}},
        {"optim": {"lr": 0.004}},
        {"optim": {"betas": [0.9, 0.95]}},
        {"optim": {"decay_mask": "all"}},
        {"optim": {"decay_rule": "cautious"}},
        {"data": {"epochs": 2}},
        {"precision": "bf16-true"},
    ],
    ids=json.dumps,
)
def test_a_run_that_differs_has_none(change: dict[str, Any], tmp_path: Path) -> None:
    """Breaks if a published value is laid under a run of another model, batch, horizon, optimiser, schedule or precision."""
    run = run_of(tmp_path / "run", MARIN, 0.1, change)
    assert not published_levels([run], PLAIN)
    assert not notes_on_levels([run])


def test_a_published_lambda_alone_has_a_level(tmp_path: Path) -> None:
    """Breaks if a λ between the published ones gets a value, or one that diverged there is passed over without a word."""
    assert not published_levels([run_of(tmp_path / "between", MARIN, 0.15)], PLAIN)
    run = run_of(tmp_path / "diverged", "T1 Llama 520M, 10.7 B tokens, AdamW", 0.0)
    assert not published_levels([run], PLAIN)
    assert "λ = 0 diverged there" in " ".join(notes_on_levels([run]))


def test_tokens_must_be_of_the_same_tokenizer(tmp_path: Path) -> None:
    """Breaks if losses per token of two tokenizers are laid over each other, or two of one kind and another size."""
    t5 = {"tokenizer": "sentencepiece", "vocab_size": 32000}
    for i, (name, tokens, levels, words) in enumerate(
        [
            (SMALL, t5, 0, "losses per token of two tokenizers do not compare"),  # T5's own has no byte fallback
            (SMALL, {"tokenizer": "gpt2", "vocab_size": 50257}, 0, "those of gpt2"),
            (SMALL, None, 1, "have not recorded their tokenizer"),
            (MARIN, {"tokenizer": "gpt2", "vocab_size": 50257}, 0, "Llama 3's, 128,256 of them"),
            (MARIN, {"tokenizer": "huggingface", "vocab_size": 128256}, 1, "are taken for Llama 3's"),
            (MARIN, {"tokenizer": "huggingface", "vocab_size": 32000}, 0, "do not compare"),
        ]
    ):
        run = run_of(tmp_path / str(i), name, 0.1, tokens=tokens)
        assert len(published_levels([run], PLAIN)) == levels, (name, tokens)
        assert words in " ".join(notes_on_levels([run]))


def test_what_no_field_says_has_no_level(tmp_path: Path) -> None:
    """Breaks if a loss of a network that no field makes, or of a step that none of our algorithms is, lies under our runs."""
    run = run_of(tmp_path / "t3", "T3 GPT 124M, 2.6 B tokens, AdamW", 1.0)
    assert not published_levels([run], PLAIN)
    assert "a norm behind the embedding" in " ".join(notes_on_levels([run]))
    cautious = run_of(tmp_path / "cautious", "T1 Llama 130M, 2.7 B tokens, Cautious AdamW", 0.1)
    assert not published_levels([cautious], PLAIN)
    assert not notes_on_levels([cautious]), "its fields are those of plain AdamW, and T1 has no such row"


def test_figures_have_them(tmp_path: Path) -> None:
    """Breaks if the levels are not under validation but elsewhere, or the published curve over λ is not in the sweep's figure, or
    hides where λ = 0 stands."""
    paths = []
    for decay in (0.1, 0.2):
        config = place(SMALL).config
        assert config is not None
        given = config.model_dump(mode="json")
        fields: dict[str, Any] = {name: given[name] for name in ("model", "batch", "schedule", "optim", "precision")}
        fields["optim"]["weight_decay"] = decay
        path = tmp_path / str(decay)
        paths.append(write_run(path, lambda s: 3.4 + 0 * s, decay=decay, steps=10_000, eval_every=5000, **fields))
    runs = [load_run(path) for path in paths]
    training, validation = loss_curves.analyse(runs, PLAIN).figures[0].panels
    assert not [line for line in training.lines if "published" in line.name]
    assert [line.name for line in validation.lines if "published" in line.name] == [f"published, {SMALL}, λ = 0.1"]
    result = best_decay.analyse(runs, PLAIN)
    panel = next(figure for figure in result.figures if figure.name == "decay").panels[0]
    (points,) = [line for line in panel.lines if "published" in line.name]
    assert points.y == pytest.approx(np.log([32.73, 32.66, 32.31, 31.95]))
    assert list(points.x) == sorted(points.x)
    assert points.x[0] < 0.01 == points.x[1]
    assert list(panel.ticks.values()) == ["0", "0.01", "0.05", "0.1", "0.2"]
    assert any(SMALL in note for note in result.notes)
