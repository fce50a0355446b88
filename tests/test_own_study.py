"""What the adviser cites of the project's own study."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from analysis import advise, own_study
from analysis.command import Options
from configs.errors import InputError
from configs.load import load_config
from tests.processes import ROOT


def told(*settings: str) -> tuple[list[str], dict[str, pd.DataFrame]]:
    config = load_config(str(ROOT / "configs" / "gpt124m_wd0.1.json"), list(settings))[0]
    result = advise.analyse(config, [], Options())
    return [text for text in result.findings if "own study" in text], result.tables


def test_the_study_is_cited() -> None:
    """Breaks if the adviser has another best λ·Ση than the study's table, or carries it to another λ than has it."""
    (sentence,), tables = told()
    kept = pd.read_csv(own_study.TABLE)
    sums = [float(text.split()[0]) for text in kept["best Σ"]]
    assert len(sums) >= 2
    for total, ratio in zip(sums, kept["tokens per parameter"], strict=True):
        assert f"{total:.3g} at {ratio:.3g} tokens per parameter" in sentence
    carried = tables["This project's own study"]["λ of the same Σηλ here"]
    # its λ of 0.1 has Σηλ = 1.649
    assert [float(value) for value in carried] == pytest.approx([0.1 * total / 1.649 for total in sums], rel=0.01)


@pytest.mark.parametrize("setting", ["optim.algorithm=sgd", "schedule.kind=constant", "optim.decay_rule=l2_loss"])
def test_what_it_says_nothing_of(setting: str) -> None:
    """Breaks if AdamW's λ under a cosine is given for another algorithm, a constant rate, or another rule."""
    assert told(setting)[0] == []


def test_a_damaged_table_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if a table that lost its columns gives advice, or a trace."""
    monkeypatch.setattr(own_study, "TABLE", tmp_path / "table.csv")
    with pytest.raises(InputError, match="cannot be read"):
        own_study.study(1.0)
    (tmp_path / "table.csv").write_text("updates,η\n2000,0.01\n")
    with pytest.raises(InputError, match="no column 'tokens per parameter'"):
        own_study.study(1.0)
