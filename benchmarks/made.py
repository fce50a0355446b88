"""Prepared data that the benchmarks make up: what the tokens are changes nothing that is measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data.manifest import Manifest, Split
from data.shards import Shard, sha256_of

IDS, EOT = 64, 1
SHARD_TOKENS = 1 << 27


def write_data(folder: Path, train: tuple[int, int], val: tuple[int, int], sparse: bool = False) -> Manifest:
    """A data set of random ids with evenly spaced documents: tokens and documents of each split.

    `sparse`: zeros, in files as large as they claim for everything but the disk, without hashes.
    """
    folder.mkdir(parents=True)
    dice, splits = np.random.default_rng(0), {}
    for split, (count, documents) in (("train", train), ("val", val)):
        ends = np.linspace(count // documents, count, documents).astype("<u8")
        shards = []
        for index, start in enumerate(range(0, count, SHARD_TOKENS)):
            path, tokens = folder / f"{split}_{index:05d}.bin", min(SHARD_TOKENS, count - start)
            with open(path, "wb") as file:
                if sparse:
                    file.truncate(2 * tokens)
                else:
                    ids = dice.integers(EOT + 1, IDS, tokens).astype("<u2")
                    ids[ends[(ends > start) & (ends <= start + tokens)].astype(int) - 1 - start] = EOT
                    ids.tofile(file)
            shards.append(Shard(path.name, tokens, "" if sparse else sha256_of(path)))
        docs = folder / f"{split}_docs.bin"
        ends.tofile(docs)
        splits[split] = Split(
            tokens=count,
            documents=documents,
            shards=shards,
            docs_file=docs.name,
            docs_sha256="" if sparse else sha256_of(docs),
        )
    manifest = Manifest(
        source={"kind": "benchmark"}, options={}, tokenizer={}, vocab_size=IDS, eot=EOT, dtype="uint16", **splits
    ).with_digest()
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    return manifest
