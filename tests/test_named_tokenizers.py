"""Tokenizers of Hugging Face: lossless or refused, with the right end of text, and whole in prepared data."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from configs.errors import InputError
from data import inspect
from data.huggingface import HuggingFace
from data.lossless import EOT, HARD_TEXT
from data.manifest import Manifest, read_manifest
from data.named_tokenizer import read_named
from data.prepare import main
from data.token_bytes import byte_lengths
from data.tokenizer import load_tokenizer
from tests.test_prepare import HARD, tiny_files

TEXTS = [path.read_text() for path in tiny_files()[:8]]
ENGLISH = [
    "I'm sure they've said it's 3.14, we'll see what I'd do; don't you're 'tis",
    "In 1066  and\t2024,\n\n 12345 ½ ² Ⅷ can't CAN'T won`t  naïve über-groß",
    "a   b\u00a0\u3000c \n \n  x", "!!?…—“quoted”, (e.g. this)…", " ' 's 'S s' ''ll",
]  # fmt: skip


def byte_level(end: str = EOT, special: bool = True) -> tokenizers.Tokenizer:
    """A byte-level BPE of 400 entries and an end of text, trained on a few sources."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(TEXTS[:3], trainer)
    (made.add_special_tokens if special else made.add_tokens)([end])
    return made


def write(folder: Path, made: tokenizers.Tokenizer, config: dict[str, Any] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder / "tokenizer.json"


@pytest.mark.parametrize("text", [*HARD, HARD_TEXT, *ENGLISH], ids=lambda text: repr(text[:12]))
def test_lossless(text: str, byte_level_file: Path) -> None:
    """Breaks if a tokenizer.json loses text, or takes what looks like a special token for one."""
    tokenizer, _ = read_named(byte_level_file, None)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.eot not in ids
    assert max(ids, default=0) < tokenizer.vocab_size


@pytest.fixture(scope="module")
def byte_level_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("named") / "t", byte_level())


def test_all_ids_are_counted(tmp_path: Path) -> None:
    """Breaks if added tokens, or ids behind a gap, are beyond the vocabulary of the manifest, or have another's bytes."""
    made = byte_level()
    made.add_tokens(["unusual words"])
    tokenizer = HuggingFace(made.to_str().encode(), 400)
    lengths = byte_lengths(tokenizer)
    for text in (HARD_TEXT, *ENGLISH, "some unusual words"):
        assert lengths[tokenizer.encode(text)].sum() == len(text.encode())
    assert lengths[tokenizer.eot] == 0
    assert tokenizer.vocab_size == 402
    assert tokenizer.encode("some unusual words")[-1] == 401
    spec = json.loads(made.to_str())
    spec["model"]["vocab"] = {token: index if index < 399 else 500 for token, index in spec["model"]["vocab"].items()}
    assert HuggingFace(json.dumps(spec).encode(), 400).vocab_size == 501


def lossy() -> Iterable[tuple[str, tokenizers.Tokenizer]]:
    lowered = byte_level()
    lowered.normalizer = normalizers.Lowercase()
    yield "lower case", lowered
    prefixed = byte_level()
    prefixed.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    yield "a space in front", prefixed
    words = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]", EOT], show_progress=False)
    words.train_from_iterator(TEXTS[:2], trainer)
    yield "WordPiece", words


@pytest.mark.parametrize(("name", "made"), lossy(), ids=lambda value: value if isinstance(value, str) else "")
def test_lossy_is_refused(
    name: str, made: tokenizers.Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks if a tokenizer that changes a text is trained on, or the message does not say what was lost."""
    (tmp_path / "a.txt").write_text("text " * 100)
    file = write(tmp_path / "t", made)
    arguments = ["--source", "text", "--input", str(tmp_path / "a.txt"), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--tokenizer", str(file)]) == 2
    error = capsys.readouterr().err
    assert "is not lossless" in error
    assert "came back as" in error
    assert "give one of byte-level BPE without a normalizer" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "t"]


def test_random_and_open_ends_are_refused() -> None:
    """Breaks if a text gets other ids each time, or words of a text end a document."""
    spec = json.loads(byte_level().to_str())
    spec["model"]["dropout"] = 0.1
    with pytest.raises(InputError, match=r"drops merges at random \(dropout 0.1\)"):
        HuggingFace(json.dumps(spec).encode(), 400)
    with pytest.raises(InputError, match=r"takes the words '<\|endoftext\|>' in a text for the end of a document"):
        HuggingFace(byte_level(special=False).to_str().encode(), 400)


def test_a_document_that_is_not_given_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if only the hard text is tried: what this tokenizer changes, ſ to s, is first met in a document."""
    made = byte_level()
    made.normalizer = normalizers.Replace("ſ", "s")
    file = write(tmp_path / "t", made)
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"text": f"{n} {'Fluſs' * (n == 40)}"}) + "\n" for n in range(60))
    )
    arguments = ["--source", "jsonl", "--input", str(tmp_path / "a.jsonl"), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--tokenizer", str(file), "--val-fraction", "0.2", "--workers", "1"]) == 2
    assert "in the text that begins '40 Fluſs', 'ſs' at character 6 came back as 'ss'" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "t"]


