"""What is said beforehand of a λ of another law: converted where a law does it, else not told, with the reason."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from analysis.__main__ import main
from configs.decay_laws import LAWS
from configs.equilibrium import predictions
from configs.load import load_config
from configs.schedule import decay_sum
from tests.recorded import cell_runs

pytestmark = pytest.mark.slow  # by its length alone: `make check` takes a minute


@pytest.mark.parametrize("rule", LAWS)
def test_advice_knows_the_rule(rule: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if the advice on a rule fails, or gives it decoupled decay's numbers without the law that takes its λ there."""
    law, config = LAWS[rule], "configs/gpt124m_wd0.1.json"
    decay = {"independent": 6e-5, "norm_projection": 0.0, "hyperball": 0.0, "sphere": 0.0}.get(rule, 0.1)
    options = ["--set", f"optim.decay_rule={rule}", "--set", f"optim.weight_decay={decay}"]
    assert main(["advise", config, *options]) == 0
    text = capsys.readouterr().out
    assert rule == "decoupled" or f"- {rule}: {law.law}." in text
    numbers = ("time scale of the decay", "λ by the power law", "published runs", "RMS, norm")
    if rule in ("decoupled", "independent", "corrected"):
        assert all(words in text for words in numbers)
        assert "16,667 steps of 50,000" in text
        assert "0.05477" in text
    else:
        assert not any(words in text for words in numbers)
        assert "has no λ" in text if not law.has_decay else "runs must choose it" in text
        assert "grow" not in text or rule == "selective_projection"
    assert ("0.1, 0.0006, 6e-05" in text) == (law.product)
    assert ("0.000104" in text) == (rule == "independent")
    assert ("0.002513 radians" in text) == (rule in ("decoupled", "independent", "corrected", "rotational"))


def test_converted_decay_has_the_published_sum(capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if the λ that is given for the published λ·Ση does not have that sum, under a rule or a schedule of λ."""
    config = "configs/gpt124m_wd0.1.json"
    options = [
        ["optim.decay_rule=independent"],
        ["optim.decay_rule=corrected"],
        ["optim.decay_schedule.kind=linear"],
        ["optim.algorithm=sgd", "optim.decay_rule=l2_coupled"],
    ]
    for given in options:
        assert main(["advise", config, *(word for one in given for word in ("--set", one))]) == 0
        told = re.search(r"published runs\s+([\d.e-]+) \(as its 0.1\)", capsys.readouterr().out)
        assert told is not None
        made, _ = load_config(config, [*given, f"optim.weight_decay={told[1]}"])
        carried = 10 if made.optim.algorithm == "sgd" else 1
        assert decay_sum(made, made.schedule.steps) * carried == pytest.approx(1.649, rel=0.01), given


@pytest.mark.parametrize(
    ("algorithm", "rule", "numbers"),
    [
        ("adam", "decoupled", ["0.05477", "0.002513 radians"]),
        # of each kind of matrix by its shape, and of the other tensors
        ("muon", "decoupled", ["mlp.fc, mlp.proj, 768 × 3072", "other tensors, as AdamW", "0.05477, 0.002513 radians"]),
        ("lion", "independent", ["RMS of decayed weights under noise, lion", "rotation a step, lion"]),
        ("sgd", "decoupled", ["·σ, σ the gradients' noise", "rotation a step, sgd"]),
        ("sgd", "l2_coupled", ["·σ, σ the gradients' noise", "rotation a step, sgd"]),
        ("torch.optim.NAdam", "decoupled", ["No equilibrium is given: none is known of torch.optim.NAdam"]),
    ],
)
def test_equilibrium_by_algorithm(
    algorithm: str, rule: str, numbers: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks if an algorithm's equilibrium is AdamW's, not the one that its probes record, or is missing without a word."""
    given = [f"optim.algorithm={algorithm}", f"optim.decay_rule={rule}", "parallel.zero_stage=0"]
    given += ["optim.weight_decay=6e-5"] if rule == "independent" else []
    assert main(["advise", "configs/gpt124m_wd0.1.json", *(word for one in given for word in ("--set", one))]) == 0
    text = capsys.readouterr().out
    assert all(words in text for words in numbers), text
    assert "steps of 50,000" in text  # the time scale
    optim = load_config("configs/gpt124m_wd0.1.json", given)[0].optim
    shape = (768, 3072) if algorithm == "muon" else None
    # as probes have it: independent's λ is of its own scale there too
    decay = optim.weight_decay / (optim.lr if rule == "independent" else 1)
    law = predictions(algorithm, rule, optim.betas, optim.momentum, optim.lr, decay, shape)
    assert bool(law) == (algorithm != "torch.optim.NAdam")
    assert all(f"{value:.4g}" in text for value in law.values()), (law, text)


def test_runs_of_another_rule_say_nothing_of_this_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if the best λ of one rule, or one algorithm, is quoted for another."""
    for decay in (0.0, 0.1):
        cell_runs(tmp_path, {"decay_rule": "swd", "lr": 0.02, "weight_decay": decay}, [3 - decay, 3.1 - decay])
    assert main(["advise", "configs/quickstart.json", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "4 runs are of another rule or algorithm than decoupled with adam" in text
    assert "minus λ = 0" not in text
    assert main(["advise", "configs/quickstart.json", str(tmp_path), "--set", "optim.decay_rule=swd"]) == 0
    assert "λ = 0.1 minus λ = 0" in capsys.readouterr().out
