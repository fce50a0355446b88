"""Runs as one file each (record/archive.py), and analyses of such files."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis.command import Options, Result, late_notes, load_runs
from analysis.gate import UPDATES, analyse
from analysis.report import results_of
from configs.errors import InputError
from record.archive import main, read_folder
from record.archive_columns import column_of, values_of
from record.archive_file import pack, read_archive, unpack
from record.blocks import in_blocks, write_blocks
from record.contents import read_final_blocks, read_probes, read_starts
from record.lock import hold
from record.metrics import MetricsLog, read_log
from record.run import RunFolder
from tests.recorded import load, write_run
from tests.test_mutated_archives import opened, sealed

KEPT = Path(__file__).parent / "kept" / "runs"
DEFAULT_COLUMNS = (
    "optim/lr", "optim/decay_sum", "optim/grad_norm", "weights/norm", "weights/norm_decayed", "time/step_s", "perf/tokens_per_s",
)  # fmt: skip


def archived(out: Path, *runs: Path) -> list[Path]:
    assert main([*map(str, runs), "--out", str(out)]) == 0
    return sorted(out.glob("*.parquet"))


def answers(place: Path) -> tuple[list[Result], list[str]]:
    runs, notes = load_runs([str(place)], Path("runs"))
    results, more = results_of(runs, Options())
    return results, notes + more + late_notes(runs)


def cells(result: Result) -> Iterator[tuple[str, Any]]:
    for title, table in result.tables.items():
        yield f"{result.name}: {title}", [list(map(str, table.columns)), len(table)]
        for row, values in enumerate(table.itertuples(index=False)):
            for column, value in zip(table.columns, values, strict=True):
                yield f"{result.name}: {title}, row {row}, {column}", value


def same(one: Any, other: Any) -> bool:
    """float32 holds seven digits; a difference of two measurements fewer, which the absolute tolerance allows for."""
    if isinstance(one, float) and isinstance(other, float):
        return (math.isnan(one) and math.isnan(other)) or math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-9)
    return type(one) is type(other) and bool(one == other)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("archives")
    assert len(archived(out, KEPT)) == 8
    return out


def test_analyses_agree(kept: Path) -> None:
    """Breaks if a table of an analysis, or its sentences, differ between runs and their archives."""
    (folders, notes), (archives, notes_of_archives) = answers(KEPT), answers(kept)
    assert [result.name for result in archives] == [result.name for result in folders]
    assert len(notes_of_archives) == len(notes)
    for ours, theirs in zip(archives, folders, strict=True):
        assert ours.findings == theirs.findings
        for (place, one), (other_place, other) in zip(cells(ours), cells(theirs), strict=True):
            assert place == other_place
            assert same(one, other), f"{place}: {one!r} of archives, {other!r} of folders"


def test_what_is_kept(tmp_path: Path) -> None:
    """Breaks if a row, a value that was not finite, an event, a note, or a small file comes out of the file as another."""
    path = write_run(
        tmp_path / "run", steps=40, probes=[{"step": 20, "tokens": 1280, "probe/windows": 8, "probe/loss": 3.25}]
    )
    log = MetricsLog(RunFolder(path).metrics)
    huge = {
        "step": 30,
        "tokens": 1920,
        "train/loss": math.inf,
        "optim/grad_norm": 1e300,
        "perf/peak_memory_bytes": 2**40 + 1,
        "perf/tokens_per_s": 640.0,
    }
    log.write([huge, {"step": 30, "event": "nonfinite", "nonfinite/windows": [3, 5], "nonfinite/lr": 0.5}])
    log.close()
    probes = MetricsLog(RunFolder(path).probes)
    probes.write([{"step": 41, "tokens": 99, "probe/loss": math.nan, "probe/max/wte.weight": 1e-3}])
    probes.close()
    with open(RunFolder(path).metrics, "a") as file:
        file.write("no row\n")
    # a resume voids the rows after its step
    for path_of_log, steps in ((RunFolder(path).metrics, (39, 40)), (RunFolder(path).probes, (41,))):
        rows: list[dict[str, object]] = [{"step": steps[0] - 1, "tokens": 1, "event": "resume"}]
        rows += [{"step": step, "tokens": 99, "probe/loss": None, "nonfinite": ["probe/loss"]} for step in steps]
        with open(path_of_log, "a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    RunFolder(path).record_start({"device": "cpu"})
    blocks = in_blocks(40, 8, 16, {"weights": [25.5] * 15 + [math.nan]})
    write_blocks(RunFolder(path).blocks, blocks)

    (file,) = archived(tmp_path / "out", path)
    again, folder = read_archive(file), read_folder(path)
    assert again.documents == folder.documents
    assert again.log.problems == folder.log.problems
    assert (
        (again.log.superseded, again.probes.superseded) == (folder.log.superseded, folder.probes.superseded) == (2, 1)
    )
    assert "run/metrics.jsonl:44: not a row" in again.log.problems[0]
    assert "perf/tokens_per_s" in read_log(RunFolder(path).metrics).rows[30]
    assert "perf/tokens_per_s" not in again.log.rows[30], "it follows from the time of the update"
    for ours, theirs in ((again.log.rows, folder.log.rows), (again.probes.rows, folder.probes.rows)):
        assert [sorted(row) for row in ours] == [sorted(row) for row in theirs]
        for one, other in zip(ours, theirs, strict=True):
            assert all(same(one[name], other[name]) for name in other if name != "probe/windows"), (one, other)
    # to the bit: what was not finite, an event and its list, what float32 cannot hold, an integer, a validation loss
    assert again.log.rows[30] == folder.log.rows[30]
    assert again.log.rows[30]["train/loss"] is None
    assert again.log.rows[0]["val/loss"] == folder.log.rows[0]["val/loss"]
    assert read_starts(file) == [{"device": "cpu"}]
    assert read_probes(file).rows[1]["probe/loss"] is None
    found = read_final_blocks(file)
    assert found is not None
    assert found.targets == blocks.targets
    assert math.isnan(found.loss_sums["weights"][-1])


def test_smooth_columns() -> None:
    """Breaks if a measurement stored by its differences comes back in another bit, or what was not recorded or not finite does."""
    rng = np.random.default_rng(0)
    drawn = [float(np.float32(v)) for v in rng.normal(size=200) * 10.0 ** rng.integers(-30, 30, 200)]
    values = [*drawn, ..., ..., 0.0, -0.0, None, drawn[0], ...]
    column = column_of("weights/norm", values)
    assert column.type == pa.int32()
    assert column_of("train/loss", values).type == pa.float32()
    again = [... if v is None else None if math.isnan(v) else v for v in values_of(pa.chunked_array([column]))]
    assert list(map(repr, again)) == list(map(repr, values))
    assert column_of("weights/norm", [1e300]).type == pa.float64(), "float32 does not hold it"


def test_size(tmp_path: Path) -> None:
    """Breaks if a run of 2,000 updates, with every default measurement and a probe every 100, takes more than 75 kB."""
    rng = np.random.default_rng(0)
    # as a real run's: what is drawn or timed has noise in every digit, norms in the last, rates and their sum none
    noise = dict.fromkeys(DEFAULT_COLUMNS, 1.0) | {
        "weights/norm": 1e-5,
        "weights/norm_decayed": 1e-5,
        "optim/lr": 0,
        "optim/decay_sum": 0,
    }
    columns = {name: lambda s, k=k: 1 + s / 2000 + k * rng.random(len(s)) for name, k in noise.items()}
    names = list(read_log(next(KEPT.glob("weight_decay0.3-seeds0-6*")) / "probes.jsonl").rows[-1])[2:]
    names += [f"{name}/more" for name in names]
    steps = sorted({*range(10, 101, 10), *range(100, 2001, 100)})
    probes = [{"step": s, "tokens": 64 * s} | dict(zip(names, rng.random(len(names)), strict=True)) for s in steps]
    path = write_run(tmp_path / "run", steps=2000, columns=columns, probes=probes)
    write_blocks(RunFolder(path).blocks, in_blocks(2000, 128, 8192, {"weights": rng.random(8192).tolist()}))
    assert len(names) > 300
    assert 50_000 < archived(tmp_path / "out", path)[0].stat().st_size <= 75_000


def test_same_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if a run archived again is another file, or if a file of something else is replaced."""
    path = write_run(tmp_path / "run", steps=20)
    (file,) = archived(tmp_path / "out", path)
    first = file.read_bytes()
    assert archived(tmp_path / "out", path) == [file]
    assert file.read_bytes() == first
    write_run(tmp_path / "other" / "run", steps=20, seed=1)
    before = sorted(tmp_path.rglob("*"))
    assert main([str(tmp_path / "other"), "--out", str(tmp_path / "out")]) == 2
    assert f"{file} exists and holds something else" in capsys.readouterr().err
    assert file.read_bytes() == first
    assert sorted(tmp_path.rglob("*")) == before


