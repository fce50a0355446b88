"""Archives of ill will: sealed again after anything in them was changed. Each is read or refused by name; never a traceback."""

from __future__ import annotations

import json
import random
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis.command import load_runs
from configs.errors import InputError
from record.archive import main as archive
from record.archive_checks import MOST_TEXT, MOST_VALUES
from record.archive_file import FORMAT, MARK, ZEROS, _sealed, unpack
from record.contents import read_final_blocks, read_probes, read_starts
from tests.recorded import write_run
from tests.test_mutated_runs import HOSTILE, changed, recorded, report_of

__all__ = ["recorded"]  # a fixture, which pytest finds by its name
LENGTH = 80  # updates of the recorded runs


def opened(content: bytes) -> tuple[pa.Table, str]:
    """The columns, and the documents as text."""
    table = pq.read_table(pa.BufferReader(content)).replace_schema_metadata(None)
    return table.drop_columns(["documents"]), table["documents"][0].as_py()


def sealed(table: pa.Table, text: str, version: str = str(FORMAT)) -> bytes:
    """As `pack` ends, of whatever columns."""
    if "documents" not in table.column_names:
        table = table.append_column("documents", pa.array([text, *[None] * len(table)][: len(table)], pa.string()))
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema, compression="zstd", store_schema=False) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({"format": version, "sha256": (MARK + ZEROS).decode()})
    return _sealed(bytes(sink.getvalue()))


def resealed(content: bytes) -> bytes:
    """With the digest that these bytes have."""
    place = content.rindex(MARK) + len(MARK)
    return _sealed(content[:place] + ZEROS + content[place + len(ZEROS) :])


def with_columns(table: pa.Table, dice: random.Random) -> pa.Table:
    """Columns renamed, swapped, lost, doubled, of another type, with other values; rows lost, doubled or in another order."""
    names = list(table.column_names)
    a, b = dice.sample(range(len(names)), 2)
    name, column = names[a], table[names[a]]
    match dice.randrange(9):
        case 0:
            names[a], names[b] = names[b], names[a]
            return table.rename_columns(names)
        case 1:
            return table.drop_columns([name])
        case 2:
            return table.append_column(name, column)
        case 3:
            names[a] = dice.choice(["event", "step", "nonfinite", "x", "probe/loss", "\0", "é" * 300, "a/b"])
            return table.rename_columns(names)
        case 4:
            return table.take(pa.array(dice.choices(range(len(table)), k=len(table))))
        case 5:
            return table.slice(dice.randrange(len(table)), dice.randrange(3))
        case 6:
            values = dice.choice([["x"], [[1.0]], [True], [{"a": 1}], [b"\xff"], [None]]) * len(table)
            return table.set_column(a, name, pa.array(values))
        case 7:
            values = [dice.choice([None, float("inf"), float("nan"), 1e308, -1.0, 0.0]) for _ in range(len(table))]
            return table.set_column(a, name, pa.array(values, pa.float64(), from_pandas=False))
        case _:
            values = [dice.choice([-1, 2**62, 0, 5]) for _ in range(len(table))]
            return table.set_column(a, name, pa.array(values, pa.int64()))


def mutated(content: bytes, dice: random.Random) -> bytes:
    kind = dice.randrange(8)
    place = dice.randrange(len(content))
    if kind == 0:  # as a disk may damage it: the digest tells
        return content[:place] + bytes([content[place] ^ (1 << dice.randrange(8))]) + content[place + 1 :]
    if kind == 1:
        return content[:place]
    if kind == 2:  # damaged, and sealed again: the parser meets it
        place = dice.randrange(4, content.rindex(MARK))
        return resealed(content[:place] + bytes([content[place] ^ (1 << dice.randrange(8))]) + content[place + 1 :])
    table, text = opened(content)
    if kind < 5:
        return sealed(with_columns(table, dice), text)
    if kind < 7:
        return sealed(table, changed(text, dice))
    # one of the documents as a whole: a place deep inside is what chance finds most often
    documents = json.loads(text)
    documents[dice.choice(sorted(documents))] = dice.choice(HOSTILE)
    return sealed(table, json.dumps(documents))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_mutated_archives(recorded: Path, tmp_path: Path) -> None:
    """Breaks if anything in an archive, each time something else, ends its readers or a report of others in a traceback, or if
    the file that is refused is not named."""
    assert archive([str(recorded), "--out", str(tmp_path / "all")]) == 0
    files = sorted((tmp_path / "all").iterdir())
    refusals: list[tuple[str, str]] = []
    for number in range(250):
        dice = random.Random(number)
        file = dice.choice(files)
        sound = file.read_bytes()
        file.write_bytes(mutated(sound, dice))
        try:
            if number % 50 == 0:
                report_of(tmp_path / "all")
            try:
                runs, _ = load_runs([str(file)], tmp_path)
                assert runs[0].last_step <= LENGTH
                for read in (read_probes, read_starts, read_final_blocks):
                    read(file)
            except InputError as error:
                refusals.append((file.name, str(error)))
        except BaseException as error:
            error.add_note(f"mutation {number} of {file.name}")
            raise
        file.write_bytes(sound)
    for name, text in refusals:
        assert name in text
        assert len(text) < 1500, "a message of a screen is not read"
    assert 100 < len(refusals) < 250, "mutations that nothing notices, or that nothing survives, test little"


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    assert archive([str(write_run(tmp_path / "run", steps=20)), "--out", str(tmp_path / "out")]) == 0
    return (tmp_path / "out" / "run.parquet").read_bytes()


