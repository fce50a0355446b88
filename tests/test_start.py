"""The start of a run: initial weights of the width, and what the plan says of settings that are hardly meant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from configs.identity import experiment, run_id
from configs.plan import DataSummary, make_plan
from configs.schema import RunConfig

DATA = DataSummary("d" * 64, 512, 10**7, 10**5)


def test_initial_weights_follow_the_width(tiny_config: Callable[..., RunConfig]) -> None:
    """Breaks if a narrow network gets the standard deviation of a wide one, or a run of P1's width another name."""
    wide = {"model": {"n_embd": 768, "n_head": 12}}
    assert tiny_config({"model": {"n_embd": 48}}).model.init_std == pytest.approx(0.08)
    assert tiny_config(wide).model.init_std == 0.02
    assert tiny_config({"model": {"init_std": 0.05}}).model.init_std == 0.05

    def name(*overrides: dict[str, Any]) -> str:
        return run_id(experiment(tiny_config(*overrides), "d" * 64))

    explicit = {"model": {"init_std": 0.02}}
    assert name(wide) == name(wide, explicit), "0.02 by the rule and by hand are one experiment"
    assert "init_std" not in experiment(tiny_config(explicit), "d" * 64)["model"], (
        "runs before the rule keep their names"
    )
    assert name() != name(explicit), "a narrow network by the rule is not one of 0.02"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ({"optim": {"lr": 0.01}, "model": {"init_std": 0.02}}, "0.5 times model.init_std 0.02"),
        ({"optim": {"lr": 1e-5}}, "leave their random start slowly"),
    ],
)
def test_warned_of(tiny_config: Callable[..., RunConfig], override: dict[str, Any], words: str) -> None:
    """Breaks if a legal setting that is hardly meant goes by without a word."""
    assert [text for text in make_plan(tiny_config(override), 1, DATA).cautions if words in text]
    assert not make_plan(tiny_config(), 1, DATA).cautions, "the tiny configuration itself is sound"


def test_a_vocabulary_far_above_the_tokenizers(tiny_config: Callable[..., RunConfig]) -> None:
    """Breaks if a model that is mostly rows for no token goes by without a word, or a padded vocabulary does not."""
    small = tiny_config({"model": {"vocab_size": 50304, "n_embd": 64}})
    found = make_plan(small, 1, DataSummary("d" * 64, 2048, 10**7, 10**5)).cautions
    assert len(found) == 1
    assert (
        "model.vocab_size 50,304 over a tokenizer of 2,048: 48,256 rows of the embedding stand for no token" in found[0]
    )
    assert "3,088,384 of 3,319,104 parameters (93%); set model.vocab_size to 2,048" in found[0]
    untied = tiny_config({"model": {"vocab_size": 50304, "n_embd": 64, "tied_head": False}})
    assert "6,176,768 of 6,538,560" in make_plan(untied, 1, DataSummary("d" * 64, 2048, 10**7, 10**5)).cautions[0]
    assert not make_plan(small, 1, DataSummary("d" * 64, 50257, 10**7, 10**5)).cautions, "P1's padding"
    padded = tiny_config({"model": {"vocab_size": 128}})
    assert not make_plan(padded, 1, DataSummary("d" * 64, 65, 10**7, 10**5)).cautions, "65 characters, in whole tiles"
    assert not make_plan(small, 1, None).cautions