def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if a run that has not ended, a folder without runs, or two runs of one name are archived, or half of a study is."""
    done = write_run(tmp_path / "a" / "run", steps=20)
    live = write_run(tmp_path / "a" / "live", steps=20, upto=10, state="preempted")
    write_run(tmp_path / "b" / "run", steps=20)
    for given, message in (
        (
            [tmp_path / "a"],
            f"{live} cannot be archived: its run has not ended (preempted at step 10 of 20); --unfinished",
        ),
        ([tmp_path], f"{tmp_path} is no run folder"),
        ([done, tmp_path / "b"], "have one name"),
    ):
        assert main([*map(str, given), "--out", str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
    (tmp_path / "file").touch()
    assert main([str(done), "--out", str(tmp_path / "file")]) == 2
    assert "is a file; give a folder" in capsys.readouterr().err
    assert main([str(tmp_path / "a"), "--out", str(tmp_path / "out"), "--unfinished"]) == 0
    assert read_archive(tmp_path / "out" / "live.parquet").documents["unfinished"]
    empty = write_run(tmp_path / "empty", steps=20, upto=0, state="preempted")
    RunFolder(empty).metrics.write_text("")
    assert main([str(empty), "--out", str(tmp_path / "none"), "--unfinished"]) == 2
    assert "empty has recorded no update yet" in capsys.readouterr().err
    assert load(tmp_path / "out" / "live.parquet")[0].state == "preempted"


def test_a_run_that_is_written_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if a run folder is read while a writer holds it, the lock is left behind, or a copied folder gets one."""
    path = write_run(tmp_path / "run", steps=20)
    assert main([str(path), "--out", str(tmp_path / "out")]) == 0
    assert not (path / ".lock").exists()
    with hold(path):
        assert main([str(path), "--out", str(tmp_path / "other"), "--unfinished"]) == 2
    assert f"is writing {path}; wait until it has ended, or stop it" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
    assert main([str(path), "--out", str(tmp_path / "other")]) == 0
    assert not (path / ".writer.json").exists()
    with hold(path):
        pass  # nobody holds it any more


