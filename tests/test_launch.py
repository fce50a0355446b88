"""How a run's process begins, and what its surroundings may do to it: threads, signals while it starts, a closed terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.launch import cpu_threads
from tests.processes import ConfigFile, finish, start

engine = pytest.mark.engine


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if a given number of threads does not win, OMP_NUM_THREADS is not obeyed, or nonsense in it is."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert cpu_threads(None, 3) == (2, "cores over local ranks")
    assert cpu_threads(None, 16) == (1, "cores over local ranks")
    for text in ("5", " 5 ", "5,2"):
        monkeypatch.setenv("OMP_NUM_THREADS", text)
        assert cpu_threads(None, 3) == (5, "OMP_NUM_THREADS")
    assert cpu_threads(7, 3) == (7, "parallel.threads_per_rank")
    for text in ("0", "many", "-1"):
        monkeypatch.setenv("OMP_NUM_THREADS", text)
        with pytest.raises(ValueError, match=f"OMP_NUM_THREADS is '{text}', expected a number"):
            cpu_threads(None, 3)


@engine
def test_threads_of_a_run(config_file: ConfigFile, tmp_path: Path) -> None:
    """Breaks if a run on a shared machine takes every core although OMP_NUM_THREADS says one, or does not say what it took."""
    output = finish(start(config_file(), tmp_path / "run", OMP_NUM_THREADS="1"))
    assert "1 CPU thread(s) per rank, from OMP_NUM_THREADS" in output
    row = json.loads((tmp_path / "run" / "starts.jsonl").read_text())
    assert (row["threads_per_rank"], row["threads_from"]) == (1, "OMP_NUM_THREADS")
    assert "expected a number of threads" in finish(start(config_file(), tmp_path / "none", OMP_NUM_THREADS="all"), 2)
    assert not (tmp_path / "none").exists()
