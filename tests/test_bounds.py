"""What is wrong in a corpus: bad rows, rows without end, packed files that grow without end; said, counted, in linear time."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import streams
from data.manifest import read_manifest
from data.prepare import main
from data.sources import open_source
from data.streams import Reader, lines

pytestmark = pytest.mark.slow  # by its length alone: `make check` takes a minute

GOOD = [json.dumps({"text": f"row {number} " + "of some words " * 30}) for number in range(60)]
BAD = {
    '{"text": null}': ("has null in the field 'text'", "row with null in the field 'text'"),
    '{"text": 7}': ("has int in the field 'text', expected text", "row without text in the field 'text'"),
    '{"body": "x"}': ("has no string field 'text' (found: body)", "row without the field 'text'"),
    '["x"]': ("has no string field 'text' (found: list)", "row without the field 'text'"),
    '{"text": "x"': ("is not JSON: ", "row that is not JSON"),
    '{"text": "\\ud800"}': ("holds a lone surrogate (character 0)", "row with a lone surrogate"),
    '{"text": ' + "[" * 200_000: ("is JSON nested too deep", "row nested too deep"),
}


def run(out: Path, pattern: Path, *arguments: str, source: str = "jsonl") -> int:
    command = ["--source", source, "--input", str(pattern), "--out", str(out), "--vocab-size", "350", "--workers", "1"]
    return main([*command, "--val-fraction", "0.2", *arguments])


@pytest.mark.parametrize("row", list(BAD), ids=lambda row: row[:16])
def test_a_bad_row_is_named(tmp_path: Path, row: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if a row without text is not told by its line and what was found in it, or is a traceback."""
    (tmp_path / "a.jsonl").write_text("\n".join([*GOOD[:2], row, *GOOD[2:]]))
    assert run(tmp_path / "out", tmp_path / "a.jsonl") == 2
    error = capsys.readouterr().err
    assert f"a.jsonl:3 {BAD[row][0]}" in error
    assert "--skip-bad leaves such rows out" in error
    assert len(error.strip().splitlines()[-1]) < 600
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_bad_rows_are_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if --skip-bad loses a good row, keeps a bad one, or does not count by reason."""
    rows = [row for pair in zip(BAD, GOOD, strict=False) for row in pair] + GOOD[len(BAD) :]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    (tmp_path / "b.jsonl").write_text("")
    assert run(tmp_path / "out", tmp_path / "*.jsonl", "--skip-bad") == 0
    said = capsys.readouterr().out
    manifest = read_manifest(tmp_path / "out")
    assert manifest is not None
    assert manifest.train.documents + manifest.val.documents == len(GOOD)
    reasons = [reason for _, reason in BAD.values()] + ["file without a row"]
    assert manifest.source["skipped"] == {reason: reasons.count(reason) for reason in reasons}
    assert "skipped 2: row without the field 'text'" in said
    assert manifest.options["skip_bad"] is True
    assert run(tmp_path / "out", tmp_path / "*.jsonl", "--skip-bad") == 0
    assert "prepared already" in capsys.readouterr().out


def test_bad_cells_of_parquet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if a null in a parquet column is not told by its row, or ends a corpus that may go on without it."""
    texts = [json.loads(row)["text"] for row in GOOD]
    pq.write_table(pa.table({"text": [*texts[:7], None, *texts[7:]]}), tmp_path / "a.parquet")
    assert run(tmp_path / "out", tmp_path / "a.parquet", source="parquet") == 2
    assert "a.parquet: row 7 has null in the column 'text'" in capsys.readouterr().err
    assert run(tmp_path / "out", tmp_path / "a.parquet", "--skip-bad", source="parquet") == 0
    assert "skipped 1: row with null in the column 'text'" in capsys.readouterr().out


@pytest.mark.parametrize("source", ["jsonl", "text"])
def test_an_empty_file(tmp_path: Path, source: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if the only file is empty and the message does not say which and why."""
    (tmp_path / "a.in").write_text("")
    assert run(tmp_path / "out", tmp_path / "a.in", source=source) == 2
    error = capsys.readouterr().err
    assert f"the corpus is empty: {tmp_path / 'a.in'} holds no document; left out: 1 × file without" in error


def test_long_lines_in_linear_time(tmp_path: Path) -> None:
    """Breaks if a line costs the square of its length: four times as long may take at most ten times as long."""
    seconds = []
    for size in (20, 80):
        (tmp_path / "a.jsonl").write_bytes(b'{"text": "' + b"x" * (size << 20) + b'"}\n')
        begun = time.perf_counter()
        assert len(next(open_source("jsonl", str(tmp_path / "a.jsonl")).documents())) == size << 20
        seconds.append(time.perf_counter() - begun)
    assert seconds[1] < max(10 * seconds[0], 2), seconds


def test_lines_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if a line is cut or joined where two blocks meet; one too long is refused by its number, or left out."""
    rows = [b"", b"a" * ((1 << 20) - 1), b"b", b"c" * (3 << 20), b"d" * 5]
    (tmp_path / "a").write_bytes(b"\n".join(rows))
    with Reader(tmp_path / "a") as reader:
        assert list(lines(reader)) == rows
    monkeypatch.setattr(streams, "MAX_DOCUMENT", 2 << 20)
    with Reader(tmp_path / "a") as reader, pytest.raises(ValueError, match=r"a:4 is a line longer than"):
        list(lines(reader))
    with Reader(tmp_path / "a") as reader:
        assert list(lines(reader, keep_long=False)) == [*rows[:3], None, rows[4]]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.txt.gz"])
@pytest.mark.parametrize("newlines", [False, True])
def test_a_bomb_is_refused(tmp_path: Path, name: str, newlines: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if a small packed file is unpacked without end, as one line or as many; 400 MiB must be refused in seconds."""
    block = (b"x" * 1023 + (b"\n" if newlines else b"x")) * 1024 * 400
    if name.endswith(".gz"):
        (tmp_path / name).write_bytes(gzip.compress(block, 1))
    else:
        (tmp_path / name).write_bytes(pa.Codec("zstd").compress(block, asbytes=True))
    begun = time.perf_counter()
    arguments = ["--skip-bad"]  # does not help here
    assert run(tmp_path / "out", tmp_path / name, *arguments, source="text" if ".txt" in name else "jsonl") == 2
    assert time.perf_counter() - begun < 30
    assert "no text packs so well" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_bomb_of_parquet_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if one cell, repeated by reference in a small file, is read as gigabytes."""
    pq.write_table(pa.table({"text": ["x" * 1_000_000] * 500}), tmp_path / "a.parquet")
    assert run(tmp_path / "out", tmp_path / "a.parquet", source="parquet") == 2
    assert "no text packs so well" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content"), [("a.jsonl.gz", gzip.compress(b"x" * 9999, mtime=0)[:20]), ("a.jsonl.zst", b"no")]
)
def test_damaged_packing(tmp_path: Path, name: str, content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if a file cut short is taken for a full disk, or its end is lost without a word."""
    (tmp_path / name).write_bytes(content)
    assert run(tmp_path / "out", tmp_path / name) == 2
    assert f"{name} cannot be decompressed" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [name]
