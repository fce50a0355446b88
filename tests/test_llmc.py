"""Adopted shards of llm.c and modded-nanogpt: read behind their headers, in the order of their numbers, or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from configs.errors import InputError
from configs.plan import make_plan
from configs.prepared import read_summary
from configs.schema import RunConfig
from data import inspect
from data.loader import TrainData, eval_batches, read_document_ends
from data.manifest import Manifest, read_manifest
from data.nanogpt import adopt
from data.prepare import main
from data.tokenizer import SentencePiece
from data.verify import verify_split
from model.gpt import document_mask
from tests.test_corpora import corpus_config
from tests.test_nanogpt import nanogpt_pair

EOT = 50256


def write_shard(path: Path, tokens: np.ndarray, magic: int = 20240520, version: int = 1, dtype: str = "<u2") -> None:
    """A file as llm.c's write_datafile leaves it, by the format's description."""
    header = np.zeros(256, "<i4")
    header[:3] = magic, version, len(tokens)
    path.write_bytes(header.tobytes() + tokens.astype(dtype).tobytes())


def stream(documents: int, seed: int, end: int = EOT) -> np.ndarray:
    """Documents of random tokens, an end of text before each."""
    draw = np.random.default_rng(seed)
    parts = [np.concatenate([[end], draw.integers(0, end, draw.integers(20, 90))]) for _ in range(documents)]
    return np.concatenate(parts)


@pytest.fixture
def fineweb(tmp_path: Path) -> tuple[Path, np.ndarray, np.ndarray]:
    """Three training shards, cut in the middle of documents, and one for validation, with modded-nanogpt's names."""
    folder = tmp_path / "fineweb10B"
    folder.mkdir()
    train, val = stream(200, 0), stream(20, 1)
    for number, part in enumerate(np.split(train, [4001, 9000]), 1):
        write_shard(folder / f"fineweb_train_{number:06d}.bin", part)
    write_shard(folder / "fineweb_val_000000.bin", val)
    return folder, train, val


def run(folder: Path, out: Path, *words: str) -> int:
    return main(["--source", "llmc", "--input", str(folder), "--out", str(out), *words])


