"""What is known without a run: theory's laws, advice on λ, the paper's published curves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis import evidence, jacobian_norms, laws, sphere, theory
from analysis.__main__ import main
from analysis.command import Options
from analysis.published import P1, curves, notes_on, paper, published_lines
from analysis.reading import load_run
from analysis.statistics import interval
from configs.load import load_config, merge
from configs.schedule import lr_sum
from tests.recorded import crossing_runs, write_run

pytestmark = pytest.mark.slow  # by its length alone: `make check` takes a minute

PLAIN = Options()


@pytest.mark.slow
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


def test_jacobian_lemmas() -> None:
    """Breaks if a lemma of P2 fails to 1e-6, or K-FAC's form or Theorem 1 are claimed of ReLU networks, where they do not hold."""
    figure, rows = jacobian_norms.verified()
    assert len(rows) == 5 * (3 + 5)
    assert all(theory.Check(*row, jacobian_norms.TOLERANCE).holds for row in rows)
    off = {line.name: line.y for line in figure.panels[1].lines}
    assert min(abs(off["ReLU"] / off["law"] - 1)) > 0.01
    assert off["deep linear"] == pytest.approx(off["law"])
    # the derivative along θ is one: the difference quotient of a deep net
    one, x = jacobian_norms.net(3, relu=True), jacobian_norms.white()
    f, along, by_x, _ = one.passes(x)
    moved = jacobian_norms.Net([(1 + 1e-7) * w for w in one.weights], relu=True).passes(x)[0]
    np.testing.assert_allclose((moved - f) / 1e-7, along, rtol=1e-4, atol=1e-5)
    step = 1e-7 * np.eye(jacobian_norms.INPUTS)[2]
    np.testing.assert_allclose((one.passes(x + step)[0] - f) / 1e-7, by_x[:, :, 2], rtol=1e-4, atol=1e-5)


def test_papers_mechanism() -> None:
    """Breaks if decay on a scale-invariant loss is not behind in mid-run and ahead at the end, over the seeds of the noise; or if
    the page hides that it is one regime: with a larger η no decay is ahead at the end."""
    _, table = sphere.mechanism()
    lam = table[table["λ·Ση"] == 1.65].iloc[0]
    assert lam["mid-run, minus λ = 0"].startswith("+")
    assert lam["end, minus λ = 0"].startswith("-")
    total = sphere.rates(sphere.RATE, sphere.STEPS).sum()
    ends = [sphere.simulate(sigma / total)[0] for sigma in (0.0, 1.65)]
    middle = (ends[1] - ends[0])[:, 860:940].mean(axis=1)
    assert (middle > 0).all(), "in every seed"
    assert interval((ends[1] - ends[0])[:, -40:].mean(axis=1)).high < 0
    _, other = sphere.mechanism(eta=0.01, power=1.0)
    assert other["loss at the end"].idxmin() == 0


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
    assert "Runs of another setting: λ = 0.3 minus λ = 0, validation loss at step 1,000" in text
    assert "helps" in text
    for known in ("1,000 parameters, the configuration 168,256", "0.1 peak η, the configuration 0.01"):
        assert f"these runs have {known}" in text
    assert "would give λ" in text
    assert "embeddings included" in text
    assert main(["advise", "configs/quickstart.json", "--set", "optim.weight_decay=0"]) == 0
    assert "no equilibrium" in capsys.readouterr().out
    assert main(["advise", "configs/none.json"]) == 2


def test_runs_of_another_setting_are_no_evidence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks if a finished run is quoted as evidence for a configuration of another η, length, warm-up, size, precision,
    schedule or data, or one of the same setting is not."""
    monkeypatch.setattr(evidence, "read_summary", lambda path: None)  # whatever is prepared here
    plain = {"schedule": {"steps": 2000, "warmup_steps": 200}, "batch": {"tokens_per_step": 2048}}
    changes: dict[str, dict[str, Any]] = {
        "same": {},
        "η": {"optim": {"lr": 0.015}},
        "warm-up": {"schedule": {"steps": 2000, "warmup_steps": 60}},
        "tokens": {"batch": {"tokens_per_step": 4096}},
        "precision": {"precision": "bf16-true"},
        "schedule": {"schedule": {"steps": 2000, "warmup_steps": 200, "kind": "constant"}},
        "data": {"data": {"path": "data/prepared/english-1024"}},
    }
    for name, change in changes.items():
        fields = merge(merge({"optim": {"lr": 0.01}}, plain), change)
        paths = [
            write_run(
                tmp_path / name / f"{decay}-{seed}", decay=decay, seed=seed, **merge({"optim": {"lr": 0.01}}, fields)
            )
            for decay in (0.0, 0.15)
            for seed in range(3)
        ]
        for path in paths:
            (path / "plan.json").write_text(json.dumps({"n_parameters": 168_256}))
        assert main(["advise", "configs/quickstart.json", *map(str, paths)]) == 0
        text = capsys.readouterr().out
        assert ("Runs: λ = 0.15" in text) == (name == "same"), name
        assert ("Runs of another setting: λ = 0.15" in text) == (name != "same"), name
        assert ("these runs have" in text) == (name != "same"), name


def test_published_curves_only_where_the_experiment_is_the_same(tmp_path: Path) -> None:
    """Breaks if the paper's curve is laid under another experiment's, another λ's or another tokenizer's."""
    given = load_config("configs/gpt124m_wd0.1.json")[0].model_dump(mode="json")
    fields = {name: given[name] for name in ("model", "batch", "schedule", "optim")}
    same = load_run(write_run(tmp_path / "same", steps=50_000, upto=10, decay=0.1, **fields))
    (line,) = published_lines([same], PLAIN)
    assert list(line.y) == list(curves("cosine")[0.1])
    starts = tmp_path / "same" / "starts.jsonl"
    for tokenizer, lines, words in (("gpt2", 1, "OpenWebText"), ("sentencepiece", 0, "those of sentencepiece")):
        starts.write_text(json.dumps({"data": {"tokenizer": tokenizer}}) + "\n")
        assert len(published_lines([load_run(tmp_path / "same")], PLAIN)) == lines
        assert words in " ".join(notes_on([load_run(tmp_path / "same")]))
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
