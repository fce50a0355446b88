"""What a newcomer prepares first: one text file, a folder, wikitext's files, a saved dataset; and what is chosen for them."""

from __future__ import annotations

import gzip
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from data.documents import cut_point, split_documents
from data.manifest import Manifest, read_manifest
from data.options import DEFAULT_VOCAB, default_vocab, why_val_fraction
from data.prepare import main
from data.streams import Reader
from data.tokenizer import load_tokenizer
from tests.test_prepare import folder_bytes

LIBRARY = Path(sysconfig.get_paths()["stdlib"])


def prose(size: int) -> bytes:
    """The beginning of a text of many paragraphs."""
    text = b"\n\n".join((LIBRARY / f"{name}.py").read_bytes() for name in ("argparse", "typing", "tarfile"))
    return text[:size].decode(errors="ignore").encode()


def run(out: Path, *arguments: str, source: str = "text") -> int:
    return main(["--source", source, "--out", str(out), "--workers", "1", *arguments])


def documents(folder: Path, manifest: Manifest, split: str) -> list[str]:
    """The texts of a split, in order."""
    part = manifest.train if split == "train" else manifest.val
    tokenizer = load_tokenizer(folder, manifest.tokenizer)
    stream = np.concatenate([np.fromfile(folder / shard.file, dtype="<u2") for shard in part.shards])
    ends = np.fromfile(folder / part.docs_file, dtype="<u8").astype(int)
    return [tokenizer.decode(stream[a : b - 1].tolist()) for a, b in zip([0, *ends[:-1]], ends, strict=True)]


def prepared(folder: Path) -> Manifest:
    manifest = read_manifest(folder)
    assert manifest is not None
    return manifest


@pytest.mark.parametrize("size", [200_000, 20_000, 2_000])
def test_one_text_file(tmp_path: Path, size: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if one file needs any option, loses or repeats a byte, or holds out far from a tenth; choices must be said."""
    text = prose(size)
    (tmp_path / "book.txt").write_bytes(text)
    assert run(tmp_path / "out", "--input", str(tmp_path / "book.txt")) == 0
    said = capsys.readouterr().out
    assert "split at blank lines" in said
    assert "vocab-size 512 instead of 50304" in said
    assert "2 MiB" not in said, "so much text is not there"
    manifest = prepared(tmp_path / "out")
    train, val = documents(tmp_path / "out", manifest, "train"), documents(tmp_path / "out", manifest, "val")
    assert sorted("".join(train + val)) == sorted(text.decode())
    assert all(document in text.decode() for document in train + val)
    assert 0.05 < sum(map(len, val)) / size < 0.2
    assert ("the tail of each shard" in said) == (size < 20_000)
    assert manifest.options["split_on"] == "blank-line"
    assert manifest.options["document_bytes"] == max(512, len(text) // 256)
    assert all(note in said for note in manifest.source["notes"])
    assert run(tmp_path / "out", "--input", str(tmp_path / "book.txt")) == 0
    assert "prepared already" in capsys.readouterr().out


@pytest.mark.slow
def test_text_is_the_same_for_any_workers_and_packing(tmp_path: Path) -> None:
    """Breaks if a text's documents depend on the workers, or on the pieces in which a packed file is read."""
    text = prose(60_000) + b"x" * 3_000_000 + prose(60_000)  # a line of several blocks inside
    (tmp_path / "a.txt").write_bytes(text)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text))
    same = ["--document-bytes", "5000", "--vocab-size", "512", "--val-fraction", "0.1", "--tokenizer", "bpe"]
    found = []
    for name, workers in (("a.txt", "1"), ("a.txt", "3"), ("a.txt.gz", "1")):
        out = tmp_path / f"{name}-{workers}"
        assert run(out, "--input", str(tmp_path / name), *same, "--workers", workers) == 0
        found.append({name: data for name, data in folder_bytes(out).items() if name != "manifest.json"})
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(
    ("text", "split_on", "size", "expected"),
    [
        (b"\n\na\nb\n \n\nc\n\nd", "blank-line", None, [b"\n\na\nb\n \n\n", b"c\n\n", b"d"]),
        (b"a\r\n\r\nb\r\n", "blank-line", None, [b"a\r\n\r\n", b"b\r\n"]),
        (b"a\n\nb\n\nc\n\nd\n", "blank-line", 5, [b"a\n\nb\n\n", b"c\n\nd\n"]),
        (b"a\nb\n\nc", "line", None, [b"a\n", b"b\n", b"c"]),
        (b"a\nb\nc\n", "line", 3, [b"a\nb\n", b"c\n"]),
        (b"a<|end|>\n<|end|>b c<|end|>", "<|end|>", None, [b"a", b"b c"]),
        (b"a<|end|>b", "<|end|>", 100, [b"a", b"b"]),
        (b"one\ntwo", "\\n", None, [b"one", b"two"]),
        (b"aaaa bbbb\ncc\ndddd", "file", 6, [b"aaaa ", b"bbbb\ncc\ndddd"]),
        (b"aaaa bbbb\ncc\ndddd.", "file", 6, [b"aaaa ", b"bbbb\n", b"cc\ndddd."]),
        (" é".encode() * 3, "file", 2, [" é".encode()] * 3),
        (b"", "blank-line", None, []),
        (b" \n\n", "blank-line", 10, []),
    ],
)
def test_where_a_text_is_split(
    tmp_path: Path, text: bytes, split_on: str, size: int | None, expected: list[bytes]
) -> None:
    """Breaks if a document begins elsewhere than the rules of --help say, or a position in a message is wrong."""
    (tmp_path / "a.txt").write_bytes(text)
    with Reader(tmp_path / "a.txt") as reader:
        found = list(split_documents(reader, split_on, size))
    assert [raw for _, raw in found] == expected
    assert all(text[start : start + len(raw)] == raw for start, raw in found)