def test_shards_are_adopted(
    fineweb: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks if a header is read as tokens, shards are out of order or copied, or a document is counted that is none."""
    folder, train, val = fineweb
    out = tmp_path / "out"
    assert run(folder, out) == 0
    said = capsys.readouterr().out
    assert "vocabulary 50257, tokenizer gpt2 (as the header and the ids say); end of text 50256" in said
    manifest = read_manifest(out)
    assert manifest is not None
    assert (manifest.vocab_size, manifest.eot, manifest.dtype) == (50257, EOT, "uint16")
    assert (manifest.train.tokens, manifest.val.tokens) == (len(train), len(val))
    # what opens a split ends an empty document
    assert (manifest.train.documents, manifest.val.documents) == (201, 21)
    assert (out / "train_00001.bin").resolve() == folder / "fineweb_train_000002.bin"
    config = corpus_config(out, vocab_size=50304, steps=19)
    count = (len(train) - 1) // 256
    rows = np.empty((count, 257), np.int64)
    TrainData(out, manifest, config).read(np.arange(count), rows)
    assert np.array_equal(rows[:, :-1].ravel(), train[: count * 256])
    assert np.array_equal(eval_batches(out, manifest, config, 1, 0, 1)[0].inputs[0], val[:256])
    verify_split(out, manifest.train)
    # a document ends behind the token that begins the next one
    ends = read_document_ends(out, manifest.train).astype(int)
    assert (train[ends[:-1] - 1] == EOT).all()
    assert ends[-1] == len(train)
    assert run(folder, out) == 0
    assert "prepared already" in capsys.readouterr().out
    header = bytearray((folder / "fineweb_train_000002.bin").read_bytes())
    header[500] = 1  # the whole file is hashed, its header too
    (folder / "fineweb_train_000002.bin").write_bytes(header)
    with pytest.raises(InputError, match=r"train_00001.bin differs from its hash"):
        verify_split(out, manifest.train)


def test_the_same_tokens_are_the_same_data(fineweb: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path) -> None:
    """Breaks if a header, or where the stream is cut, becomes part of the data's digest, and so of a run's identity."""
    folder, train, val = fineweb
    assert run(folder, tmp_path / "cut") == 0
    (tmp_path / "whole").mkdir()
    write_shard(tmp_path / "whole" / "x_train.bin", train)
    write_shard(tmp_path / "whole" / "x_val.bin", val)
    assert run(tmp_path / "whole", tmp_path / "one") == 0
    manifests = [read_manifest(tmp_path / name) for name in ("cut", "one")]
    raw = adopt(nanogpt_pair(tmp_path / "pair", train, val), tmp_path / "raw", None, "gpt2")
    assert {manifest.digest for manifest in manifests if manifest} == {raw.digest}
    assert raw.train.shards[0].header_bytes == 0


def test_attention_stays_in_a_document(fineweb: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path) -> None:
    """Breaks if a token sees another document's where attention is cut, at a token that begins a document here."""
    import torch

    assert run(fineweb[0], tmp_path / "out") == 0
    train = fineweb[1][:300]
    mask = document_mask(torch.tensor(train)[None], EOT)[0, 0]
    number = np.cumsum(train == EOT)  # which document a token is of, with its own end of text in front
    text = train != EOT
    for row in np.flatnonzero(text).tolist():
        seen = np.flatnonzero(mask[row].numpy())
        assert (number[seen[text[seen]]] == number[row]).all()
        assert len(seen) == row - np.flatnonzero(train[: row + 1] == EOT)[-1]


def test_documents_are_shuffled(
    fineweb: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path, tiny_config: Callable[..., RunConfig]
) -> None:
    """Breaks if documents of adopted shards, which cross from one file to the next, are cut or lost when they are shuffled."""
    assert run(fineweb[0], tmp_path / "out") == 0
    manifest = read_manifest(tmp_path / "out")
    assert manifest is not None
    config = corpus_config(tmp_path / "out", vocab_size=50304, steps=5)
    shuffled = config.model_copy(update={"data": config.text.model_copy(update={"order": "documents"})})
    make_plan(shuffled, 1, read_summary(tmp_path / "out"))
    rows = np.empty((40, 257), np.int64)
    TrainData(tmp_path / "out", manifest, shuffled).read(np.arange(40), rows)
    read = np.append(rows[:, :-1].ravel(), rows[-1, -1])
    whole = {tuple(part) for part in np.split(fineweb[1], np.flatnonzero(fineweb[1] == EOT) + 1)[2:-1]}
    parts = [tuple(part) for part in np.split(read, np.flatnonzero(read == EOT) + 1)[1:-1]]
    # the stream's last document has no end of text: it runs into the next one
    assert sum(part not in whole for part in parts) <= 3
    assert len(parts) > 150


def test_llama_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if shards of four bytes a token are read as two, or their documents' ends are looked for among GPT-2's ids."""
    folder = tmp_path / "llama"
    folder.mkdir()
    train, val = stream(50, 0, 128000), stream(5, 1, 128000)
    write_shard(folder / "tiny_shakespeare_train.bin", train, 20240801, 7, "<u4")
    write_shard(folder / "tiny_shakespeare_val.bin", val, 20240801, 7, "<u4")
    assert run(folder, tmp_path / "out") == 0
    assert "vocabulary 128256, tokenizer unknown (Llama 3's" in capsys.readouterr().out
    manifest = read_manifest(tmp_path / "out")
    assert manifest is not None
    assert (manifest.dtype, manifest.eot, manifest.train.documents) == ("uint32", 128000, 51)
    rows = np.empty((1, 257), np.int64)
    TrainData(tmp_path / "out", manifest, corpus_config(tmp_path / "out", 128256, 3)).read(np.array([3]), rows)
    assert np.array_equal(rows[0], train[768:1025])
    write_shard(folder / "tiny_shakespeare_val.bin", val, 20240801, 1, "<u4")
    assert run(folder, tmp_path / "no") == 2
    assert "is of version 1; known is 7 of the number 20240801" in capsys.readouterr().err


def test_other_vocabularies(
    tiny_data: tuple[Path, Manifest], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks if shards of another tokenizer, whose header is the same, pass for GPT-2's, or are not decoded by their own."""
    source, given = tiny_data
    tokens = np.concatenate([np.fromfile(source / shard.file, "<u2") for shard in given.train.shards])
    folder = tmp_path / "sp512"
    folder.mkdir()
    write_shard(folder / "fineweb_train_000000.bin", np.append(given.eot, tokens[:-1]))
    write_shard(folder / "fineweb_val_000000.bin", np.append(given.eot, tokens[:999]))
    assert run(folder, tmp_path / "no") == 2
    error = capsys.readouterr().err
    assert "here the largest id is 511; give --tokenizer FILE" in error
    assert "--vocab-size (512 or more)" in error
    assert run(folder, tmp_path / "size", "--vocab-size", "512") == 0
    model = source / "tokenizer.model"
    assert run(folder, tmp_path / "model", "--tokenizer", str(model)) == 0
    manifest = read_manifest(tmp_path / "model")
    assert manifest is not None
    assert manifest.tokenizer == SentencePiece(model.read_bytes()).describe()
    assert manifest.train.documents == given.train.documents + 1  # the last is cut before its end
    assert inspect.main([str(tmp_path / "model")]) == 0


def damage(name: str, folder: Path) -> None:
    """What people's folders look like."""
    shard = folder / "fineweb_train_000002.bin"
    raw = shard.read_bytes()
    actions: dict[str, Callable[[], object]] = {
        "cut": lambda: shard.write_bytes(raw[:-100]),
        "short": lambda: shard.write_bytes(raw[:900]),
        "empty": lambda: shard.write_bytes(b""),
        "no tokens": lambda: write_shard(shard, np.empty(0)),
        "negative": lambda: shard.write_bytes(raw[:8] + np.array([-5], "<i4").tobytes() + raw[12:]),
        "magic": lambda: shard.write_bytes(b"\1" + raw[1:]),
        "eval file": lambda: write_shard(shard, np.arange(9), 20240522),
        "version": lambda: write_shard(shard, np.arange(9), version=2),
        "missing": lambda: shard.unlink(),
        "begins late": lambda: (folder / "fineweb_train_000001.bin").unlink(),
        "twice": lambda: write_shard(folder / "fineweb_train_2.bin", np.arange(9)),
        "no number": lambda: write_shard(folder / "fineweb_train.bin", np.arange(9)),
        "two sets": lambda: write_shard(folder / "edu_fineweb_train_000001.bin", np.arange(9)),
        "no val": lambda: (folder / "fineweb_val_000000.bin").unlink(),
        "mixed": lambda: write_shard(shard, np.arange(9), 20240801, 7, "<u4"),
        "beyond": lambda: write_shard(shard, np.array([3, 50257, 4])),
        "raw": lambda: shard.write_bytes(np.arange(5000).astype("<u2").tobytes()),
    }
    actions[name]()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cut", "and its header says 4,999 tokens of uint16, which are 11,022: it is damaged or was not fetched whole"),
        ("short", "found are 900 bytes and 20240520"),
        ("empty", "found are 0 bytes and 0"),
        ("no tokens", "its header says 0 tokens"),
        ("negative", "its header says -5 tokens"),
        ("magic", "does not begin with the header of a token shard"),
        ("eval file", "1,024 bytes, the first number 20240520 or 20240801; found are 1,024 bytes and 20240522"),
        ("version", "fineweb_train_000002.bin is of version 2; known is 1"),
        ("missing", "has no train shard of number 2, and has number 3; fetch what is missing"),
        ("begins late", "has no train shard of number 1, and has number 3"),
        ("twice", "two of one"),
        ("no number", "has train shards without a number"),
        ("two sets", "holds shards of several sets (edu_fineweb, fineweb)"),
        ("no val", "has no validation shard, *_val_*.bin"),
        ("mixed", "fineweb_train_000002.bin of uint32); put each kind into a folder of its own"),
        ("beyond", "here the largest id is 50257; give --tokenizer FILE"),
        ("raw", "Raw tokens named train.bin and val.bin are for --source nanogpt"),
    ],
)
def test_odd_folders(
    name: str,
    said: str,
    fineweb: tuple[Path, np.ndarray, np.ndarray],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Breaks if damaged, missing or mixed shards are trained on, or an error leaves a folder behind."""
    damage(name, fineweb[0])
    assert run(fineweb[0], tmp_path / "out") == 2
    assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["fineweb10B"]


def test_old_manifests_are_as_they_were(tiny_data: tuple[Path, Manifest]) -> None:
    """Breaks if data prepared before shards could have a header gets another manifest, and with it another checksum."""
    written = json.loads((tiny_data[0] / "manifest.json").read_text())
    assert all(set(shard) == {"file", "tokens", "sha256"} for shard in written["train"]["shards"])
    assert json.loads(tiny_data[1].model_dump_json()) == written