def test_which_token_ends_a_document(tmp_path: Path) -> None:
    """Breaks if another token than the tokenizer's own ends a document, or an unclear one is guessed."""
    assert read_named(write(tmp_path / "plain", byte_level()), None)[0].eot == 400
    made = byte_level("</s>")
    made.add_special_tokens(["<pad>"])
    with pytest.raises(
        InputError, match=r"no token <\|endoftext\|>.* its special tokens are '</s>', '<pad>': name one with --eot"
    ):
        read_named(write(tmp_path / "a", made), None)
    assert read_named(tmp_path / "a", "<pad>")[0].eot == 401
    with pytest.raises(InputError, match="no token '<eos>', which --eot names"):
        read_named(tmp_path / "a", "<eos>")
    write(tmp_path / "a", made, {"eos_token": "</s>"})
    tokenizer, said = read_named(tmp_path / "a", None)
    assert tokenizer.eot == 400
    assert "402 ids, a document ends with '</s>' (400), by tokenizer_config.json beside it" in said
    write(tmp_path / "a", made, {"eos_token": {"content": "<pad>", "lstrip": False}})
    assert read_named(tmp_path / "a", None)[0].eot == 401
    write(tmp_path / "a", made, {"eos_token": "<gone>"})
    with pytest.raises(InputError, match=r"no token '<gone>', which tokenizer_config.json beside it names"):
        read_named(tmp_path / "a", None)
    (tmp_path / "a" / "tokenizer_config.json").write_text("[1")
    with pytest.raises(InputError, match="is not one JSON object"):
        read_named(tmp_path / "a", None)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not a tokenizer.json"),
        (b"\xff\xfe", "not a tokenizer.json"),
        (b"[" * 100_000, "not a tokenizer.json"),
        (b'{"a": 1, "b": 2}', r"it has no model \(found: a, b\)"),
        (b'{"model": {}, "added_tokens": 3}', "no list added_tokens"),
        (b'{"model": {"type": "Mine"}, "added_tokens": []}', "the package tokenizers does not read it"),
    ],
)
def test_other_files_are_refused(content: bytes, said: str, tmp_path: Path) -> None:
    """Breaks if a file that is no tokenizer is a traceback, or is not named."""
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(InputError, match=f"--tokenizer .*tokenizer.json: .*{said}"):
        read_named(tmp_path, None)
    with pytest.raises(
        InputError, match=r"is a folder without tokenizer.json, merges.txt, vocab.bpe and tokenizer.model"
    ):
        read_named(tmp_path.parent, None)


def test_the_package_is_named(byte_level_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if a machine without the optional package is not told which one it lacks."""
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(InputError, match="pip install tokenizers"):
        read_named(byte_level_file, None)


def documents(folder: Path, manifest: Manifest, tokenizer: Any) -> list[str]:
    found = []
    for split in (manifest.train, manifest.val):
        stream = np.concatenate([np.fromfile(folder / shard.file, manifest.dtype) for shard in split.shards])
        ends = np.fromfile(folder / split.docs_file, "<u8").astype(int)
        assert (stream[ends - 1] == manifest.eot).all()
        found += [tokenizer.decode(stream[a : b - 1].tolist()) for a, b in zip([0, *ends[:-1]], ends, strict=True)]
    return found


def test_prepared_with_a_tokenizer_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if a document does not come back, by one worker or two, the tokenizer is not beside its tokens, or another passes."""
    file = write(tmp_path / "t", byte_level(), {"eos_token": EOT})
    texts = sorted([*HARD, *ENGLISH, HARD_TEXT])
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    arguments = ["--source", "jsonl", "--input", str(tmp_path / "a.jsonl"), "--val-fraction", "0.3"]
    arguments += ["--tokenizer", str(file)]
    for workers in ("1", "2"):
        assert main([*arguments, "--out", str(tmp_path / workers), "--workers", workers]) == 0
    manifest = read_manifest(tmp_path / "1")
    assert manifest is not None
    assert manifest == read_manifest(tmp_path / "2")
    content = file.read_bytes()
    described = {"kind": "huggingface", "file": "tokenizer.json", "sha256": hashlib.sha256(content).hexdigest()}
    assert manifest.tokenizer == {**described, "eot": 400}
    assert (manifest.vocab_size, manifest.eot) == (401, 400)
    assert (tmp_path / "1" / "tokenizer.json").read_bytes() == content
    tokenizer = load_tokenizer(tmp_path / "1", manifest.tokenizer)
    assert sorted(documents(tmp_path / "1", manifest, tokenizer)) == texts
    assert inspect.main([str(tmp_path / "1")]) == 0
    capsys.readouterr()
    # the same file with another end of text is another preparation
    made = byte_level()
    made.add_special_tokens(["<other>"])
    write(tmp_path / "t", made, {"eos_token": EOT})
    assert main([*arguments, "--out", str(tmp_path / "3"), "--workers", "1"]) == 0
    assert main([*arguments, "--out", str(tmp_path / "3"), "--workers", "1", "--eot", "<other>"]) == 2
    assert "choose another --out" in capsys.readouterr().err
    (tmp_path / "1" / "tokenizer.json").write_bytes(made.to_str().encode())
    with pytest.raises(InputError, match="is not the tokenizer the data was prepared with"):
        load_tokenizer(tmp_path / "1", manifest.tokenizer)
    for words, said in (
        (["--eot", "x"], "--eot x is for a tokenizer of Hugging Face"),
        (["--vocab-size", "300"], None),
    ):
        extra = words if said else [*words, "--tokenizer", str(file)]
        assert main([*arguments[:-2], "--out", str(tmp_path / "4"), *extra]) == 2
        assert (said or "whose vocabulary is 402: leave --vocab-size out") in capsys.readouterr().err
