"""Text from a transformer: the cache's logits are the network's own, texts are repeatable, and characters come whole."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from configs.errors import InputError
from data.characters import FILE, Characters
from data.lossless import HARD_TEXT
from data.tokenizer import SentencePiece, train_sentencepiece
from model.cache import Cache
from model.gpt import GPT
from tests.processes import ConfigFile, finish, start
from tests.test_llama import LLAMA, SWITCHES, gpt
from weights.sample import Sampling, TextStream, generate, main, write_texts
from weights.source import Source

QWEN3 = LLAMA | {"qk_norm": True}
NETWORKS: dict[str, dict[str, Any]] = {
    **SWITCHES,
    "GPT-2": {"bias": True, "activation": "gelu_tanh", "dropout": 0.5},
    "a scaled head of its own": {"tied_head": False, "head_scale": True},
    **{
        f"{name}, {kind}": fields | {"attention": kind}
        for kind in ("math", "stable")
        for name, fields in (("GPT-2", {}), ("q", QWEN3))
    },
}


def some_tokens(rows: int = 2) -> Tensor:
    return torch.randint(0, 100, (rows, 24), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("separate_at", [None, 7], ids=["", "documents"])
@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_cached_equals_uncached(name: str, separate_at: int | None) -> None:
    """Breaks if a position, a mask, a rotation, a norm or a group of heads is another with the cache than without."""
    model, tokens = gpt(**NETWORKS[name]).eval(), some_tokens()
    model.separate_at = separate_at
    tokens[0, 0] = tokens[0, 9] = tokens[1, 12] = 7  # in one row the text begins with the end of another
    expected, cache = model.logits(tokens), Cache(model.config, 24)
    # A prompt, single tokens, several at once behind them, and to the end of the context.
    for first, last in [(0, 5), *((i, i + 1) for i in range(5, 14)), (14, 18), *((i, i + 1) for i in range(18, 24))]:
        found = model.logits(tokens[:, first:last], cache=cache)
        torch.testing.assert_close(found, expected[:, first:last], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_prompt_is_read_once_for_all() -> None:
    """Breaks if texts that continue one prompt see each other's tokens, or a mask of positions gives another one's logits."""
    model, tokens = gpt(**LLAMA).eval(), some_tokens(3)
    tokens[:, :6] = tokens[0, :6]
    expected, cache = model.logits(tokens), Cache(model.config, 10)
    last = torch.arange(6)[None] == 5
    torch.testing.assert_close(model.logits(tokens[:1, :6], last, cache), expected[:1, 5], rtol=1e-5, atol=1e-5)
    cache.repeat(3)
    for i in range(6, 10):
        found = model.logits(tokens[:, i : i + 1], cache=cache)
        torch.testing.assert_close(found, expected[:, i : i + 1], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(expected[0, 9], expected[1, 9])
    with pytest.raises(AssertionError, match="11 tokens, room for 10"):
        model.logits(tokens[:, :1], cache=cache)


def greedy(model: GPT, prompt: list[int], tokens: int, stop: int | None = None, vocabulary: int = 100) -> list[int]:
    draw = Sampling(temperature=0).drawing(0)
    rows = generate(model, prompt, tokens, 1, vocabulary, stop, draw)
    return [token for (token,) in rows if token is not None]


def test_greedy() -> None:
    """Breaks if a greedy text is not the argmax of a whole forward pass each time, differs the second time, goes on behind the
    end-of-text token, or has a token that the tokenizer does not know."""
    model = gpt(**LLAMA).eval()
    ids = [3, 1, 4]
    with torch.no_grad():
        for _ in range(21):
            ids.append(int(model.logits(torch.tensor([ids]))[0, -1].argmax()))
    assert greedy(model, [3, 1, 4], 21) == greedy(model, [3, 1, 4], 21) == ids[3:]
    stop = ids[8]
    assert greedy(model, [3, 1, 4], 21, stop) == ids[3 : ids.index(stop, 3)]
    assert len(set(ids[3:])) > 10, "this network repeats itself, so the test shows little"
    few = sorted(ids)[12]
    assert max(greedy(model, [3, 1, 4], 21, vocabulary=few)) < few <= max(ids)


def test_texts_of_one_batch() -> None:
    """Breaks if a text of a batch depends on the others, two are drawn with the same numbers, or one that ended goes on."""
    model = gpt(**LLAMA).eval()

    def texts(n: int, seed: int, stop: int | None = None) -> list[list[int]]:
        rows = list(generate(model, [5, 6], 20, n, 100, stop, Sampling(n=n, temperature=3.0).drawing(seed)))
        return [[token for row in rows if (token := row[i]) is not None] for i in range(n)]

    four = texts(4, 1)
    assert len({tuple(text) for text in four}) == 4
    assert texts(4, 1) == four != texts(4, 2)
    assert texts(2, 1) == four[:2]
    stop = four[0][5]
    ended = texts(4, 1, stop)
    assert ended == [text[: text.index(stop)] if stop in text else text for text in four]
    assert {len(text) for text in ended} != {20}


def test_logits_that_are_not_finite() -> None:
    """Breaks if a diverged network gives a text."""
    model = gpt().eval()
    with torch.no_grad():
        model.ln_f.weight[0] = math.nan
    with pytest.raises(InputError, match="not finite"):
        greedy(model, [1], 3)


class Bytes:
    """Every byte a token: a character is cut wherever it can be."""

    vocab_size = 256

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode("utf-8", errors="replace")

    def describe(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
def test_stream_is_the_decoded_whole(kind: str) -> None:
    """Breaks if a character is shown before its last byte, one is lost or twice there, or bytes that are none stop the text."""
    if kind == "bytes":
        tokenizer: Any = Bytes()
        ids = list(("größer 日本 👩‍👩‍👧 \ufffd end\n" + HARD_TEXT).encode())
    else:
        tokenizer = SentencePiece(train_sentencepiece([json.__doc__ or ""] * 3, "bpe", 350))
        ids = tokenizer.encode("größer 日本 👩‍👩‍👧 end\n" + HARD_TEXT)
    stream, whole = TextStream(tokenizer), tokenizer.decode(ids)
    pieces = [stream.add(token) for token in ids]
    assert "".join([*pieces, stream.end()]) == whole
    assert "日" in pieces
    # what ends inside a character is shown at the end, and not before
    stream = TextStream(tokenizer)
    cut = ids[: next(i for i in range(len(ids)) if tokenizer.decode(ids[: i + 1]).endswith("日")) - 1]
    shown = "".join(stream.add(token) for token in cut)
    assert shown == "größer "
    assert shown + stream.end() == tokenizer.decode(cut) != shown
    if kind == "bytes":  # nothing waits for ever
        stream = TextStream(tokenizer)
        assert "".join(stream.add(255) for _ in range(10)) == 7 * "\ufffd"


def test_characters_encode() -> None:
    """Breaks if a text of single characters does not come back, or one that no token stands for is dropped."""
    tokenizer = Characters(["\n", "a", "b", "<pad>", "ä", "a"])
    assert tokenizer.encode("ab\näa") == [1, 2, 0, 4, 1]
    assert tokenizer.decode(tokenizer.encode("ab\näa")) == "ab\näa"
    with pytest.raises(InputError, match="no token stands for '<'"):
        tokenizer.encode("a<pad>")


def test_of_characters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if a network of single characters, whose data has no end of text, cannot be prompted, or begins from nothing."""
    table = Characters([chr(code) for code in range(32, 132)])
    (tmp_path / FILE).write_bytes(table.encoded())
    model = gpt()
    source = Source("x@1", model.config, "bf16-true", model.state_dict(), None, tmp_path, table.describe())
    write_texts(source, "To be", Sampling(tokens=4, seed=1))
    captured = capsys.readouterr()
    assert captured.out.startswith("To be")
    assert len(captured.out) == 5 + 4 + 1
    assert "x@1: bf16-true on cpu" in captured.err
    with pytest.raises(InputError, match="another model's"):
        write_texts(replace(source, model=source.model.model_copy(update={"vocab_size": 99})), "To", Sampling())
    with pytest.raises(InputError, match="has no tokenizer with it; name prepared data"):
        write_texts(replace(source, tokenizer_described={}), "To", Sampling())
    with pytest.raises(InputError, match="has no token that ends a document"):
        source.tokenizer()
    with pytest.raises(InputError, match="no end-of-text token to begin from; give a --prompt with text"):
        write_texts(source, "", Sampling())
    with pytest.raises(InputError, match="no token stands for 'é'"):
        write_texts(source, "é", Sampling())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--tokens", "0"], "--tokens 0: give 1 or more"),
        (["--temperature", "-1"], "--temperature -1.0: give a number of 0 (greedy) or more"),
        (["--temperature", "nan"], "--temperature nan"),
        (["--temperature", "inf"], "--temperature inf"),
        (["--top-k", "0"], "--top-k 0: give 1 or more"),
        (["--top-p", "0"], "--top-p 0.0: give a fraction above 0, at most 1"),
        (["--top-p", "1.5"], "--top-p 1.5"),
        (["--seed", "-1"], "--seed -1: give a number from 0"),
        (["--n", "0"], "--n 0: give a number from 1"),
        (["--temperature", "0", "--top-k", "3", "--n", "2"], "leave out --top-k, --n"),
        (["--prompt", "\udcff"], "the prompt is not UTF-8"),
        ([], "nowhere"),
    ],
)
def test_refused(options: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Breaks if what means nothing is drawn with all the same, or ends in a traceback."""
    assert main([str(tmp_path / "nowhere"), "--prompt", "a", *options]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert said in captured.err
    assert captured.out == ""


@pytest.mark.engine
def test_of_a_run(
    config_file: ConfigFile, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    """Breaks if a run's text is not repeatable, not what its weights say, does not fit what is asked, or a wrong request passes."""
    run = tmp_path / "run"
    fields = {"data": {"cross_document_attention": False}, "averages": {"ema": [0.9]}, "model": {"vocab_size": 576}}
    finish(start(config_file(fields), run))

    def sample(prompt: str, *options: str, code: int = 0) -> tuple[str, str]:
        assert main([str(run), "--prompt", prompt, *options]) == code
        captured = capsys.readouterr()
        return captured.out, captured.err

    text, said = sample("import o", "--temperature", "0")
    assert text.startswith("import o")
    assert "run@6: fp32 on cpu, greedy" in said
    assert sample("import o", "--temperature", "0")[0] == text
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"import o")))
    assert sample("-", "--temperature", "0")[0] == text
    text, said = sample("import o", "--n", "3", "--seed", "5", "--tokens", "4", "--weights", "ema_0.9")
    assert sample("import o", "--n", "3", "--seed", "5", "--tokens", "4", "--weights", "ema_0.9")[0] == text
    assert "temperature 1, seed 5, at most 4 tokens" in said
    texts = text.removesuffix("\n").split("\n---------------\n")
    assert len(set(texts)) == 3
    assert all(one.startswith("import o") for one in texts)
    text, said = sample("", "--top-k", "5", "--top-p", "0.9")
    seed = said.split("seed ")[1].split(",")[0]
    assert "at most 15 tokens" in said, "one of 16 is the end-of-text token"
    assert sample("", "--top-k", "5", "--top-p", "0.9", "--seed", seed)[0] == text

    for prompt, options, words in (
        ("def " * 40, [], "and the context of"),
        ("a", ["--tokens", "16"], "at most 15 fit"),
        ("a", ["--top-k", "513"], "has 512 tokens"),
        ("a", ["--weights", "ema_0.5"], "there are ema_0.9, weights"),
    ):
        out, said = sample(prompt, *options, code=2)
        assert (out, said.count("\n")) == ("", 1), said
        assert words in said
