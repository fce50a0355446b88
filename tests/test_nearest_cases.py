"""What `advise` says of published cases, of N, of the power law's bounds, and of a λ carried to a larger model."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis import advise, evidence
from analysis.__main__ import main
from analysis.carried_decay import Carried, carry
from analysis.command import Options, Result
from analysis.nearest_cases import interior, nearest
from analysis.power_law import block_parameters, power_law
from configs.errors import InputError
from configs.load import load_config, merge
from configs.schema import RunConfig
from tests.recorded import load, write_run

pytestmark = pytest.mark.slow  # by its length alone: `make check` takes a minute

P1, SMALL = "configs/gpt124m_wd0.1.json", "configs/quickstart.json"


def config_of(path: str, *settings: str) -> RunConfig:
    return load_config(path, list(settings))[0]


def advice(path: str, *settings: str, to: str | None = None) -> Result:
    return advise.analyse(config_of(path, *settings), [], Options(), config_of(to) if to else None)


def near_table(result: Result) -> pd.DataFrame:
    return next(table for title, table in result.tables.items() if title.startswith("Nearest"))


@pytest.mark.parametrize(
    ("path", "settings", "first", "cells"),
    [
        (P1, [], "GPT-2 124M, 3.3 B tokens, AdamW", ["26.5", "38.6", "0.1", "1.65", "0.020 nats", "inside"]),
        (
            "configs/llama130m.json",
            [],
            "Llama 130M, 2.7 B tokens, AdamW",
            ["10.1", "20", "0.1", "2.05", "0.016 nats", "inside"],
        ),
        (
            "configs/llama130m.json",
            [
                "model.n_embd=1024", "model.n_head=16", "model.mlp_width=4096", "optim.lr=0.004", "schedule.steps=10240",
                "schedule.warmup_steps=1000", "batch.tokens_per_step=1048576", "optim.weight_decay=0.2",
            ],
            "Llama 520M, 10.7 B tokens, AdamW",
            ["13.4", "20", "0.2", "4.1", "λ = 0 diverged", "at an end of those tried"],
        ),
        (
            "configs/llama130m.json",
            ["optim.algorithm=lion", "optim.lr=0.002"],
            "Llama 130M, 2.7 B tokens, Lion",
            ["10.1", "20", "0.6", "3.07", "0.021 nats", "inside"],
        ),
        (
            P1,
            ["schedule.steps=800"],
            "88M, 0.4 tokens per parameter, AdamW",
            ["0.4", "–", "0", "–", "none: λ = 0 is best", "at an end of those tried"],
        ),
    ],
    ids=["P1", "T1", "T1 520M", "Lion", "too short"],
)  # fmt: skip
def test_the_nearest_case_is_first(path: str, settings: list[str], first: str, cells: list[str]) -> None:
    """Breaks if the published case of a configuration's own setting is not the nearest to it, or a column has another's number."""
    table = near_table(advice(path, *settings))
    assert len(table) <= 5
    assert table["model"].iloc[0] == first
    assert list(table.iloc[0])[2:] == cells


def test_nearness_is_by_horizon_and_decay() -> None:
    """Breaks if λ·Ση counts nothing: with the same horizon, another λ must bring another case to the front; or a case of another
    algorithm, or of coupled L2, is among them."""
    config = config_of(P1)
    near, far = nearest(config, 1.65), nearest(config, 8.2)
    assert near["its Σηλ"].iloc[0] == "1.65"
    assert far["its Σηλ"].iloc[0] == "8.19"
    assert not near["model"].str.contains("Muon|Lion|Cautious|L2").any()
    # without λ the horizon alone decides: distances in the order of the rows
    ratios = [abs(math.log(float(ratio) / 26.5)) for ratio in nearest(config, 0.0)["D/N"]]
    assert ratios == sorted(ratios)
    assert nearest(config_of(P1, "optim.algorithm=sgd"), 1.0).empty
    assert any("No published case is of sgd" in text for text in advice(P1, "optim.algorithm=sgd").findings)


def test_interior_range_is_that_of_the_tables() -> None:
    """Breaks if the range of Σηλ is not computed from the cases, or the λ that would lie in it have another Σηλ."""
    sums = sorted(place.decay_sum or 0 for place in interior())
    text = " ".join(advice(P1).findings)
    told = re.search(
        r"In (\d+) published .* about (\d+) to (\d+) \(([\d.]+) to ([\d.]+)\).*λ from ([\d.]+) to ([\d.]+)", text
    )
    assert told is not None
    assert [int(told[i]) for i in (1, 2, 3)] == [len(sums), 2, 8]
    assert [float(told[i]) for i in (4, 5)] == pytest.approx([sums[0], sums[-1]], abs=0.005)
    assert [float(told[i]) * 16.49 for i in (6, 7)] == pytest.approx([sums[0], sums[-1]], rel=0.01)
    assert "this configuration has 1.65, among them" in text
    assert "has 9.89, above them" in " ".join(advice(P1, "optim.weight_decay=0.6").findings)
    assert "has 0.165, below them" in " ".join(advice(P1, "optim.weight_decay=0.01").findings)


def test_n_is_defined() -> None:
    """Breaks if advice says tokens per parameter without saying which parameters, or the power law takes one N for the other."""
    result = advice("configs/llama130m.json")
    text = " ".join(result.findings)
    assert "N is all 265,585,152 parameters, embeddings and head included: 10.1 tokens per parameter" in text
    assert "Of the blocks' 134,251,008 alone it is 20, which is how T1 counts" in text
    config = config_of("configs/llama130m.json")
    blocks = block_parameters(config.gpt)
    assert blocks == pytest.approx(130e6, rel=0.04)
    # the law's λ for T1, by the blocks, is 0.11; best was 0.1
    assert power_law(config, blocks)[1] == pytest.approx(0.109, abs=0.001)
    assert power_law(config)[1] == pytest.approx(0.0762, abs=0.0005)
    assert "λ = 0.0762 (N: all 265,585,152 parameters, embeddings included), or 0.109 (N: the 134,251,008" in text
    values = dict(
        zip(result.tables["Known beforehand"]["what"], result.tables["Known beforehand"]["value"], strict=True)
    )
    assert values["λ by the power law, D/N = 20 of the blocks alone"].startswith("0.109")


def test_the_power_law_asks_what_was_tuned_by_hand() -> None:
    """Breaks if the law, by the source's own count of 124M, is not near the λ = 1.0 that was found by hand."""
    tuned = config_of("configs/modded124m.json", "optim.lr=0.001", "schedule.steps=4950")
    assert power_law(tuned, 124_000_000)[1] == pytest.approx(0.93, abs=0.01)


