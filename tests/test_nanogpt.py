"""Adopted nanoGPT data: tokens are linked, and what they mean is told, read without running anything, or asked for."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs.plan import make_plan
from configs.prepared import read_summary
from configs.schema import RunConfig
from data import inspect
from data.loader import TrainData
from data.manifest import Manifest
from data.nanogpt import adopt
from data.plain_pickle import LARGEST, read_plain_pickle
from data.prepare import main
from data.tokenizer import SentencePiece
from data.verify import verify_split
from tests.test_corpora import corpus_config

pytestmark = pytest.mark.slow  # by its length alone: `make check` takes a minute


def nanogpt_pair(folder: Path, train: np.ndarray, val: np.ndarray) -> Path:
    folder.mkdir()
    train.astype("<u2").tofile(folder / "train.bin")
    val.astype("<u2").tofile(folder / "val.bin")
    return folder


def test_nanogpt_pair_is_adopted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if adopted tokens are copied, read otherwise than they are, or their vocabulary is guessed without a word."""
    train = np.random.default_rng(0).integers(0, 50256, 5000)
    train[[99, 1234, 4999]] = 50256
    pair = nanogpt_pair(tmp_path / "pair", train, np.arange(500))
    manifest = adopt(pair, tmp_path / "out", None)
    assert (manifest.vocab_size, manifest.eot, manifest.dtype) == (50257, 50256, "uint16")
    assert (manifest.train.documents, manifest.val.documents, manifest.train.tokens) == (3, 1, 5000)
    assert (tmp_path / "out" / "train_00000.bin").resolve() == pair / "train.bin"
    config = corpus_config(tmp_path / "out", vocab_size=50304, steps=19)
    rows = np.empty((1, 257), np.int64)
    TrainData(tmp_path / "out", manifest, config).read(np.array([2]), rows)
    assert np.array_equal(rows[0], train[512:769])
    verify_split(tmp_path / "out", manifest.train)
    assert adopt(pair, tmp_path / "out", None) == manifest
    said = capsys.readouterr().out
    assert "vocabulary 50257, tokenizer gpt2 (guessed: the largest id is 50256, GPT-2's <|endoftext|>)" in said
    assert "end of text 50256" in said


@pytest.mark.parametrize(
    ("train", "vocab_size", "message"),
    [
        (np.array([1, 2, 300]), 256, "holds token id 300, outside the vocabulary of 256"),
        (np.array([]), None, "missing, empty, or of odd size"),
        (np.array([20240520 & 0xFFFF, 20240520 >> 16, 1, 0]), 65536, "begins with the header of llm.c's token shards"),
    ],
)
def test_odd_nanogpt_pairs(tmp_path: Path, train: np.ndarray, vocab_size: int | None, message: str) -> None:
    """Breaks if foreign ids are trained on, or an error leaves a folder behind."""
    pair = nanogpt_pair(tmp_path / "pair", train, np.arange(10))
    with pytest.raises(ValueError, match=message):
        adopt(pair, tmp_path / "out", vocab_size)
    assert [path.name for path in tmp_path.iterdir()] == ["pair"]


ALPHABET = [chr(code) for code in range(32, 97)]  # 65 characters, as in nanoGPT's Shakespeare


def character_data(folder: Path, meta: Any, protocol: int = 4) -> Path:
    """A pair as nanoGPT's character-level preparation leaves it, beside the given meta.pkl."""
    pair = nanogpt_pair(folder, np.arange(6500) % 65, np.arange(650) % 65)
    (pair / "meta.pkl").write_bytes(meta if isinstance(meta, bytes) else pickle.dumps(meta, protocol=protocol))
    return pair


