"""The data path: preparation and loading.

    python -m benchmarks.data

- preparation of the embedded corpus, MB of text per second, for each tokenizer and for 1 worker up to all cores
  (the tokenizer trained beforehand: reading, hashing, spooling, encoding, writing);
- the loader alone, tokens per second of one rank, for both orders;
- a full pass over 10⁹ tokens: how much the process's own memory grows (file pages, which the kernel may drop, apart);
- opening a data set of 9·10⁹ tokens and 8 million documents, up to its first batch, with a cold file cache.

The large data sets are sparse files: as large as they claim for everything but the disk.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.made import write_data
from benchmarks.outcome import RESULTS, write_result
from configs.load import validate
from configs.schema import RunConfig
from data.loader import TrainData, step_batches
from data.manifest import Manifest
from data.prepare import Options, prepare
from data.sources import open_source
from data.tokenizer import SentencePiece, train_sentencepiece


def configured(folder: Path, manifest: Manifest, seq_len: int, order: str) -> RunConfig:
    steps = (manifest.train.tokens - 1) // seq_len // 256
    return validate(
        {
            "name": "data",
            "model": {"n_layer": 1, "n_head": 1, "n_embd": 8, "seq_len": seq_len, "vocab_size": 50304},
            "data": {"path": str(folder), "order": order},
            "optim": {"lr": 1e-3, "weight_decay": 0.1},
            "schedule": {"steps": steps},
            "batch": {"tokens_per_step": 256 * seq_len},
        },
        "benchmark",
    )


def preparation(folder: Path) -> dict[str, Any]:
    rates: dict[str, Any] = {}
    texts = list(open_source("python-source", None).documents())
    sample = texts[:: max(1, len(texts) // 120)]  # about 2 MB, for unigram's sake
    for kind in ("bpe", "unigram"):
        given = SentencePiece(train_sentencepiece(sample, kind, 4096))
        for workers in sorted({1, os.cpu_count() or 1}):
            source = open_source("python-source", None)
            begun = time.perf_counter()
            prepare(source, folder / f"{kind}{workers}", Options(4096, 0.05, 0, tokenizer=kind), workers, given)
            rate = source.size / 1e6 / (time.perf_counter() - begun)
            rates[f"{kind}, {workers} worker(s)"] = {"mb_per_s": rate, "mb_per_s_and_core": rate / workers}
    return rates


def loading(folder: Path, manifest: Manifest) -> dict[str, float]:
    """Tokens per second of one rank over a few seconds."""
    rates = {}
    for order in ("windows", "documents"):
        for seq_len in (256, 1024):
            data = TrainData(folder, manifest, configured(folder, manifest, seq_len, order))
            tokens, begun = 0, time.perf_counter()
            for batch in step_batches(data, 0, None, 16, 0, 1):
                tokens += batch.inputs.size
                if time.perf_counter() - begun > 3:
                    break
            rates[f"{order}, {seq_len}"] = tokens / (time.perf_counter() - begun)
    return rates


def full_pass(folder: Path, manifest: Manifest) -> dict[str, float]:
    """Seconds and growth of anonymous memory over every window of the data set."""
    data = TrainData(folder, manifest, configured(folder, manifest, 1024, "windows"))
    begun, tokens, before = time.perf_counter(), 0, 0
    for batch in step_batches(data, 0, None, 16, 0, 1):
        tokens += batch.inputs.size
        if batch.step == 20:
            before = anonymous_bytes()
    return {
        "tokens": tokens,
        "seconds": time.perf_counter() - begun,
        "grown_mib": (anonymous_bytes() - before) / (1 << 20),
    }


def anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024


def opening(folder: Path, manifest: Manifest) -> dict[str, float]:
    seconds = {}
    for order in ("windows", "documents"):
        begun = time.perf_counter()
        data = TrainData(folder, manifest, configured(folder, manifest, 1024, order))
        next(step_batches(data, 0, None, 16, 0, 1))
        seconds[order] = time.perf_counter() - begun
    return seconds


def main() -> int:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        billion = write_data(folder / "billion", (10**9, 10**6), (10_000, 10), sparse=True)
        corpus = write_data(folder / "corpus", (9 * 10**9, 8 * 10**6), (10_000, 10), sparse=True)
        result = {
            "preparation": preparation(folder),
            "loader_tokens_per_s": loading(folder / "billion", billion),
            "full_pass": full_pass(folder / "billion", billion),
            "open_9e9_tokens_s": opening(folder / "corpus", corpus),
        }
    print(json.dumps(result, indent=1))
    write_result(RESULTS / "data.json", "data", result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
