"""Dictionaries of the dictd server as a corpus: what a text and its index give, and what is refused."""

from __future__ import annotations

import gzip
import re
import string
import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from configs.errors import InputError
from configs.load import load_config
from configs.render import prepare_command
from data.dictionary import index_of, read_entries, read_index
from data.manifest import read_manifest
from data.prepare import main
from data.request import parser
from data.sources import open_source
from tests.processes import ROOT

PAGE = ROOT / "docs/data.md"
# Where `make study-data` unpacks the package dict-gcide, and where the package manager installs it.
REAL = [path / "usr/share/dictd/gcide.dict.dz" for path in (ROOT / "data/raw", Path("/"))]
ALPHABET = string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/"


def digits(value: int) -> str:
    """A number as an index writes it."""
    return (digits(value // 64) if value >= 64 else "") + ALPHABET[value % 64]


def dictzip(text: bytes) -> bytes:
    """gzip with dictzip's table of chunks in the header's extra field, packed as dictzip does: a full flush after each chunk."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    chunks = [packer.compress(text[i : i + 1000]) + packer.flush(zlib.Z_FULL_FLUSH) for i in range(0, len(text), 1000)]
    table = struct.pack("<HHH", 1, 1000, len(chunks)) + b"".join(struct.pack("<H", len(chunk)) for chunk in chunks)
    extra = b"RA" + struct.pack("<H", len(table)) + table
    header = b"\x1f\x8b\x08\x04" + bytes(4) + b"\x02\x03" + struct.pack("<H", len(extra)) + extra
    return header + b"".join(chunks) + packer.flush() + struct.pack("<II", zlib.crc32(text), len(text))


def write_dictionary(folder: Path, entries: list[tuple[list[str], bytes]], suffix: str = ".dict.dz") -> Path:
    """A pair of files with these entries (headwords, text), a line's end between two; the index is sorted by headword."""
    text, rows = b"", []
    for headwords, raw in entries:
        rows += [f"{word}\t{digits(len(text))}\t{digits(len(raw))}\n" for word in headwords]
        text += raw + b"\n"
    (folder / "small.index").write_text("".join(sorted(rows)))
    path = folder / f"small{suffix}"
    path.write_bytes(dictzip(text) if suffix.endswith(".dz") else text)
    return path


INFORMATION = (["00-database-info", "00-small-info"], b"00-database-info\n   All of this may be copied.\n")


def small_entries(count: int) -> list[tuple[list[str], bytes]]:
    """Entries of about 60 bytes; headwords go down where the text goes up, so that the index has another order."""
    words = [f"w{count - number:04}" for number in range(count)]
    return [
        ([word, f"also-{word}"], f"{word} \\W\\, n.\n   Wörter, the number {word[1:]}.\n".encode()) for word in words
    ]


@pytest.mark.parametrize("suffix", [".dict.dz", ".dict"])
def test_entries_once_and_in_the_texts_order(tmp_path: Path, suffix: str) -> None:
    """Breaks if an entry is read once for each headword, in the index's order, or cut; or if the licence becomes text."""
    entries = small_entries(300)
    path = write_dictionary(tmp_path, [INFORMATION, *entries], suffix)
    source = open_source("dictd", str(path))
    assert [text.encode() for text in source.documents()] == [raw for _, raw in entries]
    assert source.skipped == {"information about the dictionary": 1}
    source.document_bytes = 1000
    documents = list(source.documents())
    assert "\n".join(documents) == "\n".join(raw.decode() for _, raw in entries)
    assert all(1000 <= len(text.encode()) < 1200 for text in documents[:-1])
    assert len(documents) == 13


def test_shared_text_is_read_once(tmp_path: Path) -> None:
    """Breaks if an entry that lies inside another, or overlaps it, gives the same bytes twice."""
    path = write_dictionary(tmp_path, [(["a"], b"0123456789"), (["b"], b"abcdefghij")])
    (tmp_path / "small.index").write_text(f"a\tA\tK\nin\tC\tC\nover\tI\tI\nb\t{digits(11)}\tK\n")
    spans, _ = read_index(tmp_path / "small.index")
    assert list(read_entries(path, spans)) == [(0, b"0123456789"), (10, b"\nabcde"), (16, b"fghij")]


def test_prepare_a_dictionary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if the command line does not take a dictionary, hides how documents were made, or a folder hides its own."""
    path = write_dictionary(tmp_path, [INFORMATION, *small_entries(2000)])
    options = ["--vocab-size", "512", "--val-fraction", "0.2", "--workers", "1"]
    for name, given in {"file": str(path), "folder": str(tmp_path)}.items():
        command = ["--source", "dictd", "--input", given, "--out", str(tmp_path / name), *options]
        assert main([*command, "--document-bytes", "1024"]) == 0
        assert "skipped 1: information about the dictionary" in capsys.readouterr().out
    manifest, other = read_manifest(tmp_path / "file"), read_manifest(tmp_path / "folder")
    assert manifest is not None
    assert other is not None
    assert manifest.digest == other.digest
    assert manifest.options["document_bytes"] == 1024
    assert manifest.train.documents + manifest.val.documents > 40
    assert manifest.val.documents > 4
    refused = ["--source", "dictd", "--input", str(path), "--out", str(tmp_path / "no"), "--split-on", "line"]
    assert main(refused) == 2
    assert "between its entries" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_entry_that_is_not_utf8(tmp_path: Path) -> None:
    """Breaks if a byte of another encoding passes without a word, or costs more than its own entry."""
    entries = [(["a"], b"first\n"), (["b"], b"fa\xe7ade\n"), (["c"], b"third\n")]
    source = open_source("dictd", str(write_dictionary(tmp_path, entries)))
    with pytest.raises(InputError, match=r"entry at byte 7 is not UTF-8 \(byte 9\).*--skip-bad"):
        list(source.documents())
    source.skip_bad = True
    assert list(source.documents()) == ["first\n", "third\n"]
    assert source.skipped == {"entry that is not UTF-8": 1}


def cut(text: Path, index: Path) -> None:
    text.write_bytes(text.read_bytes()[:-6])


def flip(text: Path, index: Path) -> None:
    raw = bytearray(text.read_bytes())
    raw[-7] ^= 1  # of the checksum: all the text has been read by then
    text.write_bytes(raw)


def no_gzip(text: Path, index: Path) -> None:
    text.write_bytes(b"plain text, and no gzip at all\n" * 100)


def bomb(text: Path, index: Path) -> None:
    text.write_bytes(gzip.compress(bytes(70 << 20), 9))
    index.write_text(f"a\tA\t{digits(60 << 20)}\n")


def other_text(text: Path, index: Path) -> None:
    text.write_bytes(dictzip(b"another dictionary\n" * 100))


def other_index(text: Path, index: Path) -> None:
    index.write_text("".join(index.read_text().splitlines(keepends=True)[:50]))


DAMAGES: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "cut": (cut, "small.dict.dz cannot be decompressed, after"),
    "flipped": (flip, "small.dict.dz cannot be decompressed, after"),
    "no gzip": (no_gzip, "small.dict.dz cannot be decompressed, after 0 bytes"),
    "bomb": (bomb, "over 100 times as many"),
    "other text": (other_text, r"has 1,900 bytes of text, and its index small.index names an entry at bytes"),
    "other index": (other_index, "less than half: the two do not belong together"),
    "no index": (lambda text, index: index.unlink(), r"small.index does not exist"),
    "empty index": (lambda text, index: index.write_text(""), "small.index lists no entry"),
    "index of text": (
        lambda text, index: index.write_text("hello\n"),
        "small.index:1 is no line of a dictionary's index",
    ),
    "decimal": (lambda text, index: index.write_text("a\t1.5\t20\n"), r"small.index:1 has b'1.5' where"),
    "huge offset": (
        lambda text, index: index.write_text("a\t" + "/" * 8 + "\tA\n"),
        "names an entry at bytes 281,474,976",
    ),
    "huge number": (lambda text, index: index.write_text("a\tA\t" + "/" * 99 + "\n"), "1 to 8 digits"),
    "huge entry": (lambda text, index: index.write_text("a\tA\t//////\n"), "an entry of 68,719,476,735 bytes"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_and_foreign_files(tmp_path: Path, name: str) -> None:
    """Breaks if a damaged pair, or two files that do not belong together, gives a corpus, another error, or no end."""
    path = write_dictionary(tmp_path, small_entries(300))
    damage, message = DAMAGES[name]
    damage(path, tmp_path / "small.index")
    with pytest.raises(InputError, match=message):
        list(open_source("dictd", str(path)).documents())


def test_the_index_is_no_input(tmp_path: Path) -> None:
    """Breaks if somebody who names the index, or any other file, is not told what to name."""
    path = write_dictionary(tmp_path, small_entries(3))
    assert index_of(path) == tmp_path / "small.index"
    for name, hint in {"small.index": "give the text beside it", "words.txt": r"named \*.dict.dz or \*.dict"}.items():
        (tmp_path / name).touch()
        with pytest.raises(InputError, match=hint):
            list(open_source("dictd", str(tmp_path / name)).documents())
    with pytest.raises(InputError, match=r"\*.dict.dz"):
        open_source("dictd", str(tmp_path), by_name=True) if path.unlink() is None else None


def test_the_studys_commands() -> None:
    """Breaks if `make study-data` calls what data.prepare does not take, or other folders or tokens than the docs name."""
    command = ["make", "--dry-run", "-o", ".venv/dev", "-o", "data/raw/usr/share/dictd/gcide.dict.dz", "study-data"]
    text = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    prepared = [line.split("data.prepare ")[1].split() for line in text.splitlines() if "data.prepare " in line]
    folders = {(parsed := parser().parse_args(words)).out: parsed for words in prepared}
    rows = re.findall(r"^\| `([\w-]+)` \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|", PAGE.read_text(), re.MULTILINE)
    documented = {name: [int(number.replace(",", "")) for number in numbers] for name, *numbers in rows}
    # a tokenizer that another of these folders has brings its vocabulary
    sizes = {p.name: a.vocab_size or folders[Path(a.tokenizer).parent].vocab_size for p, a in folders.items()}
    assert sizes == {name: row[0] for name, row in documented.items()}
    for path in folders:
        config, _ = load_config(ROOT / "configs/study_s.json", [f"data.path={path}"])
        assert prepare_command(config) == "make study-data"
        # Other corpora follow from the Python and the packages that are here; English is the same everywhere.
        if path.name.startswith("english") and (manifest := read_manifest(ROOT / path)):
            assert [manifest.vocab_size, manifest.train.tokens, manifest.val.tokens] == documented[path.name]


@pytest.mark.skipif(not any(path.exists() for path in REAL), reason="dict-gcide is not here; `make study-data` gets it")
def test_the_real_dictionary() -> None:
    """Breaks if the study's English corpus is not read whole: 126,236 entries, of which three are not UTF-8."""
    path = next(path for path in REAL if path.exists())
    spans, information = read_index(index_of(path))
    assert len(spans) > 126_000
    assert information == 4
    source = open_source("dictd", str(path))
    source.document_bytes, source.skip_bad = 8192, True
    documents = list(source.documents())
    assert len(documents) > 4_500
    assert sum(len(text) for text in documents) > 39_000_000
    assert sum("General Public License" in text for text in documents) == 0
    assert any("Horse \\Horse\\ (h[^o]rs), n." in text for text in documents)
