"""Prepared data made by a formula: the same tokens on every machine and Python."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data.manifest import Manifest, Split
from data.shards import Shard, sha256_of

VOCAB, EOT = 64, 1


def write_synthetic(folder: Path, train_tokens: int, val_tokens: int = 4096) -> Manifest:
    """A noisy walk over 64 tokens (each follows from the last, but for one in eight), a document every 512."""
    folder.mkdir(parents=True, exist_ok=True)
    splits = {}
    for index, (split, count) in enumerate((("train", train_tokens), ("val", val_tokens))):
        noise = (np.arange(count, dtype=np.uint64) * np.uint64(2654435761) + np.uint64(index)) >> np.uint64(7)
        tokens = np.zeros(count, dtype="<u2")
        for i in range(1, count):
            tokens[i] = noise[i] % VOCAB if noise[i] % 8 == 0 else (tokens[i - 1] * 5 + 3) % VOCAB
        ends = np.append(np.arange(512, count, 512), count).astype("<u8")
        tokens[ends.astype(int) - 1] = EOT
        tokens.tofile(folder / f"{split}_00000.bin")
        ends.tofile(folder / f"{split}_docs.bin")
        shard = Shard(f"{split}_00000.bin", count, sha256_of(folder / f"{split}_00000.bin"))
        docs = f"{split}_docs.bin"
        splits[split] = Split(
            tokens=count, documents=len(ends), shards=[shard], docs_file=docs, docs_sha256=sha256_of(folder / docs)
        )
    manifest = Manifest(
        format=1,  # as it was when the golden curve was recorded
        source={"kind": "synthetic"},
        options={},
        tokenizer={},
        vocab_size=VOCAB,
        eot=EOT,
        dtype="uint16",
        train=splits["train"],
        val=splits["val"],
    ).with_digest()
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    return manifest
