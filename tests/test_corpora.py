"""Preparation at scale and under faults: what users bring, kills, full disks, memory, adopted nanoGPT data."""

from __future__ import annotations

import gzip
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sentencepiece

from configs.load import validate
from data import inspect
from data.hub import open_hub
from data.loader import TrainData, step_batches
from data.manifest import Manifest, read_manifest
from data.prepare import Options, main, prepare
from data.sources import Source, open_source
from data.tokenizer import GPT2, SentencePiece, load_tokenizer
from tests.processes import ROOT, wait
from tests.test_prepare import HARD, copy_texts, folder_bytes, tiny_files


def texts() -> list[str]:
    return [path.read_bytes().decode() for path in tiny_files()[:12]]


def shards(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in folder_bytes(folder).items() if name != "manifest.json"}


def test_compressed_lines(tmp_path: Path) -> None:
    """Breaks if .gz or .zst is read as other documents than the plain file."""
    plain = "".join(json.dumps({"text": t}) + "\n" for t in texts()).encode()
    (tmp_path / "a.jsonl").write_bytes(plain)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(plain))
    with pa.output_stream(str(tmp_path / "a.jsonl.zst"), compression="zstd") as file:
        file.write(plain)
    found = []
    for suffix in ("jsonl", "jsonl.gz", "jsonl.zst"):
        prepare(open_source("jsonl", str(tmp_path / f"a.{suffix}")), tmp_path / suffix, Options(512, 0.3, 0))
        found.append(shards(tmp_path / suffix))
    assert found[0] == found[1] == found[2]


@pytest.mark.slow
def test_hub_dataset_from_a_local_copy(tmp_path: Path) -> None:
    """Breaks if the hub's path through `datasets` reads other documents than the parquet files hold."""
    for index in range(3):
        part = pa.table({"text": texts()[index * 4 : index * 4 + 4]})
        (tmp_path / "hub/plain_text").mkdir(parents=True, exist_ok=True)
        pq.write_table(part, tmp_path / f"hub/plain_text/train-0000{index}-of-00003.parquet", row_group_size=3)
    source = open_hub(str(tmp_path / "hub"), None)
    assert list(source.documents()) == texts()
    manifest = prepare(source, tmp_path / "a", Options(512, 0.3, 0))
    prepare(open_source("parquet", str(tmp_path / "hub/**/*.parquet")), tmp_path / "b", Options(512, 0.3, 0))
    assert shards(tmp_path / "a") == shards(tmp_path / "b")
    assert manifest.source["dataset"] == str(tmp_path / "hub")
    with pytest.raises(ValueError, match="no column 'body'"):
        list(open_hub(str(tmp_path / "hub"), None, "body").documents())


def test_hub_offline_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    """Breaks if a machine without network hangs, or is not told which files to fetch and how to read them."""
    # As HF_HUB_OFFLINE=1 sets it, which is read at the import: another test may have imported it.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    begun = time.perf_counter()
    assert main(["--source", "openwebtext", "--out", str(tmp_path / "out"), "--revision", "abc"]) == 2
    assert time.perf_counter() - begun < 30
    message = capsys.readouterr().err
    assert "--repo-type dataset --revision abc" in message
    assert "--source parquet --input 'DIR/**/*.parquet'" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_python_packages(tmp_path: Path) -> None:
    """Breaks if --packages does not add the installed packages to the standard library."""
    library, everything = open_source("python-source", None), open_source("python-source", None, packages=True)
    assert set(library.files) < set(everything.files)
    assert any("site-packages" in path.parts for path in everything.files)
    assert everything.size > 50 << 20


@pytest.mark.slow
def test_unigram_and_given_models(tmp_path: Path, tiny_data: tuple[Path, Manifest]) -> None:
    """Breaks if another tokenizer is not lossless, or a given model is not used as it is."""
    source = Source.local("text", tiny_files()[:12])
    unigram = prepare(source, tmp_path / "unigram", Options(600, 0.3, 0, tokenizer="unigram"))
    tokenizer = load_tokenizer(tmp_path / "unigram", unigram.tokenizer)
    assert all(tokenizer.decode(tokenizer.encode(text)) == text for text in HARD)
    copy_texts(tmp_path, tiny_files()[:12])
    model = tiny_data[0] / "tokenizer.model"
    arguments = ["--source", "text", "--input", str(tmp_path / "*.txt"), "--val-fraction", "0.3"]
    assert main([*arguments, "--out", str(tmp_path / "given"), "--tokenizer", str(model)]) == 0
    given = read_manifest(tmp_path / "given")
    assert given is not None
    assert given.tokenizer == tiny_data[1].tokenizer
    assert (tmp_path / "given" / "tokenizer.model").read_bytes() == model.read_bytes()


