"""Adopt an existing nanoGPT pair, train.bin and val.bin (raw uint16 of GPT-2's BPE), without copying a token."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.manifest import FILE, Manifest, Split, read_manifest
from data.output import building, prepared_already, replace_file
from data.shards import Shard, sha256_of

GPT2_VOCAB, GPT2_EOT = 50257, 50256
BLOCK = 1 << 26  # bytes read at a time


def adopt(folder: Path, out: Path, vocab_size: int | None) -> Manifest:
    """Prepared data in `out` whose shards are links to `folder`'s files.

    One pass over the tokens hashes them, and finds the documents' ends and the largest id. Without `vocab_size` the
    vocabulary is GPT-2's where the ids are, else the largest id + 1. Raises ValueError for missing or odd files, or ids
    beyond the vocabulary.
    """
    paths = {split: (folder / f"{split}.bin").resolve() for split in ("train", "val")}
    for path in paths.values():
        if not path.is_file() or path.stat().st_size < 4 or path.stat().st_size % 2:
            raise ValueError(
                f"{path} is missing, empty, or of odd size: nanogpt reads a folder's train.bin and val.bin of uint16"
            )
    size = sum(path.stat().st_size for path in paths.values())
    origin = {"kind": "nanogpt", "folder": str(folder.resolve()), "files": 2, "bytes": size, "skipped": {}}
    asked = {"source": origin, "options": {"vocab_size": vocab_size}}
    done = prepared_already(out, asked)
    if done is not None:
        return done
    with building(out, asked) as work:
        scans = {split: _scan(path) for split, path in paths.items()}
        largest = max(found for _, found, _ in scans.values())
        vocabulary = vocab_size or (GPT2_VOCAB if largest == GPT2_EOT else largest + 1)
        if largest >= vocabulary:
            raise ValueError(
                f"{folder} holds token id {largest}, outside the vocabulary of {vocabulary}; set --vocab-size"
            )
        splits = {}
        for split, path in paths.items():
            digest, _, ends = scans[split]
            tokens = path.stat().st_size // 2
            if not len(ends) or ends[-1] != tokens:  # a last document without end-of-text
                ends = np.append(ends, np.uint64(tokens))
            replace_file(work / f"{split}_docs.bin", ends.astype("<u8").tobytes())
            link = work / f"{split}_00000.bin"
            link.unlink(missing_ok=True)
            os.symlink(path, link)
            splits[split] = Split(
                tokens=tokens,
                documents=len(ends),
                shards=[Shard(link.name, tokens, digest)],
                docs_file=f"{split}_docs.bin",
                docs_sha256=sha256_of(work / f"{split}_docs.bin"),
            )
        gpt2 = vocabulary >= GPT2_VOCAB
        manifest = Manifest(
            source=origin,
            options={"vocab_size": vocab_size},
            tokenizer={"kind": "gpt2" if gpt2 else "unknown"},
            vocab_size=vocabulary,
            eot=GPT2_EOT if gpt2 else vocabulary - 1,
            dtype="uint16",
            train=splits["train"],
            val=splits["val"],
        ).with_digest()
        replace_file(work / FILE, (manifest.model_dump_json(indent=2) + "\n").encode())
    found = read_manifest(out)
    assert found is not None
    return found


def _scan(path: Path) -> tuple[str, int, np.ndarray]:
    """SHA-256, largest id, and the positions after each GPT-2 end-of-text token, of a file of uint16."""
    digest, largest, position = hashlib.sha256(), 0, 0
    ends = [np.empty(0, np.uint64)]
    with open(path, "rb") as file, tqdm(total=path.stat().st_size, desc=path.name, unit="B", unit_scale=True) as bar:
        while block := file.read(BLOCK):
            digest.update(block)
            tokens = np.frombuffer(block, "<u2")
            largest = max(largest, int(tokens.max()))
            ends.append((np.flatnonzero(tokens == GPT2_EOT) + position + 1).astype(np.uint64))
            position += len(tokens)
            bar.update(len(block))
    return digest.hexdigest(), largest, np.concatenate(ends)