def replaced(text: str, **documents: Any) -> str:
    return json.dumps(json.loads(text) | documents)


@pytest.mark.parametrize(
    ("documents", "why"),
    [
        ({"config": None}, "config is None, no object"),
        ({"starts": [5]}, "starts is [5], no list of objects"),
        ({"problems": "x"}, "problems is 'x', no list of sentences"),
        ({"superseded": -1}, "superseded is -1, no count"),
        ({"status": {"state": "done", "step": 9, "steps": 5}}, "is no status: step 9 of 5"),
        ({"name": "../../etc/run"}, "is not the plain name of a file"),
        ({"rest": [{"step": 7, "train/loss": "low"}]}, "train/loss is 'low', not a number or null"),
        ({"rest": [{"step": 700}]}, "(700)"),
        ({"probe_names": ["probe/x"], "probed": [1, 2]}, "1 names at 2 steps have 2 probes, not 0"),
        ({"probed": 3}, "or one of probe_names, probed, probed_alone no list"),
    ],
)
def test_absurd_documents(documents: dict[str, Any], why: str, content: bytes) -> None:
    """Breaks if a document that no archive has is believed, or refused without its name."""
    table, text = opened(content)
    assert unpack(sealed(table, text), "file").name == "run"
    with pytest.raises(InputError, match=r"^file is ") as refusal:
        unpack(sealed(table, replaced(text, **documents)), "file")
    assert why in str(refusal.value)


def test_swapped_columns(content: bytes, tmp_path: Path) -> None:
    """Breaks if steps and tokens that are swapped pass for a run, or steps that stand in another order."""
    table, text = opened(content)
    names = ["tokens", "step", *table.column_names[2:]]
    (tmp_path / "run.parquet").write_bytes(sealed(table.rename_columns(names), text))
    runs, notes = load_runs([str(tmp_path / "run.parquet")], tmp_path)
    assert runs[0].last_step == 0
    assert any("20 rows are of steps beyond the run's last, 20" in note for note in notes)
    with pytest.raises(InputError, match="the steps do not ascend"):
        unpack(sealed(table.take(pa.array([1, 0])), text), "file")


def test_a_bomb_is_refused_unread(content: bytes) -> None:
    """Breaks if a few kB that stand for more than the memory holds are unpacked."""
    table, text = opened(content)
    many = MOST_VALUES // 4 + 1  # of each of four columns
    zeros = pa.table({name: pa.nulls(many, table.schema.field(name).type) for name in ("step", "tokens", "probes")})
    zeros = zeros.append_column("documents", pa.nulls(many, pa.string()))
    bomb = sealed(zeros, text)
    assert len(bomb) < 100_000, "it would stand for a GB of rows"
    del zeros
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=r"^file is no archive .* values, at most") as refusal:
            unpack(bomb, "file")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "keep such a run as a folder" in str(refusal.value)
    assert peak < 20_000_000


def test_a_bomb_of_text_is_refused(content: bytes) -> None:
    """Breaks if documents that unpack to more than is read are unpacked, or others than text are taken for them."""
    table, _ = opened(content)
    bomb = sealed(table, "{" + " " * MOST_TEXT + "}")
    assert len(bomb) < 100_000
    with pytest.raises(InputError, match=r"^file is no archive .* bytes of documents, at most"):
        unpack(bomb, "file")
    for column, why in (
        (pa.array([5] * len(table)), "column documents holds int64, not text"),
        (pa.nulls(len(table), pa.string()), "the JSON object must be"),
    ):
        with pytest.raises(InputError, match=r"^file is no archive") as refusal:
            unpack(sealed(table.append_column("documents", column), ""), "file")
        assert why in str(refusal.value)


def test_another_format(content: bytes) -> None:
    """Breaks if an archive of another version is read as one of this, or refused without its version."""
    for version in ("2", "4", "x" * 100):
        with pytest.raises(
            InputError, match=f"^file is an archive of format {version[:40]}; this version reads {FORMAT}"
        ):
            unpack(sealed(*opened(content), version), "file")


def test_foreign_columns(content: bytes) -> None:
    """Breaks if a column of no numbers, or two of one name, are refused without the column."""
    table, text = opened(content)
    words = table.append_column("train/word", pa.array(["x"] * len(table)))
    with pytest.raises(InputError, match="column 'train/word' holds string, not numbers"):
        unpack(sealed(words, text), "file")
    with pytest.raises(InputError, match="two columns have one name"):
        unpack(sealed(table.append_column("train/loss", table["train/loss"]), text), "file")
