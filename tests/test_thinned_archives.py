"""Archives with fewer rows than the run has (python -m record.archive --every, --probe-every)."""

from __future__ import annotations

from pathlib import Path

import pytest

from analysis.command import late_notes, load_runs
from record.archive import main
from record.archive_file import read_archive
from record.run import RunFolder
from tests.recorded import load, write_run


def test_every_nth_update(tmp_path: Path) -> None:
    """Breaks if an evaluation, an event or the last row is left out, times no longer add up, or a reader is not told."""
    seconds = {"time/step_s": lambda s: 0.5 * (s > 0), "perf/tokens_per_s": lambda s: 128.0 + 0 * s}
    probes = [{"step": step, "probe/x": float(step)} for step in (10, 50, 90)]
    run = write_run(tmp_path / "run", steps=103, eval_every=35, columns=seconds, probes=probes)
    # an update that was left out: an event, without a time
    lines = RunFolder(run).metrics.read_text().splitlines()
    lines[57] = '{"step": 57, "tokens": 3648, "event": "nonfinite", "nonfinite/loss": null}'
    RunFolder(run).metrics.write_text("\n".join(lines) + "\n")
    assert main([str(run), "--every", "20", "--out", str(tmp_path / "thin")]) == 0
    (path,) = (tmp_path / "thin").iterdir()
    archive = read_archive(path)
    assert [row["step"] for row in archive.log.rows] == [0, 20, 35, 40, 57, 60, 70, 80, 100, 103]
    assert [row["step"] for row in archive.probes.rows] == [10, 90]
    assert sum(row.get("time/step_s", 0.0) for row in archive.log.rows) == pytest.approx(0.5 * 102)
    assert not any("perf/tokens_per_s" in row for row in archive.log.rows)
    runs, notes = load_runs([str(path)], Path("runs"))
    assert any("1 of 1 runs were archived by every 20th update" in note for note in notes)
    assert runs[0].column("val/loss").iloc[-1] == load(run)[0].column("val/loss").iloc[-1]
    assert main([str(run), "--every", "0", "--out", str(tmp_path / "none")]) == 2
    assert main([str(run), "--every", "2", "--probe-every", "2", "--out", str(tmp_path / "none")]) == 2


def test_every_nth_probe(tmp_path: Path) -> None:
    """Breaks if an update is left out with the probes, the first or the last probe is, or a reader of probes is not told."""
    probes = [{"step": step, "probe/x": float(step)} for step in range(10, 70, 10)]
    run = write_run(tmp_path / "run", steps=70, probes=probes)
    assert main([str(run), "--probe-every", "4", "--out", str(tmp_path / "few")]) == 0
    (few,) = load(tmp_path / "few" / "run.parquet")
    assert list(few.probes["probe/x"]) == [10.0, 50.0, 60.0]
    assert main([str(run), "--out", str(tmp_path / "all")]) == 0
    assert few.metrics.equals(load(tmp_path / "all" / "run.parquet")[0].metrics)
    assert late_notes([few]) == ["run: of its 6 probes every 4th was archived, and the last"]
