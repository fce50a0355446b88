"""Which checkpoints are saved and which stay: the rules, and what a run leaves by them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.cadence import is_kept, is_saved, most_at_once, saved_and_kept, why_kept
from configs.schema import Checkpoint
from record import checkpoints
from tests.processes import ConfigFile, finish, losses, start
from weights import export

engine = pytest.mark.engine


def test_cadences_of_checkpoints() -> None:
    """Breaks if a policy saves or keeps other steps than it says."""

    def saved(**fields: Any) -> list[int]:
        return [step for step in range(1, 1001) if is_saved(Checkpoint.model_validate(fields), step, 1000)]

    assert saved() == [1000]
    assert saved(every=300) == [300, 600, 900, 1000]
    assert saved(at=(7, 450)) == [7, 450, 1000]
    assert saved(log_spaced=1) == [1, 10, 100, 1000]
    assert saved(log_spaced=3) == [1, 2, 5, 10, 22, 46, 100, 215, 464, 1000]
    policy = Checkpoint(every=100, keep_last=2, keep_every=400, at=(150,))
    assert [step for step in (100, 150, 200, 400, 800, 900) if is_kept(policy, step)] == [150, 400, 800]
    assert why_kept(policy, 150, newest=True) == ["at", "keep_last"]
    assert why_kept(policy, 800, newest=False) == ["keep_every"]
    assert most_at_once(policy, 1000) == 6  # 150, 400, 800, the newest two, and the one being written
    assert most_at_once(Checkpoint(every=100), 1000) == 10


@engine
def test_checkpoints_of_a_run(config_file: ConfigFile, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if policies are not followed, list or verify miss damage, or a named checkpoint is not the one continued from."""
    policy = {"every": 2, "keep_last": 1, "keep_every": 8, "at": [3]}
    config = config_file({"schedule": {"steps": 12}, "checkpoint": policy})
    finish(start(config, tmp_path / "run"))
    folder = tmp_path / "run" / "checkpoints"
    assert [path.name for path in sorted(folder.iterdir())] == ["step_00000003", "step_00000008", "step_00000012"]
    before = losses(tmp_path / "run")
    output = finish(start(config, tmp_path / "run", "--resume", "must", "--step", "3"))
    assert "resumes from" in output
    assert "step_00000003" in output
    assert losses(tmp_path / "run") == before
    assert "step_00000012 lies after step 3 and is set aside" in output
    assert "step_00000012 was set aside when the run went back to an earlier step" in output
    assert "damaged" not in output
    assert "steps there: 3, 8, 12" in finish(start(config, tmp_path / "run", "--resume", "must", "--step", "5"), 2)
    assert checkpoints.main(["verify", str(tmp_path / "run")]) == 0
    weights = folder / "step_00000008" / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    capsys.readouterr()
    assert checkpoints.main(["list", str(tmp_path / "run")]) == 0
    assert checkpoints.main(["verify", str(tmp_path / "run")]) == 1
    assert "weights.safetensors differs from its manifest" in capsys.readouterr().out
    with pytest.raises(ValueError, match="is damaged"):
        export.export(tmp_path / "run", 8, tmp_path / "out")
    assert not (tmp_path / "out").exists()


SMALL = st.integers(1, 60)


@given(
    steps=SMALL,
    every=st.none() | SMALL,
    at=st.lists(SMALL, max_size=4),
    log_spaced=st.none() | st.integers(1, 30),
    keep=st.none() | st.tuples(st.integers(1, 3), st.none() | SMALL),
)
def test_checkpoints_are_counted_as_they_are_kept(
    steps: int, every: int | None, at: list[int], log_spaced: int | None, keep: tuple[int, int | None] | None
) -> None:
    """Breaks if the count that a plan gives without a walk over the steps is not that of the walk."""
    last, of = keep or (None, None)
    policy = Checkpoint(every=every, at=tuple(at), log_spaced=log_spaced, keep_last=last, keep_every=of)
    saved = [step for step in range(1, steps + 1) if is_saved(policy, step, steps)]
    kept = [step for step in saved if is_kept(policy, step)]
    assert kept == [step for step in saved if why_kept(policy, step, newest=False)]
    assert most_at_once(policy, steps) == min(len(saved), len(kept) + (last or 0) + 1)
    multiples, others = saved_and_kept(policy, steps)
    assert sorted([*multiples, *others]) == sorted({*kept, steps})
