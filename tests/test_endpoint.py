"""Which loss the runs of a sweep are judged by at their end: one for all of them, and told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from analysis import best_decay, loss_curves
from analysis.command import Options
from analysis.compare import TRAIN, VALIDATION, WHOLE
from analysis.endpoint import endpoint_of, lowest
from analysis.pairing import group_runs
from analysis.runs import Run
from tests.recorded import load, write_run

PLAIN = Options()


def runs_of(root: Path, decay: float = 0.3, windows: Any = "all", without: tuple[str, ...] = ()) -> list[Run]:
    """a and b, three seeds each: b, of λ = `decay`, is 0.05 lower by val/loss, and 0.02 higher over its final `windows`."""
    paths = []
    for name, its, by_loss, at_end, asked in (("a", 0.0, 3.0, 3.1, "all"), ("b", decay, 2.95, 3.12, windows)):
        for seed in range(3):
            path, level = root / f"{name}{seed}", 0.001 * seed
            columns = {} if path.name in without else {WHOLE: lambda s, k=at_end + level: k + 0 * s}
            curve = lambda s, k=by_loss + level: k + 0 * s  # noqa: E731
            paths.append(
                write_run(path, curve, decay=its, seed=seed, steps=100, columns=columns, eval={"final_tokens": asked})
            )
    return load(*paths)


def test_the_whole_split_decides(tmp_path: Path) -> None:
    """Breaks if runs that end with the loss over their whole split are compared by another, or which it is is not said."""
    runs = runs_of(tmp_path)
    sweep, curves = best_decay.analyse(runs, PLAIN), loss_curves.analyse(runs, PLAIN)
    assert "lowest mean validation loss at the end over the whole split is 3.1010 at λ = 0" in " ".join(sweep.findings)
    assert f"endpoint: {WHOLE}, the validation loss at the end over the whole split" in sweep.notes
    assert sweep.figures[0].panels[0].ylabel == "validation loss at the end over the whole split (nats)"
    (claim,) = [claim for claim in curves.claims if claim.primary]
    assert claim.endpoint == "validation loss at step 100, over the whole split"
    assert claim.estimate == pytest.approx(0.02)
    row = curves.tables["Losses"].iloc[1]
    assert (row["validation loss"], row["validation loss over the whole split"]) == (2.951, 3.121)
    assert not curves.notes


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"without": ("b1",)}, "val/final_loss is recorded of 5 of the 6 runs that ended"),
        ({"decay": 0.0, "windows": 4096}, "the runs have val/final_loss over unlike windows"),
    ],
)
def test_two_endpoints_are_never_mixed(more: dict[str, Any], why: str, tmp_path: Path) -> None:
    """Breaks if one run without the final windows, or with others, is compared over other tokens than its twins, or in silence."""
    runs = runs_of(tmp_path, **more)
    sweep, curves = best_decay.analyse(runs, PLAIN), loss_curves.analyse(runs, PLAIN)
    assert "at the end over eval.tokens is 2.9510 at λ = 0.3" in " ".join(sweep.findings) or "windows" in more
    (note,) = [note for note in sweep.notes if note.startswith("endpoint: val/loss")]
    assert why in note
    (claim,) = [claim for claim in curves.claims if claim.primary]
    assert claim.endpoint == "validation loss at step 100"
    assert abs(claim.estimate) == pytest.approx(0.05)
    assert any("so its end is compared by val/loss, which all have" in note for note in curves.notes)


def test_what_all_have(tmp_path: Path) -> None:
    """Breaks if runs of which some have no validation, or other windows, are judged by anything but training loss."""
    runs = runs_of(tmp_path, without=("a0",))
    groups = group_runs(runs)[0]
    assert endpoint_of(groups).column == VALIDATION
    runs[3].fields["eval.tokens"] = 999
    assert endpoint_of(groups).column == TRAIN
    assert "the runs have val/loss over unlike windows" in endpoint_of(groups).note
    del runs[3].fields["eval.tokens"]
    runs[0].metrics.drop(columns=VALIDATION, inplace=True)
    assert endpoint_of(groups).column == TRAIN
    assert f"{VALIDATION} is recorded of 5 of the 6" in endpoint_of(groups).note


def test_a_lucky_seed_chooses_no_cell(tmp_path: Path) -> None:
    """Breaks if a cell of fewer seeds than others has is called the lowest."""
    runs = [run for run in runs_of(tmp_path) if run.path.name not in ("a1", "a2")]
    groups = group_runs(runs)[0]
    best = lowest(groups, endpoint_of(groups))
    assert best is not None
    assert (best[0].name, best[1]) == ("λ = 0.3", ["0", "1", "2"])
