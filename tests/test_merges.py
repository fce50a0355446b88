"""GPT-2's merges: the ids that GPT-2 gives, or a refusal; and the same data as through tiktoken."""

from __future__ import annotations

import hashlib
import json
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import regex

from configs.errors import InputError
from data import huggingface, inspect
from data.huggingface import GPT2Merges
from data.lossless import EOT, HARD_TEXT
from data.manifest import read_manifest
from data.merges import ALPHABET, tokenizer_json
from data.named_tokenizer import read_gpt2, read_named
from data.prepare import main
from data.tokenizer import load_tokenizer
from tests.test_named_tokenizers import ENGLISH, TEXTS, byte_level
from tests.test_prepare import HARD


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small tokenizer in GPT-2's layout: merges.txt and vocab.json; and vocab.bpe, the same merges."""
    folder = tmp_path_factory.mktemp("layout")
    model = json.loads(byte_level().to_str())["model"]
    lines = "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in model["merges"])
    (folder / "merges.txt").write_text(lines)
    made = [*ALPHABET, *("".join(pair) for pair in model["merges"]), EOT]
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(made)}))
    (folder / "bpe").mkdir()
    (folder / "bpe" / "vocab.bpe").write_text(lines)
    return folder


def plain_bpe(merges: list[str], ids: dict[str, int], text: str) -> list[int]:
    """GPT-2's algorithm in the plainest form: split, then join the pair of the lowest rank, first one first."""
    ranks = {tuple(line.split(" ")): rank for rank, line in enumerate(merges)}
    order = [*range(33, 127), *range(161, 173), *range(174, 256)]
    order += [byte for byte in range(256) if byte not in order]
    letters = {byte: ALPHABET[place] for place, byte in enumerate(order)}
    found = []
    pattern = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    for word in regex.findall(pattern, text):
        pieces = [letters[byte] for byte in word.encode()]
        while pairs := [pair for pair in pairwise(pieces) if pair in ranks]:
            best, place = min(pairs, key=ranks.__getitem__), 0
            while place < len(pieces) - 1:
                if (pieces[place], pieces[place + 1]) == best:
                    pieces[place : place + 2] = ["".join(best)]
                place += 1
        found += [ids[piece] for piece in pieces]
    return found


def test_merges_give_gpt2s_ids(layout: Path) -> None:
    """Breaks if merges alone, or with their vocabulary, give other ids than transformers and GPT-2's own algorithm do."""
    from transformers import GPT2Tokenizer

    theirs = GPT2Tokenizer.from_pretrained(layout)
    alone, said_alone = read_named(layout / "bpe" / "vocab.bpe", None)
    beside, said_beside = read_named(layout, None)
    assert "its ids are counted as GPT-2's" in said_alone
    assert "its ids are of vocab.json" in said_beside
    ids = json.loads((layout / "vocab.json").read_text())
    merges = (layout / "merges.txt").read_text().splitlines()[1:]
    assert alone.vocab_size == beside.vocab_size == len(ids) == theirs.vocab_size == len(merges) + 257
    assert alone.eot == beside.eot == len(merges) + 256 == theirs.eos_token_id
    for text in (HARD_TEXT, *ENGLISH, *HARD[:-3], TEXTS[0][:3000]):
        expected = plain_bpe(merges, ids, text)
        assert alone.encode(text) == beside.encode(text) == expected, text[:30]
        if EOT not in text:
            assert theirs.encode(text) == expected, text[:30]
        assert alone.decode(expected) == text


def test_odd_merges(layout: Path, tmp_path: Path) -> None:
    """Breaks if a damaged or foreign file of merges gives ids all the same."""
    good = (layout / "merges.txt").read_bytes()
    for bad, said in (
        (good.replace(b"\n", b"\r\n"), "line 2 is"),
        (good[: len(good) // 2] + b"x", "line "),
        (good + b"not one\n", "expected are two pieces"),
        (good + good.splitlines()[-1] + b"\n", "that make a new one"),
        (b"", "not a file of merges"),
        (b"#version: 0.2\n", "it has no line"),
        (b"\xff", r"not UTF-8 \(byte 0\)"),
    ):
        with pytest.raises(InputError, match=said):
            tokenizer_json(bad, None, EOT)
    ids = json.loads((layout / "vocab.json").read_text())
    for bad_ids, said in (
        ({}, "lacks .* tokens that the merges make, first '!'"),
        ({**ids, "!": 5}, "two tokens of the vocabulary have one id"),
        ({token: index for token, index in ids.items() if token != EOT}, "no token '<|endoftext|>' to end"),
        ([1], "not one JSON object"),
    ):
        with pytest.raises(InputError, match=said):
            tokenizer_json(good, json.dumps(bad_ids).encode(), EOT)
    for name in ("merges.txt", "vocab.json"):
        (tmp_path / name).write_bytes((layout / name).read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "Qwen2Tokenizer"}')
    with pytest.raises(InputError, match="says Qwen2Tokenizer: only GPT-2's way to split a text is known"):
        read_named(tmp_path, None)


def test_gpt2_from_its_merges(
    layout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks if other merges pass for GPT-2's, or data prepared with its merges is other data than through tiktoken, or needs it.

    GPT-2's own merges are not here: these stand for them, by their hash.
    """
    merges = layout / "bpe" / "vocab.bpe"
    with pytest.raises(InputError, match=r"--merges .*vocab.bpe: these are not GPT-2's merges"):
        read_gpt2(merges)
    with pytest.raises(InputError, match=r"--merges .* is not there"):
        read_gpt2(tmp_path / "nothing")
    monkeypatch.setattr(huggingface, "GPT2_SHA256", hashlib.sha256(merges.read_bytes()).hexdigest())
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in [*ENGLISH, *HARD[:-3]] * 3))
    arguments = ["--source", "jsonl", "--input", str(tmp_path / "a.jsonl"), "--val-fraction", "0.3", "--workers", "1"]
    out = tmp_path / "out"
    assert main([*arguments, "--out", str(out), "--tokenizer", "bpe", "--merges", str(merges)]) == 2
    assert "--merges" in capsys.readouterr().err
    assert main([*arguments, "--out", str(out), "--tokenizer", "gpt2", "--merges", str(merges)]) == 0
    manifest = read_manifest(out)
    assert manifest is not None
    assert manifest.tokenizer == {"kind": "gpt2"}
    assert manifest.options["tokenizer"] == "gpt2"
    assert (out / "vocab.bpe").read_bytes() == merges.read_bytes()
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    tokenizer = load_tokenizer(out, manifest.tokenizer)
    assert isinstance(tokenizer, GPT2Merges)
    assert inspect.main([str(out)]) == 0
    (out / "vocab.bpe").write_bytes(b"a b\n")
    with pytest.raises(InputError, match=f"the data in {out}: these are not GPT-2's merges"):
        load_tokenizer(out, manifest.tokenizer)
    (out / "vocab.bpe").unlink()
    with pytest.raises(
        InputError, match=r"pip install tiktoken; or GPT-2's file of merges.*into the folder of the data"
    ):
        load_tokenizer(out, manifest.tokenizer)