def meta_of(table: list[str]) -> dict[str, Any]:
    return {"vocab_size": len(table), "itos": dict(enumerate(table)), "stoi": {c: i for i, c in enumerate(table)}}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_characters(
    protocol: int, tmp_path: Path, tiny_config: Callable[..., RunConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks if an ordinary character becomes the end of text, attention is cut there, or the characters are not shown."""
    pair = character_data(tmp_path / "pair", meta_of(ALPHABET), protocol)
    assert main(["--source", "nanogpt", "--input", str(pair), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "vocabulary 65, tokenizer characters" in said
    assert "meta.pkl, read without running it); no end of text" in said
    assert inspect.main([str(tmp_path / "out"), "--windows", "1", "--length", "65"]) == 0
    shown = capsys.readouterr().out
    assert "end of text none" in shown
    assert "".join(ALPHABET)[40:50] in shown or "".join(ALPHABET)[10:20] in shown
    summary = read_summary(tmp_path / "out")
    assert summary is not None
    assert not summary.ends_known
    make_plan(tiny_config(), 1, summary)
    with pytest.raises(ValueError, match="cross_document_attention false needs tokens that say where a document ends"):
        make_plan(tiny_config({"data": {"cross_document_attention": False}}), 1, summary)
    with pytest.raises(ValueError, match=r"data.order documents needs the ends of documents"):
        make_plan(tiny_config({"data": {"order": "documents"}}), 1, summary)


def test_vocabulary_is_told_or_asked_for(tmp_path: Path, tiny_data: tuple[Path, Manifest]) -> None:
    """Breaks if data whose tokens do not tell their vocabulary gets a wrong one, as GPT-2's without its end of text did."""
    pair = nanogpt_pair(tmp_path / "pair", np.arange(50000), np.arange(100))
    with pytest.raises(
        ValueError, match=r"nothing tells what the ids .* give --tokenizer gpt2 .* --vocab-size \(50000 or"
    ):
        adopt(pair, tmp_path / "out", None)
    gpt2 = adopt(pair, tmp_path / "gpt2", None, "gpt2")
    assert (gpt2.vocab_size, gpt2.eot, gpt2.tokenizer, gpt2.train.documents) == (50257, None, {"kind": "gpt2"}, 1)
    given = adopt(pair, tmp_path / "given", 50304)
    assert (given.vocab_size, given.eot, given.tokenizer["kind"]) == (50304, None, "unknown")
    assert given.digest != gpt2.digest
    with pytest.raises(ValueError, match="less than the 50257 of --tokenizer gpt2"):
        adopt(pair, tmp_path / "out", 50000, "gpt2")
    with pytest.raises(ValueError, match="for tokens that are there gpt2, or the file"):
        adopt(pair, tmp_path / "out", None, "bpe")
    folder, manifest = tiny_data
    tokens = np.concatenate([np.fromfile(folder / shard.file, "<u2") for shard in manifest.train.shards])
    ours = nanogpt_pair(tmp_path / "ours", tokens, tokens[:1000])
    model = SentencePiece((folder / "tokenizer.model").read_bytes())
    adopted = adopt(ours, tmp_path / "model", None, str(folder / "tokenizer.model"), model)
    assert (adopted.eot, adopted.tokenizer) == (manifest.eot, manifest.tokenizer)
    assert adopted.train.documents == manifest.train.documents
    assert adopted.train.docs_sha256 == manifest.train.docs_sha256
    assert inspect.main([str(tmp_path / "model")]) == 0
    assert not (tmp_path / "out").exists()


class Attack:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.trace}",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_malicious_meta_is_refused(protocol: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if a meta.pkl from a stranger runs a program, or is trusted for a part."""
    trace = tmp_path / "trace"
    meta = pickle.dumps({**meta_of(ALPHABET), "extra": Attack(trace)}, protocol=protocol)
    pair = character_data(tmp_path / "pair", meta)
    arguments = ["--source", "nanogpt", "--input", str(pair), "--out", str(tmp_path / "out")]
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert "meta.pkl is refused, and nothing of it was run" in message
    assert "--vocab-size" in message
    assert {path.name for path in tmp_path.iterdir()} == {"pair"}
    assert main([*arguments, "--vocab-size", "65"]) == 0
    assert not trace.exists()
    pickle.loads(meta)
    assert trace.exists(), "the attack is none, so the test shows nothing"


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        (b"", "not a readable pickle"),
        (b"not a pickle", "not a readable pickle"),
        (pickle.dumps(meta_of(ALPHABET))[:-40], "not a readable pickle"),
        (b"}(K\x01K\x02K\x03u.", "not a readable pickle"),
        (b"u.", "not a readable pickle"),
        (b"\x80\x04h\x07.", "not a readable pickle"),
        (pickle.dumps([1, 2]), "holds neither the table itos"),
        (pickle.dumps({"itos": {0: 1}}), "holds neither the table itos"),
        (pickle.dumps({"itos": {0: "a", 2: "b"}}), "not those of the tokens 0 to 1"),
        (pickle.dumps({"itos": {0: "a", 1: "b"}, "vocab_size": 3}), "not those of the tokens 0 to 2"),
        (pickle.dumps({"vocab_size": 64}), "holds token id 64, outside the vocabulary of 64"),
        (bytes(LARGEST + 1), "a table of tokens has at most"),
    ],
)
def test_odd_meta(meta: bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if a damaged or foreign meta.pkl is a traceback, is guessed at, or leaves a folder behind."""
    pair = character_data(tmp_path / "pair", meta)
    assert main(["--source", "nanogpt", "--input", str(pair), "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"pair"}


def test_plain_values_are_read_as_they_are(tmp_path: Path) -> None:
    """Breaks if a plain pickle, shared and nested values included, is read as something else, in any protocol."""
    shared = ["a", "ä日\n'\\"]
    value = {
        "n": [0, -1, 255, 65536, 2**40, -(2**70), 1.5, None, True, False],
        "t": [(), (1,), (1, 2), (1, 2, 3), (1,) * 9],
    }
    value |= {"shared": [shared, shared, {}, {1: {2: shared}}], "long": list(range(3000))}
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "v.pkl").write_bytes(pickle.dumps(value, protocol=protocol))
        assert read_plain_pickle(tmp_path / "v.pkl") == value, protocol


def test_old_adoption_stays_and_says_so(
    tmp_path: Path, tiny_config: Callable[..., RunConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks if data adopted with an ordinary token for its end of text is renamed, or is cut there once more."""
    pair = nanogpt_pair(tmp_path / "pair", np.arange(6500) % 65, np.arange(650) % 65)
    new = adopt(pair, tmp_path / "out", 65)
    options = {"format": 1, "eot": 64, "options": {"vocab_size": None}}
    old = new.model_copy(update=options).with_digest()
    (tmp_path / "out" / "manifest.json").write_text(old.model_dump_json())
    assert adopt(pair, tmp_path / "out", None).digest == old.digest
    assert "took the ordinary token 64 for the end of text" in capsys.readouterr().out
    summary = read_summary(tmp_path / "out")
    assert summary == old.summary()
    with pytest.raises(ValueError, match="needs tokens that say where a document ends"):
        make_plan(tiny_config({"data": {"cross_document_attention": False}}), 1, summary)
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["eot"] == 64
