"""Preparation: lossless, the same bytes for any worker count, and whole or not at all."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.manifest import Manifest, read_manifest
from data.options import Options, default_val_fraction
from data.prepare import main, prepare
from data.sources import Source, open_source
from data.tokenizer import SentencePiece
from tests.synthetic import write_synthetic

pytestmark = pytest.mark.slow  # by its length alone: `make check` takes a minute

HARD = [
    "",
    " ",
    "   ",
    "\t\n\r\n \n",
    "a  b   c",
    " leading",
    "trailing ",
    "▁",
    "a▁b ▁▁ c",
    "日本語と中文",
    "👩‍👩‍👧‍👦 🏳️‍🌈",
    "\x00\x01\x7f\x1b[0m",
    "<|endoftext|>",
    "<0x41> <unk> <s>",
    "e\u0301 é ﬁ ①",
    "\u2028\u2029\u00a0\ufeff",
    "x" * 100_000,
    "def f():\n\treturn 1\n",
    "\ufffd",
]


@pytest.fixture(scope="module")
def tokenizer(tiny_data: tuple[Path, Manifest]) -> SentencePiece:
    return SentencePiece((tiny_data[0] / "tokenizer.model").read_bytes())


@pytest.mark.parametrize("text", HARD, ids=lambda text: repr(text[:12]))
def test_lossless(tokenizer: SentencePiece, text: str) -> None:
    """Breaks if the tokenizer normalises, strips, or confuses text with control symbols."""
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.eot not in ids
    assert max(ids, default=0) < tokenizer.vocab_size


def test_documents_come_back(tiny_data: tuple[Path, Manifest], tokenizer: SentencePiece) -> None:
    """Breaks if a document is lost, cut, or without its end-of-text token; both splits together are the source."""
    folder, manifest = tiny_data
    found = []
    for split in (manifest.train, manifest.val):
        stream = np.concatenate([np.fromfile(folder / shard.file, dtype="<u2") for shard in split.shards])
        ends = np.fromfile(folder / split.docs_file, dtype="<u8").astype(int)
        assert ends[-1] == len(stream) == split.tokens
        assert (stream[ends - 1] == manifest.eot).all()
        found += [tokenizer.decode(stream[a : b - 1].tolist()) for a, b in zip([0, *ends[:-1]], ends, strict=True)]
    assert sorted(found) == sorted(path.read_bytes().decode() for path in tiny_files())


def tiny_files() -> list[Path]:
    import sysconfig

    root = Path(sysconfig.get_paths()["stdlib"])
    return [path for letter in "act" for path in sorted(root.glob(f"{letter}*.py"))]


def copy_texts(folder: Path, files: list[Path]) -> None:
    """The files as 000.txt, 001.txt, …, whatever their names were."""
    folder.mkdir(exist_ok=True)
    for index, path in enumerate(files):
        (folder / f"{index:03}.txt").write_bytes(path.read_bytes())


def folder_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
def test_same_bytes_for_any_workers(tmp_path: Path) -> None:
    """Breaks if the output depends on scheduling; another seed changes the shuffle, not the split."""
    source = Source.local("text", tiny_files())
    manifests = [prepare(source, tmp_path / str(w), Options(400, 0.2, 0), workers=w) for w in (1, 3)]
    assert folder_bytes(tmp_path / "1") == folder_bytes(tmp_path / "3")
    other = prepare(source, tmp_path / "seed", Options(400, 0.2, 1))
    assert other.digest != manifests[0].digest
    assert other.val.documents == manifests[0].val.documents
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "3", "seed"], "working files stayed"


def test_sources_agree(tmp_path: Path) -> None:
    """Breaks if one source reads other documents than another, or the same documents are other data because of the files
    they came in: a run's id would follow the kind of file. Texts, jsonl, jsonl.gz and parquet are compared."""
    texts = [path.read_bytes().decode() for path in tiny_files()[:12]]
    lines = "".join(json.dumps({"body": t}) + "\n" for t in texts)
    (tmp_path / "c.jsonl").write_text(lines)
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    pq.write_table(pa.table({"body": texts, "id": range(12)}), tmp_path / "c.parquet", row_group_size=5)
    for index, text in enumerate(texts):
        (tmp_path / f"{index:02}.txt").write_bytes(text.encode())
    found, manifests = [], []
    for kind, pattern in (("text", "*.txt"), ("jsonl", "*.jsonl"), ("jsonl", "*.gz"), ("parquet", "*.parquet")):
        out = tmp_path / f"out{len(found)}"
        manifests.append(prepare(open_source(kind, str(tmp_path / pattern), "body"), out, Options(512, 0.3, 0, "body")))
        found.append({name: data for name, data in folder_bytes(out).items() if name != "manifest.json"})
    assert found[0] == found[1] == found[2] == found[3]
    assert len({manifest.digest for manifest in manifests}) == 1
    assert [manifest.source["kind"] for manifest in manifests] == ["text", "jsonl", "jsonl", "parquet"]


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if the documented command fails, or a second call does the work again or harms the first's."""
    copy_texts(tmp_path, tiny_files()[:12])
    arguments = [
        "--source",
        "text",
        "--input",
        str(tmp_path / "*.txt"),
        "--out",
        str(tmp_path / "out"),
        "--vocab-size",
        "512",
        "--val-fraction",
        "0.3",
        "--seed",
        "1",
        "--workers",
        "2",
    ]
    assert main(arguments) == 0
    assert "training" in capsys.readouterr().out
    before = folder_bytes(tmp_path / "out")
    assert main(arguments) == 0
    assert "prepared already" in capsys.readouterr().out
    assert main([*arguments[:-3], "2"]) == 2
    assert "choose another --out" in capsys.readouterr().err
    assert folder_bytes(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("files", "arguments", "message"),
    [
        ({}, ["--source", "text", "--input", "*.txt"], "matches no file"),
        ({"a.txt": b"x"}, ["--source", "text"], "needs --input"),
        ({"a.txt": b"\xff\xfe"}, ["--source", "text", "--input", "*.txt"], "a.txt is not UTF-8 (byte 0)"),
        (
            {"a.jsonl": b'{"text": "a"}\n{"txt": "b"}\n'},
            ["--source", "jsonl", "--input", "*.jsonl"],
            "a.jsonl:2 has no string field 'text' (found: txt)",
        ),
        ({"a.jsonl": b'{"text": "a\n'}, ["--source", "jsonl", "--input", "*.jsonl"], "a.jsonl:1 is not JSON"),
        (
            {"a.jsonl": b'{"text": "\\ud800"}\n'},
            ["--source", "jsonl", "--input", "*.jsonl"],
            "a.jsonl:1 holds a lone surrogate",
        ),
        ({"a.jsonl": b""}, ["--source", "jsonl", "--input", "*.jsonl"], "the corpus is empty"),
        ({"a.parquet": b"PAR?"}, ["--source", "parquet", "--input", "*.parquet"], "a.parquet is not a parquet file"),
        (
            {"a.txt": b"abc", "b.txt": b"abd", "c.txt": b"ace"},
            ["--source", "text", "--input", "*.txt", "--val-fraction", "0.5"],
            "cannot train a vocabulary of 512",
        ),
        (
            {"a.txt": b"abc"},
            ["--source", "text", "--input", "*.txt", "--val-fraction", "0"],
            "must lie between 0 and 1",
        ),
    ],
)
def test_bad_input_leaves_nothing(
    tmp_path: Path, files: dict[str, bytes], arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks if a mistake is a traceback, goes unexplained, or leaves half-written data behind."""
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    arguments = [str(tmp_path / a) if a.startswith("*") else a for a in arguments]
    out = tmp_path / "out"
    assert main([*arguments, "--out", str(out), "--vocab-size", "512", "--workers", "1"]) == 2
    assert message in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == set(files)


def test_tails_where_a_split_would_be_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if 0.05 % of a few documents gives no validation at all, or all that was asked for training is held out."""
    copy_texts(tmp_path, tiny_files()[:12])
    size = sum(path.stat().st_size for path in tmp_path.glob("*.txt"))
    arguments = ["--source", "text", "--input", str(tmp_path / "*.txt"), "--vocab-size", "360", "--workers", "1"]
    for fraction in (0.0005, 0.99):
        out = tmp_path / str(fraction)
        assert main([*arguments, "--out", str(out), "--val-fraction", str(fraction)]) == 0
        assert "12 documents are too few to hold some out by their hash" in capsys.readouterr().out
        manifest = read_manifest(out)
        assert manifest is not None
        tokenizer = SentencePiece((out / "tokenizer.model").read_bytes())
        held = [
            len(
                tokenizer.decode(
                    [i for i in np.fromfile(out / shard.file, "<u2").tolist() if i != tokenizer.eot]
                ).encode()
            )
            for shard in manifest.val.shards
        ]
        assert abs(sum(held) / size - fraction) < 0.005
    (tmp_path / "a.jsonl").write_text('{"text": "a"}')
    arguments = ["--source", "jsonl", "--input", str(tmp_path / "a.jsonl"), "--out", str(tmp_path / "no")]
    assert main(arguments) == 2
    assert "split would be empty" in capsys.readouterr().err
    assert default_val_fraction(31_000_000) == pytest.approx(2 * 2**20 / 31e6)
    assert default_val_fraction(40 * 10**9) == 0.0005


def test_identity_of_data_is_its_content(tmp_path: Path, tiny_data: tuple[Path, Manifest]) -> None:
    """Breaks if data cut into other shards is other data, or other tokens, documents or tokenizers are the same data."""
    files = tiny_files()[:12]
    small = prepare(Source.local("text", files), tmp_path / "small", Options(512, 0.3, 0, bucket_bytes=5_000))
    whole = prepare(Source.local("text", files), tmp_path / "whole", Options(512, 0.3, 0))
    assert len(small.train.shards) != len(whole.train.shards)
    assert small.digest == whole.digest
    assert small.checksum != whole.checksum, "how it is stored is recorded all the same"
    others = [
        whole.model_copy(update={"eot": 2}),
        whole.model_copy(update={"vocab_size": 513}),
        whole.model_copy(update={"tokenizer": {"kind": "gpt2"}}),
        whole.model_copy(update={"train": whole.train.model_copy(update={"sha256": "0" * 64})}),
        whole.model_copy(update={"val": whole.val.model_copy(update={"docs_sha256": "0" * 64})}),
    ]
    assert len({whole.digest, *(other.with_digest().digest for other in others)}) == 6


def test_old_manifests_keep_their_digest(tmp_path: Path) -> None:
    """Breaks if data of format 1, whose digest covers its source, gets another digest: its runs would be renamed."""
    manifest = write_synthetic(tmp_path, 2048)
    row = json.loads((tmp_path / "manifest.json").read_text())
    for part in (row, row["train"], row["val"]):  # as it was written then: without the fields of format 2
        part.pop("checksum", None)
        part.pop("sha256", None)
    text = json.dumps({k: v for k, v in row.items() if k != "digest"}, sort_keys=True, separators=(",", ":"))
    assert row["digest"] == hashlib.sha256(text.encode()).hexdigest()
    (tmp_path / "manifest.json").write_text(json.dumps(row))
    found = read_manifest(tmp_path)
    assert found is not None
    assert (found.format, found.digest) == (1, manifest.digest)
    (tmp_path / "manifest.json").write_text(json.dumps({**row, "source": {"kind": "other"}}))
    with pytest.raises(ValueError, match="was changed after preparation"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({**row, "format": 3}))
    with pytest.raises(ValueError, match="has format 3, and this code reads 1 to 2"):
        read_manifest(tmp_path)


def test_changed_manifest_is_refused(tmp_path: Path, tiny_data: tuple[Path, Manifest]) -> None:
    """Breaks if an edited manifest, or a file that is none, passes as prepared data."""
    assert read_manifest(tmp_path) is None
    text = (tiny_data[0] / "manifest.json").read_text()
    (tmp_path / "manifest.json").write_text(text.replace('"seed": 0', '"seed": 1'))
    with pytest.raises(ValueError, match="was changed after preparation"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a manifest of prepared data"):
        read_manifest(tmp_path)
