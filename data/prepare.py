"""From documents to token shards: `python -m data.prepare --source … --out DIR`.

Three passes; a worker holds one bucket of text (128 MiB) at most twice, whatever the size of the corpus:

1. spool    every document goes to a bucket by a seeded hash of its content, which is also its place in the shuffle;
            an unseeded hash sends it to the validation split, so a document never changes split as a corpus grows;
2. train    SentencePiece on the first documents of the shuffle, up to a byte cap: a seeded sample;
3. encode   each bucket is sorted by hash and becomes one shard, one end-of-text token after each document.

Nothing depends on the number of workers. The work is done in DIR.preparing and renamed at the end: killed at any
moment, the same command goes on from the last finished shard.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import resource
import shutil
import struct
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.manifest import FILE, Manifest, Split, read_manifest
from data.nanogpt import adopt
from data.output import building, check_disk, prepared_already, replace_file
from data.shards import Shard, sha256_of, sha256_of_all, token_dtype
from data.sources import OPENWEBTEXT, SOURCES, Source, open_hub, open_source
from data.tokenizer import GPT2, MODEL_FILE, SentencePiece, Tokenizer, train_sentencepiece

DEFAULT_VOCAB = 50304
MIN_BUCKETS = 8  # so that small corpora use several workers
DEFAULT_VAL_FRACTION = 0.0005  # P1's
MIN_VAL_BYTES = 2 << 20  # what the default fraction is raised for: enough windows for a stable validation loss
RECORD = struct.Struct("<16sQ")  # sort key, bytes of text
SPOOL_AND_TOKENS = 1.75  # disk per byte of text: the spool, and uint16 tokens of 2.7 bytes of text or more


@dataclass(frozen=True)
class Options:
    """What determines the output besides the source. `tokenizer`: bpe, unigram, gpt2, or the SHA-256 of a given model."""

    vocab_size: int
    val_fraction: float
    seed: int
    text_field: str = "text"
    tokenizer: str = "bpe"
    sample_bytes: int = 20 << 20
    bucket_bytes: int = 128 << 20


def prepare(source: Source, out: Path, options: Options, workers: int = 1, model: bytes | None = None) -> Manifest:
    """Prepare `source` into the folder `out`, with a given SentencePiece `model` or as the options say.

    Data already there with the same source and options is returned as it is. Raises ValueError for anything else in
    `out`, an empty corpus or split, or a vocabulary the sample cannot fill: nothing is left behind. Raises OSError for a
    full disk: finished shards are kept.
    """
    asked = {"source": source.describe(), "options": asdict(options)}
    done = prepared_already(out, asked)
    if done is not None:
        return done
    with building(out, asked) as work:
        if not (work / FILE).exists():
            manifest = _prepare_in(work, source, options, workers, model)
            replace_file(work / FILE, (manifest.model_dump_json(indent=2) + "\n").encode())
        shutil.rmtree(work / "spool", ignore_errors=True)
        for pattern in ("spooled.json", "*.lengths", "train_*.json", "val_*.json", "*.tmp"):
            for path in work.glob(pattern):
                path.unlink()
    found = read_manifest(out)
    assert found is not None
    return found


def _prepare_in(work: Path, source: Source, options: Options, workers: int, model: bytes | None) -> Manifest:
    spooled = work / "spooled.json"
    if not spooled.exists():
        shutil.rmtree(work / "spool", ignore_errors=True)
        check_disk(work, round(source.text_bytes() * SPOOL_AND_TOKENS))
        replace_file(spooled, json.dumps(_spool(source, work / "spool", options)).encode())
    progress = json.loads(spooled.read_text())
    source.skipped = progress["skipped"]
    tokenizer = _tokenizer_for(work, options, model)
    splits = _encode(work, progress["buckets"], tokenizer, workers)
    return Manifest(
        source=source.describe(),
        options=asdict(options),
        tokenizer=tokenizer.describe(),
        vocab_size=tokenizer.vocab_size,
        eot=tokenizer.eot,
        dtype=token_dtype(tokenizer.vocab_size),
        train=splits["train"],
        val=splits["val"],
    ).with_digest()


def default_val_fraction(text_bytes: int) -> float:
    """P1's 0.05 %, raised where that would be under MIN_VAL_BYTES of text, to a tenth at most."""
    return max(DEFAULT_VAL_FRACTION, min(0.1, MIN_VAL_BYTES / max(text_bytes, 1)))