def test_separators_across_blocks(tmp_path: Path) -> None:
    """Breaks if a separator is missed where two blocks of reading meet, or a long piece costs more than linear time."""
    pieces = [b"x" * ((1 << 20) - 3), b"y" * (5 << 20), b"z"]
    (tmp_path / "a.txt").write_bytes(b"<|endoftext|>".join(pieces))
    with Reader(tmp_path / "a.txt") as reader:
        assert [raw for _, raw in split_documents(reader, "<|endoftext|>", None)] == pieces
    assert cut_point(b"ab cd", 4, back=2) == 3
    assert cut_point("aé".encode() * 4, 2, back=1) == 3, "cut inside a character"


def test_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if a folder's texts are not found, a picture is read as text, or what was left out is not said."""
    folder = tmp_path / "books"
    (folder / "part" / ".git").mkdir(parents=True)
    (folder / "a.txt").write_bytes(prose(9000))
    (folder / "part" / "LICENSE").write_bytes(prose(30_000)[9000:])
    (folder / "part" / "again.txt").symlink_to(folder / "a.txt")
    (folder / "part" / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    (folder / "part" / ".git" / "config").write_text("hidden")
    (folder / "empty.txt").write_text("")
    assert run(tmp_path / "out", "--input", str(folder)) == 0
    said = capsys.readouterr().out
    assert "3 files, a.txt, empty.txt, LICENSE" in said
    manifest = prepared(tmp_path / "out")
    assert manifest.source["skipped"] == {"file that is no text": 1, "file without text": 1}
    assert "skipped 1: file without text" in said
    texts = documents(tmp_path / "out", manifest, "train") + documents(tmp_path / "out", manifest, "val")
    assert sorted("".join(texts)) == sorted(prose(30_000).decode())
    (tmp_path / "none").mkdir()
    assert run(tmp_path / "no", "--input", str(tmp_path / "none"), source="jsonl") == 2
    assert "is a folder that holds no file named *.jsonl or *.ndjson" in capsys.readouterr().err


def test_several_paths_are_a_glob(tmp_path: Path) -> None:
    """Breaks if a glob that the shell expanded is read otherwise than a quoted one."""
    for index in range(9):
        (tmp_path / f"{index}[x].txt").write_bytes(prose(40_000)[index * 4000 :][:4000])
    paths = [str(path) for path in sorted(tmp_path.glob("*.txt"), reverse=True)]
    same = ["--vocab-size", "400", "--val-fraction", "0.3"]
    assert run(tmp_path / "glob", "--input", str(tmp_path / "*.txt"), *same) == 0
    assert run(tmp_path / "paths", "--input", *paths, *same) == 0
    assert folder_bytes(tmp_path / "glob") == folder_bytes(tmp_path / "paths")


def test_files_of_validation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if wikitext's validation file is trained on, its test file is read, or --val-input does otherwise."""
    texts = {"train": prose(40_000)[:30_000], "valid": prose(40_000)[30_000:], "test": b"never read"}
    for name, text in texts.items():
        (tmp_path / f"wiki.{name}.raw").write_bytes(text)
    train, valid = str(tmp_path / "wiki.train.raw"), str(tmp_path / "wiki.valid.raw")
    assert run(tmp_path / "names", "--input", str(tmp_path / "wiki.*.raw")) == 0
    said = capsys.readouterr().out
    assert "wiki.valid.raw is for validation, wiki.train.raw for training" in said
    assert "wiki.test.raw is a test split by its name and is not read" in said
    assert run(tmp_path / "pair", "--input", train, valid) == 0
    assert run(tmp_path / "given", "--input", train, "--val-input", valid) == 0
    for out in (tmp_path / "names", tmp_path / "pair", tmp_path / "given"):
        manifest = prepared(out)
        assert sorted("".join(documents(out, manifest, "val"))) == sorted(texts["valid"].decode())
        assert manifest.source["val_bytes"] == len(texts["valid"])
    assert prepared(tmp_path / "names").digest == prepared(tmp_path / "given").digest
    capsys.readouterr()
    assert run(tmp_path / "no", "--input", train, "--val-input", train) == 2
    assert "is in both --input and --val-input" in capsys.readouterr().err
    assert run(tmp_path / "no", "--input", train, "--val-input", valid, "--val-fraction", "0.1") == 2
    assert "leave --val-fraction out" in capsys.readouterr().err


def test_a_saved_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if what save_to_disk wrote is not read as it is, its splits are mixed, or a damaged one is a traceback."""
    import datasets

    rows = [prose(40_000)[index * 1000 :][:1000].decode() for index in range(40)]
    train = datasets.Dataset.from_dict({"text": rows[:30], "id": range(30)})
    train.save_to_disk(str(tmp_path / "one"), num_shards=2)
    both = datasets.DatasetDict({"train": train, "validation": datasets.Dataset.from_dict({"text": rows[30:]})})
    both.save_to_disk(str(tmp_path / "both"))
    same = ["--vocab-size", "512"]
    assert run(tmp_path / "a", "--input", str(tmp_path / "one"), *same, "--val-fraction", "0.2", source="arrow") == 0
    manifest = prepared(tmp_path / "a")
    found = documents(tmp_path / "a", manifest, "train") + documents(tmp_path / "a", manifest, "val")
    assert sorted(found) == sorted(rows[:30])
    assert run(tmp_path / "b", "--input", str(tmp_path / "both"), *same) == 0, "whatever --source says"
    assert sorted(documents(tmp_path / "b", prepared(tmp_path / "b"), "val")) == sorted(rows[30:])
    assert "written by save_to_disk" in capsys.readouterr().out
    next((tmp_path / "one").glob("*.arrow")).write_bytes(b"ARROW?")
    assert run(tmp_path / "c", "--input", str(tmp_path / "one"), *same, source="arrow") == 2
    assert "is not an arrow file" in capsys.readouterr().err
    (tmp_path / "one" / "state.json").write_text('{"_data_files": [{"filename": "../both/x.arrow"}]}')
    assert run(tmp_path / "c", "--input", str(tmp_path / "one"), *same, source="arrow") == 2
    assert "which is no file in" in capsys.readouterr().err


def test_default_vocabulary_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if a default vocabulary fails for a small text, or one of many characters, or is another without a word."""
    assert [default_vocab(size) for size in (0, 2_000, 1_100_000, 8 << 20, 16 << 20)] == [512, 512, 2048, 16384, 50304]
    (tmp_path / "small.txt").write_text("a few words, and a few more words.\n\nAnd then some words.\n")
    (tmp_path / "many.txt").write_text("".join(chr(0x4E00 + index) for index in range(3000)) * 3)
    for name in ("small", "many"):
        assert run(tmp_path / name, "--input", str(tmp_path / f"{name}.txt")) == 0
        vocabulary = prepared(tmp_path / name).vocab_size
        assert f"vocabulary {vocabulary} instead of the default" in capsys.readouterr().out
        assert prepared(tmp_path / name).options["vocab_fitted"] is True
        explicit = ["--input", str(tmp_path / f"{name}.txt"), "--vocab-size", str(DEFAULT_VOCAB)]
        assert run(tmp_path / "no", *explicit) == 2
        assert f"cannot train a vocabulary of {DEFAULT_VOCAB} on this text: at most" in capsys.readouterr().err
    assert run(tmp_path / "no", "--input", str(tmp_path / "many.txt"), "--vocab-size", "300") == 2
    assert "give --vocab-size 3259 or more" in capsys.readouterr().err
    assert run(tmp_path / "yes", "--input", str(tmp_path / "many.txt"), "--vocab-size", "3259") == 0


def test_vocabulary_beside_a_tokenizer(
    tmp_path: Path, tiny_data: tuple[Path, Manifest], capfd: pytest.CaptureFixture[str]
) -> None:
    """Breaks if --vocab-size beside a tokenizer file is ignored, or SentencePiece's own lines reach the user."""
    (tmp_path / "a.txt").write_bytes(prose(20_000))
    arguments = ["--input", str(tmp_path / "a.txt"), "--tokenizer", str(tiny_data[0] / "tokenizer.model")]
    assert run(tmp_path / "out", *arguments, "--vocab-size", "4096") == 2
    assert "whose vocabulary is 512: leave --vocab-size out" in capfd.readouterr().err
    assert run(tmp_path / "out", *arguments, "--vocab-size", "512") == 0
    capfd.readouterr()
    for content in (b"", b"no model", (tiny_data[0] / "tokenizer.model").read_bytes()[:1000]):
        (tmp_path / "foreign.model").write_bytes(content)
        assert (
            run(tmp_path / "no", "--input", str(tmp_path / "a.txt"), "--tokenizer", str(tmp_path / "foreign.model"))
            == 2
        )
        error = capfd.readouterr().err.strip()
        assert error.count("\n") == 0
        assert "foreign.model: " in error
        assert ".cc" not in error


def test_what_is_said_of_the_held_out_share() -> None:
    """Breaks if "about 2 MiB" is said of a text of which a tenth is less, or a change is made without a word."""
    assert "about 2 MiB" in why_val_fraction(100 << 20)
    assert why_val_fraction(1_100_000) == (
        "val-fraction 0.1 instead of 0.0005: about 110 kB of 1.1 MB of text, the most held out by default"
    )
    assert why_val_fraction(40 * 10**9) == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split-on", ""], "--split-on is empty"),
        (["--document-bytes", "0"], "--document-bytes 0 must lie between 1 and"),
        (["--vocab-size", "0"], "--vocab-size 0 must be at least 1"),
    ],
)
def test_bad_options(tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if a senseless option is a traceback or is taken for another."""
    (tmp_path / "a.txt").write_bytes(prose(2000))
    assert run(tmp_path / "out", "--input", str(tmp_path / "a.txt"), *arguments) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
