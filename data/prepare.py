"""From documents to token shards: `python -m data.prepare --source … --out DIR`.

Three passes, memory bounded by one bucket of text per worker:

1. spool    every document goes to a bucket by a seeded hash of its content, which is also its place in the shuffle;
            an unseeded hash sends it to the validation split, so a document never changes split as a corpus grows;
2. train    SentencePiece on the first documents of the shuffle, up to a byte cap: a seeded sample;
3. encode   each bucket is sorted by hash and becomes one shard, one end-of-text token after each document.

Nothing depends on the number of workers. All is written beside --out and renamed at the end, manifest included.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import shutil
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from tqdm import tqdm

from data.manifest import FILE, Manifest, Split, read_manifest
from data.shards import Shard, sha256_of, token_dtype
from data.sources import SOURCES, Source, open_source
from data.tokenizer import Tokenizer, train_tokenizer

BUCKET_BYTES = 256 << 20
MIN_BUCKETS = 8  # so that small corpora use several workers
SAMPLE_BYTES = 20 << 20
MIN_VAL_BYTES = 2 << 20  # what the default fraction aims at: enough windows for a stable validation loss
RECORD = struct.Struct("<16sQ")  # sort key, bytes of text


@dataclass(frozen=True)
class Options:
    """What determines the output besides the source."""

    vocab_size: int
    val_fraction: float
    seed: int
    text_field: str = "text"
    sample_bytes: int = SAMPLE_BYTES


def prepare(source: Source, out: Path, options: Options, workers: int = 1) -> Manifest:
    """Prepare `source` into the folder `out`; returns the manifest.

    Data already there with the same source and options is returned as it is. Raises ValueError for anything else in
    `out`, an empty corpus or validation split, or a vocabulary the sample cannot fill; `out` is then untouched.
    """
    done = read_manifest(out)
    if done is not None and done.options == _recorded(options) and done.source["bytes"] == source.size:
        print(f"{out} is prepared already: {done.train.tokens:,} training tokens")
        return done
    if out.exists() and any(out.iterdir()):
        raise ValueError(
            f"{out} holds something else ({'data prepared otherwise' if done else 'no manifest'}); choose another --out"
        )
    work = out.with_name(out.name + ".preparing")
    work.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(work.with_suffix(".lock"), timeout=0):
            shutil.rmtree(work, ignore_errors=True)  # what a killed preparation left
            work.mkdir()
            try:
                manifest = _prepare_into(work, source, options, workers)
                if out.exists():
                    out.rmdir()
                os.replace(work, out)
            finally:
                shutil.rmtree(work, ignore_errors=True)
                work.with_suffix(".lock").unlink()
    except Timeout:
        raise ValueError(f"another preparation is writing {out}; wait for it or choose another --out") from None
    return manifest


def default_val_fraction(size: int) -> float:
    """P1's 0.05 %, raised where that would be under MIN_VAL_BYTES of text, to a tenth at most."""
    return max(0.0005, min(0.1, MIN_VAL_BYTES / max(size, 1)))


def _prepare_into(work: Path, source: Source, options: Options, workers: int) -> Manifest:
    spool = work / "spool"
    spool.mkdir()
    buckets = _spool(source, spool, options)
    model = train_tokenizer(_sample(spool, options), options.vocab_size)
    (work / "tokenizer.model").write_bytes(model)
    tokenizer = Tokenizer(model)
    jobs = [(work, name, token_dtype(tokenizer.vocab_size)) for name in buckets]
    results: dict[str, tuple[Shard, list[int]]] = {}
    with multiprocessing.get_context("spawn").Pool(min(workers, len(jobs)), _load_tokenizer, (model,)) as pool:
        for name, shard, lengths in tqdm(pool.imap(_encode_bucket, jobs), total=len(jobs), desc="encode", unit="shard"):
            results[name] = (shard, lengths)
    shutil.rmtree(spool)
    splits = {split: _finish_split(work, split, results) for split in ("train", "val")}
    manifest = Manifest(
        source=source.describe(),
        options=_recorded(options),
        tokenizer={"kind": "sentencepiece-bpe", "file": "tokenizer.model", "sha256": tokenizer.digest},
        vocab_size=tokenizer.vocab_size,
        eot=tokenizer.eot,
        dtype=token_dtype(tokenizer.vocab_size),
        train=splits["train"],
        val=splits["val"],
    ).with_digest()
    (work / FILE).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return manifest


def _recorded(options: Options) -> dict[str, Any]:
    return dict(vars(options))


