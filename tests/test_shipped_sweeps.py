"""The sweeps that are shipped: they can be planned without data, have seeds and baselines, and the paper's decay."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from configs.schedule import decay_sum
from tests.processes import ROOT
from tests.test_sweep import cells

# P1's experiments whose λ·Ση is a number of e-folds, and the small sweeps that stand for them. Not among them: l2_loss, whose
# coefficient scales with √v, and bfloat16, whose small sweep is a ladder of learning rates at one λ·Ση.
SMALL = {
    name: {"774m": "larger"}.get(name, name)
    for name in ("wd_precision", "tiny_lr", "constant_lr", "matched_lr", "774m", "sgd", "decay_all", "slow_decay")
}


@pytest.mark.parametrize("name", SMALL)
def test_small_sweeps_have_the_papers_decay(name: str) -> None:
    """Breaks if a λ·Ση of the paper's experiment, whole run or branch, is not among those of the small sweep for it."""
    folder = ROOT / "configs" / "sweeps"
    paper, small = (
        {decay_sum(c.config, c.config.schedule.steps) for c in cells(folder / file) if c.config.schedule.match is None}
        for file in (f"p1_{name}.json", f"small_{SMALL[name]}.json")
    )
    for value in paper:
        assert any(value == pytest.approx(other, rel=0.02) for other in small), (value, sorted(small))


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "sweeps").glob("*.json")), ids=lambda path: path.stem)
def test_sweeps_have_seeds_and_baselines(path: Path) -> None:
    """Breaks if a shipped sweep that means a claim has fewer than three seeds, or none of its runs is at λ = 0."""
    trunks = [cell.config for cell in cells(path) if cell.stage == "main"]
    assert any(config.optim.weight_decay == 0 for config in trunks)
    if "tuning" in path.stem:
        assert min(config.seeds.init for config in trunks) >= 100, "a pilot's seeds enter no claim"
    else:
        assert len({config.seeds.init for config in trunks}) >= 3, "one or two seeds yield no claim"
        assert max(config.seeds.init for config in trunks) < 100, "seeds from 100 up belong to pilots"


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "sweeps").glob("*.json")), ids=lambda path: path.stem)
def test_shipped_sweeps_need_no_data(path: Path, tmp_path: Path) -> None:
    """Breaks if a shipped sweep does not expand, or its dry run needs data, a cluster or torch, or writes anything."""
    code = f"import sys; from slurm import submit; code = submit.main([{str(path)!r}, '--dry-run']); "
    code += (
        f"from slurm import status; code += status.main([{str(path)!r}]); sys.exit(code + 5 * ('torch' in sys.modules))"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "sbatch --parsable" in done.stdout
    assert "(id follows from the data)" in done.stdout
    assert not list(tmp_path.iterdir())
