"""What is known without a run: theory's laws, advice on λ, the paper's published curves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from analysis import laws, theory
from analysis.__main__ import main
from analysis.command import Options
from analysis.published import P1, curves, paper, published_lines
from analysis.reading import load_run
from configs.load import load_config
from configs.schedule import lr_sum
from tests.recorded import crossing_runs, write_run

PLAIN = Options()


def test_theory_holds(capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if a formula and its simulation part, or a wrong formula would pass."""
    assert main(["theory"]) == 0
    assert "False" not in capsys.readouterr().out
    bias, variance = laws.quadratic(0.05, 0.0, 1.0, 1.0, 3.0, 0.0, 2000)
    assert bias[0] == pytest.approx(4.5)
    assert variance[-1] == pytest.approx(0.05 / (1.0 * (2 - 0.05)) / 2)  # (h/2)·ηs²/(h(2 − ηh))
    assert not theory.Check("", "", 1.0, 1.06, 0.05).holds
    one = laws.regression(0.05, 0.1, np.array([1.0]), np.array([1.0]), 0.0, 10**9, 50)
    exact = laws.quadratic(0.05, 0.1, 1.0, 0.0, 0.0, 1.0, 50)
    assert one[0] == pytest.approx(exact[0])  # one input and an endless batch: the quadratic
    assert main(["theory", "--copies", "10"]) == 2


def test_advice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if the power law, τ or Σηλ of P1's run are not the known ones, or finished runs say nothing."""
    assert main(["advise", "configs/gpt124m_wd0.1.json"]) == 0
    text = capsys.readouterr().out
    for known in ("0.173", "16,667 steps of 50,000", "16.49, 1.649", "0.05477", "0.1 (as its 0.1), 0.3 (as its 0.3)"):
        assert known in text, known
    assert "2405.13698" in text
    runs = [str(path) for path in crossing_runs(tmp_path, 3)]
    assert main(["advise", "configs/quickstart.json", *runs]) == 0
    text = capsys.readouterr().out
    assert "Runs: λ = 0.3 minus λ = 0, training loss at step 1,000" in text
    assert "helps" in text
    assert "these runs have 1,000 parameters, the configuration 168,256" in text
    assert main(["advise", "configs/quickstart.json", "--set", "optim.weight_decay=0"]) == 0
    assert "no equilibrium" in capsys.readouterr().out
    assert main(["advise", "configs/none.json"]) == 2


def test_published_curves_only_where_the_experiment_is_the_same(tmp_path: Path) -> None:
    """Breaks if the paper's curve is laid under another experiment's, or another λ's."""
    given = load_config("configs/gpt124m_wd0.1.json")[0].model_dump(mode="json")
    fields = {name: given[name] for name in ("model", "batch", "schedule", "optim")}
    same = load_run(write_run(tmp_path / "same", steps=50_000, upto=10, decay=0.1, **fields))
    (line,) = published_lines([same], PLAIN)
    assert list(line.y) == list(curves("cosine")[0.1])
    for i, (section, change) in enumerate(
        [
            ("optim", {"lr": 1e-3}),
            ("optim", {"decay_mask": "all"}),
            ("schedule", {"horizon": 55_000}),
            ("optim", {"decay_rule": "l2_loss"}),
        ]
    ):
        other = {**fields, section: {**given[section], **change}}
        run = load_run(write_run(tmp_path / f"other{i}", steps=50_000, upto=10, decay=0.1, **other))
        assert not published_lines([run], PLAIN), change


def test_what_is_kept_of_papers_is_whole() -> None:
    """Breaks if a published figure loses its source, how it was read, a value, or the sum that its recipe has."""
    for path in Path("analysis/papers").glob("*.json"):
        for name, kept in paper(path.stem).items():
            if isinstance(kept, dict):
                assert kept["shows"], name
                assert kept["source"], name
                assert kept["how"], name
    for name in ("cosine", "branches"):
        kept = paper(P1)[name]
        assert all(len(losses) == len(kept["steps"]) for losses in kept["loss"].values()), name
    config = load_config(paper(P1)["recipe"])[0]
    for decay, total in paper(P1)["decay_sums"]["sums"].items():
        assert lr_sum(config) * float(decay) == pytest.approx(total, abs=0.005)