def _spool(source: Source, spool: Path, options: Options) -> list[str]:
    """Distribute the documents to bucket files; returns the buckets' names, `split_index`, in order."""
    counts = {
        "train": max(MIN_BUCKETS, -(-source.size // BUCKET_BYTES)),
        "val": max(1, -(-int(source.size * options.val_fraction) // BUCKET_BYTES)),
    }
    names = [f"{split}_{index:05d}" for split, count in counts.items() for index in range(count)]
    files = {name: open(spool / name, "wb") for name in names}  # noqa: SIM115 (closed below, all of them)
    seed = options.seed.to_bytes(8, "little")
    documents = {"train": 0, "val": 0}
    try:
        for text in tqdm(source.documents(), desc="read", unit="doc"):
            raw = text.encode("utf-8")
            content = hashlib.blake2b(raw, digest_size=16).digest()
            split = "val" if _fraction(content) < options.val_fraction else "train"
            key = hashlib.blake2b(seed + content, digest_size=16).digest()
            bucket = files[f"{split}_{int(_fraction(key) * counts[split]):05d}"]
            bucket.write(RECORD.pack(key, len(raw)) + raw)
            documents[split] += 1
    finally:
        for file in files.values():
            file.close()
    total = sum(documents.values())
    if total == 0:
        raise ValueError(f"the corpus is empty: {len(source.files)} file(s), no document")
    for split, count in documents.items():
        if count == 0:
            raise ValueError(
                f"the {split} split would be empty: a val_fraction of {options.val_fraction:g} of {total} documents; "
                "give more documents or another --val-fraction"
            )
    return names


def _fraction(digest: bytes) -> float:
    """A digest as a number in [0, 1): its first 53 bits, big-endian, so that buckets are ranges of sort keys."""
    return (int.from_bytes(digest[:8], "big") >> 11) / (1 << 53)


def _read_bucket(path: Path) -> list[bytes]:
    """The texts of a bucket in the order of the shuffle."""
    records = []
    with open(path, "rb") as file:
        while header := file.read(RECORD.size):
            key, size = RECORD.unpack(header)
            records.append((key, file.read(size)))
    return [text for _, text in sorted(records)]


def _sample(spool: Path, options: Options) -> Iterator[str]:
    """The first training documents of the shuffle, up to sample_bytes."""
    left = options.sample_bytes
    for path in sorted(spool.glob("train_*")):
        for raw in _read_bucket(path):
            if left <= 0:
                return
            yield raw[:left].decode("utf-8", errors="ignore")
            left -= len(raw)


_tokenizer: Tokenizer | None = None  # one per worker process


def _load_tokenizer(model: bytes) -> None:
    global _tokenizer
    _tokenizer = Tokenizer(model)


def _encode_bucket(job: tuple[Path, str, str]) -> tuple[str, Shard, list[int]]:
    """Encode one bucket into its shard; returns its name, the shard and the documents' lengths in tokens."""
    work, name, dtype = job
    assert _tokenizer is not None
    lengths = []
    path = work / f"{name}.bin"
    with open(path, "wb") as file:
        for raw in _read_bucket(work / "spool" / name):
            ids = np.array([*_tokenizer.encode(raw.decode("utf-8")), _tokenizer.eot], dtype=np.int64)
            if ids.max() >= _tokenizer.vocab_size:
                raise ValueError(f"token id {ids.max()} is outside the vocabulary of {_tokenizer.vocab_size}")
            file.write(ids.astype(np.dtype(dtype).newbyteorder("<")).tobytes())
            lengths.append(len(ids))
        file.flush()
        os.fsync(file.fileno())
    return name, Shard(path.name, sum(lengths), sha256_of(path)), lengths


def _finish_split(work: Path, split: str, results: dict[str, tuple[Shard, list[int]]]) -> Split:
    found = [result for name, result in sorted(results.items()) if name.startswith(split + "_")]
    lengths = np.concatenate([np.array(lengths, dtype=np.uint64) for _, lengths in found])
    docs = work / f"{split}_docs.bin"
    np.cumsum(lengths, dtype="<u8").tofile(docs)
    shards = [shard for shard, _ in found if shard.tokens]
    return Split(
        tokens=sum(shard.tokens for shard in shards),
        documents=len(lengths),
        shards=shards,
        docs_file=docs.name,
        docs_sha256=sha256_of(docs),
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m data.prepare", description="Turn documents into token shards.")
    parser.add_argument("--source", required=True, choices=SOURCES)
    parser.add_argument("--input", help="file or quoted glob (not for python-source)")
    parser.add_argument("--out", required=True, type=Path, help="folder to create")
    parser.add_argument("--vocab-size", type=int, default=50304)
    parser.add_argument(
        "--val-fraction", type=float, help="share of documents held out; default: enough for validation"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the shuffle")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--text-field", default="text", help="field or column of jsonl and parquet")
    args = parser.parse_args(argv)
    try:
        source = open_source(args.source, args.input, args.text_field)
        fraction = default_val_fraction(source.size) if args.val_fraction is None else args.val_fraction
        if not 0 < fraction < 1:
            raise ValueError(f"--val-fraction {fraction} must lie between 0 and 1")
        if args.seed < 0 or args.workers < 1:
            raise ValueError(f"--seed {args.seed} and --workers {args.workers} must be at least 0 and 1")
        options = Options(args.vocab_size, fraction, args.seed, args.text_field)
        manifest = prepare(source, args.out, options, args.workers)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for reason, count in manifest.source["skipped"].items():
        print(f"skipped {count} file(s): {reason}")
    print(
        f"{args.out}: {manifest.train.tokens:,} training and {manifest.val.tokens:,} validation tokens of "
        f"{manifest.train.documents + manifest.val.documents:,} documents, vocabulary {manifest.vocab_size}, "
        f"val_fraction {manifest.options['val_fraction']:.4g}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
