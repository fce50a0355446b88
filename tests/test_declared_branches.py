"""P1's claims on images that are judged on branches: the sphere, and average against fine-tuning, on made-up runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from analysis.declared_images import FLOWS, LATE, SPHERE, STARTS
from tests.declared_sweeps import first, sweep, verdicts, write

pytestmark = pytest.mark.slow  # by its length alone: `make check` takes a minute

LAST = STARTS[-1]  # update of the trunks


def sphere(
    root: Path, error: Callable[[float], float], fitted: Callable[[float], float] = lambda rate: 0.0
) -> list[Path]:
    """Test error of the branches over η; the training loss that the trunks hold rises with η."""
    paths = sweep(root, "small_sphere", SPHERE, lambda cell: {"val/error": 0.5, "train_eval/loss": cell[0]}, steps=LAST)
    for trunk in list(paths):
        rate, seed = float(trunk.name.split("-")[0]), int(trunk.name.split("-")[-1])
        ends = {"val/error": error(rate), "train_eval/error": fitted(rate)}
        branch = {"origin": f"{trunk}@{LAST}"}
        paths.append(write(trunk.parent, f"b{rate:g}", seed, ends, (rate, 0.0, 1000), steps=20, branch=branch))
    return paths


def u_of(rate: float) -> float:
    return 0.1 + 0.02 * math.log(rate / 0.005) ** 2


def test_sphere(tmp_path: Path) -> None:
    """Breaks if the U is read off the trunks, or a lowest value at the largest η is a U."""
    assert set(verdicts(sphere(tmp_path / "u", u_of))["verdict"]) == {"holds"}
    table = verdicts(sphere(tmp_path / "falls", lambda rate: 0.3 - 0.1 * math.log(rate))).set_index("comparison")
    assert table["verdict of the part"].to_dict() == {"ends minus lowest": "does not hold", "Spearman's ρ": "holds"}
    assert set(table["verdict"]) == {"does not hold"}
    untrained = verdicts(sphere(tmp_path / "untrained", u_of, lambda rate: 0.4 * (rate < 0.001))).set_index(
        "comparison"
    )
    assert untrained["verdict of the part"]["ends minus lowest"].startswith("no claim: at the smallest η")


def flows(root: Path, tuned: float, unfinished: tuple[int, ...] = ()) -> list[Path]:
    """Iterate at 0.2, average at 0.12, without decay at 0.15; the branches of the later half at `tuned`, without decay 0.02 above,
    the earlier ones far above."""
    paths = sweep(
        root,
        "small_flows",
        FLOWS,
        lambda cell: {"val/error": 0.2, "val/error_ema_0.99": 0.12 if cell[1] else 0.15},
        seeds=3,
        steps=LAST,
    )
    for trunk in list(paths):
        rate, decay, images, seed = (float(part) for part in trunk.name.split("-"))
        for step, error in [(at, tuned + 0.02 * (not decay) if at in LATE else 0.9) for at in STARTS]:
            branch, name = {"origin": f"{trunk}@{step}"}, f"b{rate:g}-{decay:g}-{step}"
            cell = (0.005, decay, int(images))
            path = write(trunk.parent, name, int(seed), {"val/error": error}, cell, steps=20, branch=branch)
            if seed in unfinished and step == LAST:
                (path / "status.json").write_text((path / "status.json").read_text().replace("done", "running"))
            paths.append(path)
    return paths


def test_flows(tmp_path: Path) -> None:
    """Breaks if the early checkpoints count, the average is taken for the iterate, a branch that has not ended counts, or noise
    that an average takes out is called a gain of decay."""
    table = verdicts(flows(tmp_path / "both", 0.1)).set_index("part")
    gaps = {part: first(text) for part, text in table["difference"].items()}
    assert gaps["the average lies below the iterate"] == pytest.approx(-0.08, abs=0.002)
    assert gaps["fine-tuning lies below the iterate"] == pytest.approx(-0.1, abs=0.002)
    assert gaps["decay gains at the large η, seen by the average"] == pytest.approx(-0.03, abs=0.002)
    assert gaps["decay gains at the large η, seen by fine-tuning"] == pytest.approx(-0.02, abs=0.002)
    assert set(table["verdict"]) == {"holds"}
    again = verdicts(flows(tmp_path / "unfinished", 0.1, unfinished=(0,))).set_index("part")
    assert again["n"]["the average lies below the iterate"] == 3
    assert again["n"]["fine-tuning lies below the iterate"] == 2
    assert again["verdict of the part"]["fine-tuning lies below the iterate"] == "no claim: 2 seeds"
    assert set(again["runs"]) == {"128 of 132"}
    # a key part has no verdict, and without it nothing holds in part
    assert set(again["verdict"]) == {"not all have run; so far: undecided"}