def test_lossy_models_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if a model that drops newlines or spaces is trained on without a word; SentencePiece's defaults do."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts()[0].splitlines()),
        model_writer=model,
        vocab_size=400,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    with pytest.raises(ValueError, match="not lossless"):
        SentencePiece(model.getvalue())
    (tmp_path / "foreign.model").write_bytes(b"not a model")
    (tmp_path / "a.txt").write_text("a")
    arguments = ["--source", "text", "--input", str(tmp_path / "a.txt"), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--tokenizer", str(tmp_path / "foreign.model")]) == 2
    assert "not a SentencePiece model" in capsys.readouterr().err
    assert main([*arguments, "--tokenizer", "wordpiece"]) == 2
    assert "neither bpe, unigram, gpt2 nor a file" in capsys.readouterr().err


def test_gpt2_says_what_it_needs(monkeypatch: Any, tmp_path: Path) -> None:
    """Breaks if GPT-2's tokens fail without naming the package or the network they need once."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    with pytest.raises(ValueError, match="pip install tiktoken"):
        GPT2()


def corpus_config(folder: Path, vocab_size: int, steps: int) -> Any:
    return validate(
        {
            "name": "corpus",
            "model": {"n_layer": 1, "n_head": 1, "n_embd": 8, "seq_len": 256, "vocab_size": vocab_size},
            "data": {"path": str(folder)},
            "optim": {"lr": 1e-3, "weight_decay": 0.1},
            "schedule": {"steps": steps},
            "batch": {"tokens_per_step": 256},
        },
        "test",
    )


# A preparation in a process of its own, slow enough to be killed in the middle: 40 buckets of 100 kB.
SLOW = """
import sys, time
from pathlib import Path
import data.prepare as p
from data.sources import Source
encode = p._encode_bucket
def slow(job):
    encode(job)
    time.sleep(float(sys.argv[3]))
p._encode_bucket = slow
files = sorted(Path(sys.argv[1]).glob("*.txt"))
p.prepare(Source.local("text", files), Path(sys.argv[2]), p.Options(600, 0.1, 0, bucket_bytes=100_000))
"""


@pytest.mark.slow
def test_killed_and_continued(tmp_path: Path) -> None:
    """Breaks if a kill loses finished shards, leaves a manifest over unfinished data, or changes the result."""
    copy_texts(tmp_path / "texts", tiny_files())

    def run(out: str, pause: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", SLOW, str(tmp_path / "texts"), str(tmp_path / out), pause]
        return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)

    assert run("straight", "0").wait() == 0
    work, times = tmp_path / "out.preparing", {}
    for kills in range(3):
        process = run("out", "0.3")
        wait(lambda n=3 * (kills + 1): len(list(work.glob("*_0*.json"))) >= n, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "out").exists()
        assert not (work / "manifest.json").exists()
        assert {path.name: path.stat().st_mtime_ns for path in work.glob("*.bin")}.items() >= times.items(), (
            "work was done twice"
        )
        times = {
            path.with_suffix(".bin").name: path.with_suffix(".bin").stat().st_mtime_ns
            for path in work.glob("*_0*.json")
        }
    assert run("out", "0").wait() == 0
    assert folder_bytes(tmp_path / "out") == folder_bytes(tmp_path / "straight")
    assert {path.name for path in tmp_path.iterdir()} == {"texts", "straight", "out"}


def test_other_options_do_not_continue(tmp_path: Path) -> None:
    """Breaks if shards of two different preparations could be mixed."""
    (tmp_path / "out.preparing").mkdir()
    (tmp_path / "out.preparing" / "asked.json").write_text("{}")
    with pytest.raises(ValueError, match="unfinished preparation with other options"):
        prepare(Source.local("text", tiny_files()), tmp_path / "out", Options(512, 0.2, 0))


def test_two_preparations_into_one_folder(tmp_path: Path) -> None:
    """Breaks if two processes write one folder."""
    copy_texts(tmp_path / "texts", tiny_files())
    command = [sys.executable, "-c", SLOW, str(tmp_path / "texts"), str(tmp_path / "out"), "0.3"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    wait(lambda: (tmp_path / "out.preparing" / "spooled.json").exists(), process)
    with pytest.raises(ValueError, match="another preparation is writing"):
        prepare(Source.local("text", tiny_files()), tmp_path / "out", Options(512, 0.2, 0))
    process.kill()
    process.wait()


MEMORY = """
import resource, sys
from pathlib import Path
from data.prepare import Options, prepare
from data.sources import open_source
source = open_source("jsonl", sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
prepare(source, Path(sys.argv[2]), Options(512, 0.05, 0, sample_bytes=1 << 20, bucket_bytes=int(sys.argv[3])))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_memory_is_bounded_by_a_bucket(tmp_path: Path) -> None:
    """Breaks if preparation holds the corpus: 27 MB of text in buckets of 1 MB may cost at most 6 MB more than 9 MB do."""
    words = [text.split() for text in texts()]
    grown = []
    for copies in (1, 3):
        path = tmp_path / f"{copies}.jsonl"
        with open(path, "w") as file:
            for number in range(copies * 1200):
                chosen = words[number % len(words)]
                file.write(json.dumps({"text": f"{number} " + " ".join(chosen[number % 50 :])[:10_000]}) + "\n")
        command = [sys.executable, "-c", MEMORY, str(path), str(tmp_path / f"out{copies}"), str(1 << 20)]
        grown.append(int(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout) * 1024)
        assert path.stat().st_size > copies * (8 << 20)
    assert grown[1] - grown[0] < 6 << 20, f"{grown[0] >> 20} MiB, then {grown[1] >> 20} MiB"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_full_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if a full disk is not foreseen, or one that could not be foreseen loses or half-writes anything."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], check=True)
    try:
        arguments = ["--out", str(disk / "out"), "--vocab-size", "512", "--val-fraction", "0.3"]
        (tmp_path / "large.txt").write_bytes(b"0123456789abcdef\n" * 400_000)
        assert main(["--source", "text", "--input", str(tmp_path / "large.txt"), *arguments]) == 2
        assert "GiB are needed" in capsys.readouterr().err
        assert list(disk.iterdir()) == []
        rows = [f"{n} " + "ab " * 300_000 for n in range(12)]  # compresses far better than the estimate allows for
        pq.write_table(pa.table({"text": rows}), tmp_path / "packed.parquet", compression="zstd")
        assert main(["--source", "parquet", "--input", str(tmp_path / "packed.parquet"), *arguments]) == 2
        assert "No space left on device" in capsys.readouterr().err
        assert not (disk / "out").exists()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_inspect(tiny_data: tuple[Path, Manifest], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if inspection misses a flipped bit, another tokenizer or a missing file, or does not show the text."""
    import shutil

    folder = tmp_path / "data"
    shutil.copytree(tiny_data[0], folder)
    assert inspect.main([str(folder), "--windows", "2", "--length", "400"]) == 0
    text = capsys.readouterr().out
    assert "all as in the manifest" in text
    assert f"{tiny_data[1].train.tokens:,} tokens" in text
    assert "self" in text or "def " in text
    flipped = bytearray((folder / "train_00001.bin").read_bytes())
    flipped[7] ^= 4
    (folder / "train_00001.bin").write_bytes(flipped)
    assert inspect.main([str(folder)]) == 2
    assert "train_00001.bin differs from its hash" in capsys.readouterr().err
    (folder / "tokenizer.model").unlink()
    assert inspect.main([str(folder), "--no-verify"]) == 2
    assert "tokenizer.model is missing" in capsys.readouterr().err
    assert inspect.main([str(tmp_path)]) == 2


def test_grid_does_not_know_shards(tmp_path: Path) -> None:
    """Breaks if the size of a shard moves a window."""
    digests = []
    for bucket_bytes in (1 << 30, 60_000):
        out = tmp_path / str(bucket_bytes)
        manifest = prepare(Source.local("text", tiny_files()), out, Options(512, 0.2, 0, bucket_bytes=bucket_bytes))
        data = TrainData(out, manifest, corpus_config(out, 512, 40))
        digests.append([batch.inputs.tobytes() for batch in step_batches(data, 0, None, 1, 0, 1)])
    assert digests[0] == digests[1]