CONSTANT = ["schedule.kind=constant", "schedule.final_lr_fraction=0.1"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (CONSTANT, ["learning rate never falls", "λ = 0.01: 3.643, λ = 0.1: 3.692, λ = 0.337: 3.814 (T5)"]),
        (
            ["schedule.kind=piecewise", "schedule.points=[[1,0.5],[9,1.0],[50000,1.0]]", "schedule.warmup_steps=0",
             "schedule.final_lr_fraction=0.1"],
            ["learning rate never falls"],
        ),
        (["schedule.steps=1000"], ["0.53 tokens per parameter", "λ = 0: 4.223, λ = 0.05: 4.316, λ = 0.1: 4.42 (T7)"]),
    ],
    ids=["constant", "by points", "short"],
)  # fmt: skip
def test_the_power_law_is_refused(settings: list[str], words: list[str]) -> None:
    """Breaks if the law is applied to a rate that never falls or to a run below one token per parameter, if the reason or what
    others found is not said, or interior optima of other runs are offered instead."""
    result = advice(P1, *settings)
    text = " ".join(result.findings)
    assert "The power law is not applied: " in text
    assert all(word in text for word in words), text
    assert "would give λ" not in text
    assert "no λ is taken from them" in text
    assert "would lie there" not in text
    assert not any("power law" in what for what in result.tables["Known beforehand"]["what"])
    assert "not applied" not in " ".join(advice(P1).findings)


def test_what_says_nothing_of_a_rule_is_left_out() -> None:
    """Breaks if published λ of decoupled decay are shown for a rule whose λ no law takes there."""
    result = advice(P1, "optim.decay_rule=swd")
    assert list(result.tables) == ["Known beforehand"]
    assert not any("published cases" in text for text in result.findings)


