"""What models cost on other text: per token, per byte, and each against the first."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.loader import spread_windows
from data.lossless import HARD_TEXT
from data.manifest import Manifest, read_manifest
from data.options import Options
from data.prepare import prepare
from data.sources import Source
from data.token_bytes import byte_lengths
from data.tokenizer import SentencePiece, train_sentencepiece
from tests.processes import finish, rows_of, start
from tests.test_foreign import nanogpt
from tests.test_prepare import tiny_files
from weights import evaluate, export, sample
from weights.elsewhere import Text, _ratio
from weights.source import read_source

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def other_text(tmp_path_factory: pytest.TempPathFactory, tiny_data: tuple[Path, Manifest]) -> dict[str, Path]:
    """The same files in another split, by the same tokenizer, and by one of another vocabulary."""
    root = tmp_path_factory.mktemp("elsewhere")
    model = (tiny_data[0] / "tokenizer.model").read_bytes()
    given = Options(tiny_data[1].vocab_size, 0.2, seed=1, tokenizer=hashlib.sha256(model).hexdigest())
    prepare(Source.local("text", tiny_files()), root / "same", given, given=SentencePiece(model))
    prepare(Source.local("text", tiny_files()), root / "other", Options(400, 0.2, seed=1))
    return {name: root / name for name in ("same", "other")}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_config: Any) -> Path:
    """A small trained model with two checkpoints."""
    folder = tmp_path_factory.mktemp("runs")
    config = tiny_config({"schedule": {"steps": 6}, "checkpoint": {"every": 3}, "averages": {"ema": [0.5]}})
    (folder / "config.json").write_text(json.dumps(config.model_dump(mode="json")))
    finish(start(folder / "config.json", folder / "run"))
    return folder / "run"


def printed(capsys: pytest.CaptureFixture[str], *options: Any) -> Any:
    capsys.readouterr()
    assert evaluate.main([*map(str, options), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def by_hand(run: Path, data: Path, length: int, step: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Nats and bytes of every window of a split, one window and one target at a time, from logits and text."""
    source, text = read_source(f"{run}@{step}"), Text.of(data)
    network, tokens, tokenizer = source.network(torch.device("cpu")), text.tokens, text.tokenizer
    lengths = byte_lengths(tokenizer)
    nats, sizes = [], []
    for first in range(0, (len(tokens) - 1) // length * length, length):
        window = torch.from_numpy(tokens[first : first + length + 1])
        with torch.no_grad():
            logs = network.logits(window[None, :-1])[0].double().log_softmax(-1)
        nats.append(-sum(logs[i, target].item() for i, target in enumerate(window[1:].tolist())))
        sizes.append(sum(int(lengths[target]) for target in window[1:].tolist()))
    return np.array(nats), np.array(sizes)


def test_bytes_of_tokens_are_those_of_the_text() -> None:
    """Breaks if a space, a ▁, a byte of a character or the end of a document counts wrongly."""
    texts = [path.read_text() for path in sorted(Path(json.__file__).parent.glob("*.py"))]
    for kind in ("bpe", "unigram"):
        tokenizer = SentencePiece(train_sentencepiece(texts[:3], kind, 400))
        lengths = byte_lengths(tokenizer)
        for text in (*texts, HARD_TEXT, "\u2581 x", "日本語"):
            assert lengths[tokenizer.encode(text)].sum() == len(text.encode())
        assert lengths[tokenizer.eot] == 0


def test_on_other_text(run: Path, other_text: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if a loss is not that of the model on these windows, is not per byte of their text, or an error is another."""
    own = printed(capsys, run)[0]
    metrics = rows_of(run)
    assert own["val/loss"] == pytest.approx(metrics[6]["val/loss"], rel=1e-6), "the windows that the run is judged by"
    found = printed(capsys, run, "--data", other_text["same"])[0]
    length = found["context"]
    nats, sizes = by_hand(run, other_text["same"], length)
    assert found["windows"] == len(nats)
    assert found["val/loss"] == pytest.approx(nats.sum() / (len(nats) * length), rel=1e-6)
    assert found["val/loss_se"] == pytest.approx((nats / length).std(ddof=1) / math.sqrt(len(nats)), rel=1e-6)
    assert found["val/perplexity"] == pytest.approx(math.exp(found["val/loss"]))
    assert found["val/bits_per_byte"] == pytest.approx(nats.sum() / math.log(2) / sizes.sum(), rel=1e-6)
    # fewer windows are spread over the same text
    some = printed(capsys, run, "--data", other_text["same"], "--tokens", 5 * length + 3)[0]
    starts = spread_windows(5, len(Text.of(other_text["same"]).tokens), length)
    assert (some["windows"], some["val/loss"]) == (5, pytest.approx(nats[starts].sum() / (5 * length), rel=1e-6))
    shorter = printed(capsys, run, "--data", other_text["same"], "--context", length // 2)[0]
    nats, _ = by_hand(run, other_text["same"], length // 2)
    assert (shorter["windows"], shorter["val/loss"]) == (
        len(nats),
        pytest.approx(nats.mean() / (length // 2), rel=1e-6),
    )


def test_the_error_of_a_ratio_is_what_other_windows_would_change() -> None:
    """Breaks if the standard error of bits per byte leaves out that bytes vary too: against 20,000 drawn sets of windows."""
    draw = np.random.default_rng(0)
    sizes = draw.integers(50, 150, (20_000, 40)).astype(float)
    nats = 2.0 * sizes + draw.normal(0, 30, sizes.shape)
    errors = [_ratio(*pair)[1] for pair in zip(nats[:500], sizes[:500], strict=True)]
    assert np.mean(errors) == pytest.approx((nats.sum(1) / sizes.sum(1)).std(), rel=0.03)


def test_another_tokenizer_has_bits_per_byte_only(
    run: Path, other_text: dict[str, Path], capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Breaks if tokens of another vocabulary are fed to a model, or losses per token of two tokenizers stand side by side."""
    found = printed(capsys, run, "--data", other_text["other"])[0]
    assert "has another tokenizer" in caplog.text
    assert "val/loss" not in found
    # The documents of both splits are the same text, so are the tokens once they are encoded anew; the split ends alike.
    same, other = (Text.of(other_text[name]) for name in ("same", "other"))
    assert np.array_equal(other.encoded_by(same.tokenizer), same.tokens)
    expected = printed(capsys, run, "--data", other_text["same"])[0]
    assert found["val/bits_per_byte"] == pytest.approx(expected["val/bits_per_byte"], rel=1e-9)
    rows = printed(capsys, run, f"{run}@3", "--data", other_text["other"])
    assert "minus_first" not in rows[1]


def test_several_models_are_paired(
    run: Path, other_text: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks if models are compared on different windows, a folder of elsewhere is not what it was, or an error ignores pairs."""
    network = read_source(f"{run}@3").network(torch.device("cpu"))
    nanogpt(network, tmp_path / "ckpt.pt")
    rows = printed(capsys, run, f"{run}@3", tmp_path, "--data", other_text["same"])
    length = rows[0]["context"]
    late, early = (by_hand(run, other_text["same"], length, step)[0] / length for step in (6, 3))
    assert rows[1]["minus_first"] == pytest.approx((early - late).mean(), rel=1e-5)
    assert rows[1]["minus_first_se"] == pytest.approx((early - late).std(ddof=1) / math.sqrt(len(late)), rel=1e-5)
    assert rows[1]["val/loss"] == pytest.approx(rows[2]["val/loss"], rel=1e-9), "the same weights by way of nanoGPT"
    assert evaluate.main([str(run), f"{run}@3"]) == 0
    table = capsys.readouterr().out
    assert f"{run}@6" in table
    assert "paired in the last column" in table
    kept = [printed(capsys, run, run, option, "ema_0.5") for option in ("--weights", "--average")]
    assert kept[0] == kept[1] != printed(capsys, run, run), "the same average by both names"


def test_a_folder_with_its_tokenizer(
    run: Path,
    other_text: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Breaks if a folder of Hugging Face is another model, its tokenizer is not known for the data's, or cannot be sampled from."""
    assert export.main([str(run), "--to", "hf", "--out", str(tmp_path / "hf")]) == 0
    rows = printed(capsys, run, tmp_path / "hf", "--data", other_text["same"])
    assert rows[1]["val/loss"] == pytest.approx(rows[0]["val/loss"], rel=1e-5)
    assert "val/loss" not in printed(capsys, tmp_path / "hf", "--data", other_text["other"])[0], "encoded anew"
    greedy = ("--prompt", "def ", "--tokens", "8", "--temperature", "0")
    texts = []
    for source in (run, tmp_path / "hf"):
        assert sample.main([str(source), *greedy]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    # a tokenizer that cannot be used: refused where it would matter, but for tokens that are nobody's
    (tmp_path / "hf" / "tokenizer.json").write_text("{}")
    assert evaluate.main([str(tmp_path / "hf"), "--data", str(other_text["same"])]) == 2
    assert "cannot be used" in capsys.readouterr().err
    shutil.copytree(other_text["same"], tmp_path / "adopted")
    manifest = read_manifest(other_text["same"])
    assert manifest is not None
    unknown = manifest.model_copy(update={"tokenizer": {"kind": "unknown"}}).with_digest()
    (tmp_path / "adopted" / "manifest.json").write_text(unknown.model_dump_json())
    adopted = printed(capsys, run, tmp_path / "hf", "--data", tmp_path / "adopted")
    assert [row["val/loss"] for row in adopted] == pytest.approx([rows[0]["val/loss"]] * 2, rel=1e-5)
    assert caplog.text.count("says of no tokenizer") == 2, "whose tokens they are cannot be told"


def test_refused(run: Path, other_text: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if something else is evaluated than what was asked for."""
    network = read_source(str(run)).network(torch.device("cpu"))
    nanogpt(network, tmp_path / "ckpt.pt")

    def refusal(*options: Any) -> str:
        assert evaluate.main([*map(str, options)]) == 2
        return capsys.readouterr().err

    assert "say with --data DIR" in refusal(tmp_path)
    assert "say with --data DIR" in refusal(run, tmp_path)
    assert "no prepared data in" in refusal(run, "--data", tmp_path)
    assert "the shortest context among these models is" in refusal(run, "--context", 10_000)
    assert "is a model without a run and has no averages" in refusal(
        tmp_path, "--weights", "ema_0.5", "--data", other_text["same"]
    )
    assert "has no ema_0.9" in refusal(run, "--weights", "ema_0.9")