def _spool(source: Source, spool: Path, options: Options) -> dict[str, object]:
    """Distribute the documents to bucket files; returns the buckets' names, `split_index`, in order, and what was skipped."""
    size = source.text_bytes()
    counts = {
        "train": max(MIN_BUCKETS, -(-size // options.bucket_bytes)),
        "val": max(1, -(-int(size * options.val_fraction) // options.bucket_bytes)),
    }
    names = [f"{split}_{index:05d}" for split, count in counts.items() for index in range(count)]
    spool.mkdir()
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))  # one open file per bucket
    files = {name: open(spool / name, "wb") for name in names}  # noqa: SIM115 (closed below, all of them)
    seed = options.seed.to_bytes(8, "little")
    documents = {"train": 0, "val": 0}
    try:
        for text in tqdm(source.documents(), desc="read", unit=" documents"):
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
    return {"buckets": names, "skipped": source.skipped}


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


def _tokenizer_for(work: Path, options: Options, model: bytes | None) -> Tokenizer:
    """The tokenizer the options ask for; a model is written beside the shards."""
    if options.tokenizer == "gpt2":
        return GPT2()
    path = work / MODEL_FILE
    if not path.exists():
        if model is None:
            model = train_sentencepiece(_sample(work / "spool", options), options.tokenizer, options.vocab_size)
        replace_file(path, model)
    return SentencePiece(path.read_bytes())


def _sample(spool: Path, options: Options) -> Iterator[str]:
    """The first training documents of the shuffle, up to sample_bytes."""
    left = options.sample_bytes
    for path in sorted(spool.glob("train_*")):
        for raw in _read_bucket(path):
            if left <= 0:
                return
            yield raw[:left].decode("utf-8", errors="ignore")
            left -= len(raw)


def _encode(work: Path, buckets: list[str], tokenizer: Tokenizer, workers: int) -> dict[str, Split]:
    """Every bucket that has no shard yet, by `workers` processes; returns the splits."""
    left = [(work, name, token_dtype(tokenizer.vocab_size)) for name in buckets if not (work / f"{name}.json").exists()]
    with tqdm(total=len(buckets), initial=len(buckets) - len(left), desc="encode", unit=" shards") as bar:
        if workers == 1:
            _use_tokenizer(tokenizer)
            for job in left:
                _encode_bucket(job)
                bar.update()
        elif left:
            spec = tokenizer.model if isinstance(tokenizer, SentencePiece) else None
            with multiprocessing.get_context("spawn").Pool(min(workers, len(left)), _load_tokenizer, (spec,)) as pool:
                for _ in pool.imap_unordered(_encode_bucket, left):
                    bar.update()
    return {
        split: _finish_split(work, split, [b for b in buckets if b.startswith(split + "_")])
        for split in ("train", "val")
    }


_tokenizer: Tokenizer | None = None  # one per process


def _use_tokenizer(tokenizer: Tokenizer) -> None:
    global _tokenizer
    _tokenizer = tokenizer


def _load_tokenizer(model: bytes | None) -> None:
    _use_tokenizer(GPT2() if model is None else SentencePiece(model))


def _encode_bucket(job: tuple[Path, str, str]) -> None:
    """One bucket → its shard, its documents' lengths, and a record of both, which is written last."""
    work, name, dtype = job
    assert _tokenizer is not None
    lengths = []
    shard, unfinished = work / f"{name}.bin", work / f"{name}.bin.tmp"
    with open(unfinished, "wb") as file:
        for raw in _read_bucket(work / "spool" / name):
            ids = np.array([*_tokenizer.encode(raw.decode("utf-8")), _tokenizer.eot], dtype=np.int64)
            if ids.max() >= _tokenizer.vocab_size:
                raise ValueError(f"token id {ids.max()} is outside the vocabulary of {_tokenizer.vocab_size}")
            file.write(ids.astype(np.dtype(dtype).newbyteorder("<")).tobytes())
            lengths.append(len(ids))
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, shard)
    replace_file(work / f"{name}.lengths", np.array(lengths, dtype="<u8").tobytes())
    record = asdict(Shard(shard.name, sum(lengths), sha256_of(shard)))
    replace_file(work / f"{name}.json", json.dumps(record).encode())
    (work / "spool" / name).unlink()


def _finish_split(work: Path, split: str, buckets: list[str]) -> Split:
    """Join the buckets' document lengths to the split's document ends; drop empty shards and all by-products."""
    shards = [Shard(**json.loads((work / f"{name}.json").read_text())) for name in buckets]
    lengths = np.concatenate([np.fromfile(work / f"{name}.lengths", dtype="<u8") for name in buckets])
    docs = work / f"{split}_docs.bin"
    replace_file(docs, np.cumsum(lengths, dtype="<u8").tobytes())
    for shard in shards:
        if not shard.tokens:
            (work / shard.file).unlink(missing_ok=True)
    filled = [shard for shard in shards if shard.tokens]
    return Split(
        tokens=sum(shard.tokens for shard in shards),
        documents=len(lengths),
        shards=filled,
        docs_file=docs.name,
        docs_sha256=sha256_of(docs),
        sha256=sha256_of_all([work / shard.file for shard in filled]),
    )


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        manifest = _run(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for reason, count in manifest.source["skipped"].items():
        print(f"skipped {count} file(s): {reason}")
    print(
        f"{args.out}: {manifest.train.tokens:,} training and {manifest.val.tokens:,} validation tokens of "
        f"{manifest.train.documents + manifest.val.documents:,} documents, vocabulary {manifest.vocab_size}"
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m data.prepare", description="Turn documents into token shards.")
    parser.add_argument("--source", required=True, choices=SOURCES)
    parser.add_argument("--input", help="file or quoted glob; for nanogpt the folder of train.bin and val.bin")
    parser.add_argument("--out", required=True, type=Path, help="folder to create")
    parser.add_argument(
        "--tokenizer",
        help="bpe (default) or unigram, trained here; gpt2, or a SentencePiece model file; nanogpt: what its tokens are of",
    )
    parser.add_argument(
        "--vocab-size", type=int, help="of the tokenizer to train; default 50304. nanogpt: of its tokens"
    )
    parser.add_argument(
        "--val-fraction", type=float, help="share of documents held out; default 0.0005, or enough to validate"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the shuffle")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--text-field", default="text", help="field or column of jsonl, parquet and datasets")
    parser.add_argument("--packages", action="store_true", help="python-source: the installed packages' sources too")
    parser.add_argument(
        "--dataset", default=OPENWEBTEXT, help="openwebtext: a hub dataset with text, or a local copy's folder"
    )
    parser.add_argument(
        "--revision", help="openwebtext: of the dataset; default main, else the hub's parquet conversion"
    )
    return parser


def _run(args: argparse.Namespace) -> Manifest:
    if args.seed < 0 or args.workers < 1:
        raise ValueError(f"--seed {args.seed} and --workers {args.workers} must be at least 0 and 1")
    if args.source == "nanogpt":
        return adopt(Path(args.input or "."), args.out, args.vocab_size, args.tokenizer)
    if args.source == "openwebtext":
        source = open_hub(args.dataset, args.revision, args.text_field)
    else:
        source = open_source(args.source, args.input, args.text_field, args.packages)
    fraction = args.val_fraction
    if fraction is None:
        fraction = default_val_fraction(source.text_bytes())
        if fraction > DEFAULT_VAL_FRACTION:
            print(f"val-fraction {fraction:.4g} instead of {DEFAULT_VAL_FRACTION}, to hold out about 2 MiB of text")
    if not 0 < fraction < 1:
        raise ValueError(f"--val-fraction {fraction} must lie between 0 and 1")
    model, tokenizer = None, args.tokenizer or "bpe"
    if tokenizer not in ("bpe", "unigram", "gpt2"):
        model = _read_model(Path(tokenizer))
        tokenizer = hashlib.sha256(model).hexdigest()
    options = Options(args.vocab_size or DEFAULT_VOCAB, fraction, args.seed, args.text_field, tokenizer)
    return prepare(source, args.out, options, args.workers, model)


def _read_model(path: Path) -> bytes:
    if not path.is_file():
        raise ValueError(f"--tokenizer {path} is neither bpe, unigram, gpt2 nor a file")
    SentencePiece(path.read_bytes())
    return path.read_bytes()


if __name__ == "__main__":
    sys.exit(main())