def test_three_rules_of_width() -> None:
    """Breaks if a rule's λ at four times the width is another, or the disagreement is not said."""
    small, large = (
        config_of(SMALL),
        config_of(SMALL, "model.n_embd=256", "model.init_std=0.02", "name=wide", "optim.lr=0.0025"),
    )
    said, tables = carry(small, large, Carried(0.01, 0.15, "given"))
    (table,) = tables.values()
    assert list(table["source"]) == ["2510.15262", "2510.19093", "for Muon"]
    assert [float(v) for v in table["η"]] == [0.0025, 0.0025, 0.0025]
    expected = [0.15 * 2, 0.15 * 0.01 / 0.0025, 0.15 / 16]
    assert [float(v) for v in table["λ"]] == pytest.approx(expected, rel=0.01)
    assert "λ for its length too" not in table, "the horizon is the same"
    assert "Width 64 to 256, × 4" in said[0]
    assert "disagree: λ = 0.3, 0.6, 0.00937, the largest 64 times the smallest" in said[1]
    assert len(said) == 2


def test_a_longer_run_divides_by_its_length() -> None:
    """Breaks if a λ carried to a run twice as long does not keep Σηλ, or depth is passed over."""
    long = config_of(SMALL, "schedule.steps=4000", "schedule.warmup_steps=400", "model.n_layer=4")
    said, tables = carry(config_of(SMALL), long, Carried(0.01, 0.15, "given"))
    (table,) = tables.values()
    row = table[table["rule"] == "ηλ stays"].iloc[0]
    assert float(row["λ"]) == pytest.approx(0.15)
    assert float(row["λ for its length too"]) == pytest.approx(0.075, rel=0.01)
    assert "The width is the same" in said[1]
    assert "is × 2 in quickstart" in said[2]
    assert "Depth goes from 2 to 4 blocks" in said[3]


def test_the_runs_lambda_is_carried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if the best λ of finished runs of the setting is not what is carried, or that of another setting is."""
    monkeypatch.setattr(evidence, "read_summary", lambda path: None)  # whatever is prepared here
    plain = {"schedule": {"steps": 2000, "warmup_steps": 200}, "batch": {"tokens_per_step": 2048}}

    def runs(name: str, change: dict[str, Any]) -> list[Any]:
        paths = []
        for decay, level in ((0.0, 3.1), (0.3, 3.0), (0.6, 3.2)):
            path = tmp_path / name / f"{decay}"
            fields = merge(merge({"optim": {"lr": 0.01}}, plain), change)
            write_run(path, lambda s, k=level: k + 0 * s, decay=decay, noise=0, eval_every=1000, **fields)  # type: ignore[misc]
            (path / "plan.json").write_text(json.dumps({"n_parameters": 168_256}))
            paths.append(path)
        return load(*paths)

    config, large = config_of(SMALL), config_of(P1)
    own = advise.analyse(config, runs("own", {}), Options(), large)
    assert any(
        "λ = 0.3 at η = 0.01 of quickstart, the best of 3 finished runs of its setting" in text for text in own.findings
    )
    other = advise.analyse(config, runs("other", {"schedule": {"steps": 2000, "warmup_steps": 60}}), Options(), large)
    words = "λ = 0.15 at η = 0.01 of quickstart, the configuration's own: no finished runs of its setting"
    assert any(words in text for text in other.findings)


@pytest.mark.parametrize(
    ("path", "settings", "to", "words"),
    [
        (SMALL, [], "configs/resnet18_cifar10.json", "is a configuration of images"),
        (SMALL, [], "configs/none.json", "cannot read configuration configs/none.json"),
        (SMALL, [], "configs/sweeps/outside_t1.json", "is a sweep of several runs"),
        (SMALL, ["optim.weight_decay=0"], P1, "there is no λ to carry: quickstart has λ = 0 (the configuration's own: no runs"),
        (SMALL, ["optim.decay_rule=cautious"], P1, "the rules of width are of decoupled decay"),
        (SMALL, ["optim.algorithm=lion"], P1, "quickstart is trained by lion, gpt124m-wd0.1 by adam"),
        ("configs/resnet18_cifar10.json", [], P1, "advise knows laws of training on tokens"),
    ],
)  # fmt: skip
def test_what_cannot_be_carried(
    path: str, settings: list[str], to: str, words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Breaks if a λ that cannot be carried ends in advice, in a traceback, or in files that are half written."""
    options = [word for text in settings for word in ("--set", text)]
    assert main(["advise", path, *options, "--to", to, "--out", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("error: ") == 1
    assert words in captured.err
    assert not captured.out
    assert not (tmp_path / "out").exists()


def test_a_run_that_follows_another_carries_nothing() -> None:
    """Breaks if a λ is carried to a run whose learning rate, and so its Ση, only another run decides."""
    follower = config_of(P1, "schedule.match.reference=runs/leader")
    with pytest.raises(InputError, match="follows another run"):
        carry(config_of(SMALL), follower, Carried(0.01, 0.15, "given"))