def test_what_is_an_archive_already(tmp_path: Path, kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if an archive is taken for a run to archive, or refused without a word on what it is."""
    file = next(kept.iterdir())
    assert main([str(file), "--out", str(tmp_path / "out")]) == 2
    assert f"{file} is an archive already" in capsys.readouterr().err


def test_gate(tmp_path: Path) -> None:
    """Breaks if the gate, which reads a checkpoint, does not say why it judges nothing of an archive's."""
    path = write_run(tmp_path / "run", steps=UPDATES, columns={"optim/grad_norm": np.ones_like})
    answer = analyse(load(*archived(tmp_path / "out", path)), Options())
    assert any("run.parquet: an archive holds no checkpoint" in note for note in answer.notes)
    assert not answer.tables, "what cannot be judged has not failed"
    assert not answer.findings


def test_damage(tmp_path: Path) -> None:
    """Breaks if a flipped bit or a lost end of a file, wherever it is, is not noticed."""
    content = pack(read_folder(write_run(tmp_path / "run", steps=20)))
    assert unpack(content, "file").name == "run"
    for place in [*range(0, len(content), 37), len(content) - 1]:
        flipped = bytearray(content)
        flipped[place] ^= 1
        with pytest.raises(InputError, match=r"^file is (damaged|no archive)"):
            unpack(bytes(flipped), "file")
        with pytest.raises(InputError, match=r"^file is (damaged|no archive)"):
            unpack(content[:place], "file")


def test_left_out(tmp_path: Path) -> None:
    """Breaks if a file that is no archive of this version ends a report of others, or is left out without a word."""
    out = tmp_path / "out"
    archived(out, write_run(tmp_path / "run", steps=20))
    content = (out / "run.parquet").read_bytes()
    (out / "newer.parquet").write_bytes(sealed(*opened(content), version="4"))
    (out / "cut.parquet").write_bytes(content[: len(content) // 2])
    (out / "text.parquet").write_text("no Parquet at all\n")
    (out / "empty.parquet").write_bytes(b"")
    pq.write_table(pa.table({"step": [1, 2]}), out / "foreign.parquet")
    runs, notes = load_runs([str(out)], tmp_path)
    assert [run.path for run in runs] == [out / "run"]
    for name, why in (
        ("newer", "is an archive of format 4; this version reads 3"),
        ("cut", "is no archive of a run (a Parquet file, but"),
        ("text", "is no archive of a run (no Parquet file)"),
        ("empty", "is no archive of a run (no Parquet file)"),
        ("foreign", "is no archive of a run (a Parquet file, but"),
    ):
        (note,) = [note for note in notes if f"{name}.parquet" in note]
        assert note.startswith(f"left out: {out / name}.parquet {why}")
    with pytest.raises(InputError, match=r"cut\.parquet is no archive of a run"):
        load_runs([str(out / "cut.parquet")], tmp_path)


def test_beside_folders(tmp_path: Path, kept: Path) -> None:
    """Breaks if archives and folders are not read together, a run given as both counts twice, or a trunk is not found."""
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for path in sorted(KEPT.glob("weight*")):
        if "tiny" in path.name:
            shutil.copy(kept / f"{path.name}.parquet", mixed)  # the branches as files, their trunks as folders
        else:
            shutil.copytree(path, mixed / path.name)
    (folders, _), (both, _) = (load_runs([str(place)], tmp_path) for place in (KEPT, mixed))
    fields = {run.path.name: run.fields for run in folders}
    assert {run.path.name: run.fields for run in both} == fields
    twice, notes = load_runs([str(mixed), str(kept)], tmp_path)
    assert sorted(run.path.name for run in twice) == sorted(fields)
    assert sum("this run is given a second time" in note for note in notes) == 8
