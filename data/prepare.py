"""From documents to token shards: `python -m data.prepare --source … --out DIR`.

Three passes; a worker holds one bucket of text (128 MiB) at most twice, whatever the size of the corpus:

1. spool    every document goes to a bucket by a seeded hash of its content, which is also its place in the shuffle,
            and to the training or validation split (data/spool.py);
2. train    SentencePiece on the first documents of the shuffle, up to a byte cap: a seeded sample;
3. encode   each bucket is sorted by hash and becomes one shard, one end-of-text token after each document.

Nothing depends on the number of workers. The work is done in DIR.preparing and renamed at the end: killed at any
moment, the same command goes on from the last finished shard.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from configs.errors import InputError
from data.huggingface import HuggingFace
from data.llmc import adopt_shards
from data.lossless import Given, Tokenizer
from data.manifest import FILE, Manifest, Split, read_manifest
from data.nanogpt import adopt
from data.options import Options, default_vocab
from data.output import building, check_disk, prepared_already, replace_file
from data.request import named_tokenizer, one_folder, parser, read_request
from data.shards import Shard, sha256_of, sha256_of_all, token_dtype
from data.sources import Source
from data.spool import read_bucket, spool
from data.tokenizer import (
    GPT2,
    MODEL_FILE,
    SentencePiece,
    fit_sentencepiece,
    tokenizer_of,
    train_sentencepiece,
)

SPOOL_AND_TOKENS = 1.75  # disk per byte of text: the spool, and uint16 tokens of 2.7 bytes of text or more
ADOPT = {"nanogpt": adopt, "llmc": adopt_shards}  # tokens that are there already
FITTED = "vocab_fitted"  # in a manifest's options: the default vocabulary did not fit the text


def prepare(
    source: Source, out: Path, options: Options, workers: int = 1, given: Given | None = None, fit: bool = False
) -> Manifest:
    """Prepare `source` into the folder `out`, with a `given` tokenizer or as the options say.

    With `fit` the vocabulary is a default: where the text cannot have it, another is taken. Data already there with the
    same source and options is returned as it is. Raises InputError for anything else in `out`, an empty corpus or split, or
    a vocabulary the sample cannot fill: nothing is left behind. Raises OSError for a full disk: finished shards are kept.
    """
    # What a folder finds may already be skipped before a file is read; it is no part of what is requested.
    described = {**source.describe(), "skipped": {}}
    request = {"source": described, "options": {**asdict(options), **source.reading()}}
    done = prepared_already(out, request, (FITTED,) if fit else ())
    if done is not None:
        return done
    for note in source.notes:
        print(note)
    with building(out, request) as work:
        # A preparation that was killed after its manifest has only the sweeping up left.
        if not (work / FILE).exists():
            manifest = _prepare_in(work, source, options, workers, given, fit)
            replace_file(work / FILE, (manifest.model_dump_json(indent=2) + "\n").encode())
        shutil.rmtree(work / "spool", ignore_errors=True)
        for pattern in ("spooled.json", "*.lengths", "train_*.json", "val_*.json", "*.tmp"):
            for path in work.glob(pattern):
                path.unlink()
    written = read_manifest(out)
    assert written is not None
    return written


def _prepare_in(work: Path, source: Source, options: Options, workers: int, given: Given | None, fit: bool) -> Manifest:
    """The three passes, in the folder `work`; each leaves a file that says it is finished, and is not taken again."""
    spooled = work / "spooled.json"
    if not spooled.exists():
        shutil.rmtree(work / "spool", ignore_errors=True)
        check_disk(work, round((source.text_bytes() + source.val_text_bytes()) * SPOOL_AND_TOKENS))
        replace_file(spooled, json.dumps(spool(source, work / "spool", options)).encode())
    progress = json.loads(spooled.read_text())
    source.skipped, notes = progress["skipped"], progress.get("notes", [])
    tokenizer = _tokenizer_for(work, source, options, given, fit)
    recorded = {**asdict(options), **source.reading()}
    if fit and tokenizer.vocab_size != options.vocab_size:
        recorded[FITTED] = True
        why = "has more characters than that" if tokenizer.vocab_size > options.vocab_size else "cannot fill that"
        notes.append(f"vocabulary {tokenizer.vocab_size} instead of the default {options.vocab_size}: this text {why}")
    for note in notes[len(source.notes) :]:  # the others were said at the start
        print(note)
    splits = _encode(work, progress["buckets"], tokenizer, workers)
    described = source.describe()
    return Manifest(
        source={**described, "notes": notes} if notes else described,
        options=recorded,
        tokenizer=tokenizer.describe(),
        vocab_size=tokenizer.vocab_size,
        eot=tokenizer.eot,
        dtype=token_dtype(tokenizer.vocab_size),
        train=splits["train"],
        val=splits["val"],
    ).with_digest()


def _tokenizer_for(work: Path, source: Source, options: Options, given: Given | None, fit: bool) -> Tokenizer:
    """The tokenizer the options ask for; its file is written beside the shards."""
    if given is not None:
        replace_file(work / given.file, given.content)
        return given
    if options.tokenizer == "gpt2":
        return GPT2()
    path = work / MODEL_FILE
    if not path.exists():
        if fit:
            smaller = default_vocab(source.text_bytes())
            sample = partial(_sample, work / "spool", options)
            model = fit_sentencepiece(sample, options.tokenizer, options.vocab_size, smaller)
        else:
            model = train_sentencepiece(_sample(work / "spool", options), options.tokenizer, options.vocab_size)
        replace_file(path, model)
    return SentencePiece(path.read_bytes())


def _sample(spool: Path, options: Options) -> Iterator[str]:
    """The first training documents of the shuffle, up to sample_bytes."""
    left = options.sample_bytes
    for path in sorted(spool.glob("train_*")):
        for raw in read_bucket(path):
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
            made_of = tokenizer.describe(), getattr(tokenizer, "content", None)
            with multiprocessing.get_context("spawn").Pool(min(workers, len(left)), _load_tokenizer, made_of) as pool:
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


def _load_tokenizer(description: dict[str, Any], content: bytes | None) -> None:
    _use_tokenizer(tokenizer_of(description, content))


def _encode_bucket(job: tuple[Path, str, str]) -> None:
    """One bucket → its shard, its documents' lengths, and a record of both, which is written last."""
    work, name, dtype = job
    assert _tokenizer is not None
    lengths = []
    shard, unfinished = work / f"{name}.bin", work / f"{name}.bin.tmp"
    with open(unfinished, "wb") as file:
        for raw in read_bucket(work / "spool" / name):
            text = raw.decode("utf-8")
            encoded = _tokenizer.encode(text)
            if isinstance(_tokenizer, HuggingFace):  # no proof that it is lossless but to try
                _tokenizer.check(text, encoded)
            ids = np.array([*encoded, _tokenizer.eot], dtype=np.int64)
            if ids.max() >= _tokenizer.vocab_size:
                raise InputError(f"token id {ids.max()} is outside the vocabulary of {_tokenizer.vocab_size}")
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
    args = parser().parse_args(argv)
    try:
        manifest = _run(args)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for reason, count in manifest.source["skipped"].items():
        print(f"skipped {count:,}: {reason}")
    print(
        f"{args.out}: {manifest.train.tokens:,} training and {manifest.val.tokens:,} validation tokens of "
        f"{manifest.train.documents + manifest.val.documents:,} documents, vocabulary {manifest.vocab_size}"
    )
    return 0


def _run(args: argparse.Namespace) -> Manifest:
    if args.seed < 0 or args.workers < 1:
        raise InputError(f"--seed {args.seed} and --workers {args.workers} must be at least 0 and 1")
    if args.source in ADOPT:
        folder, given = one_folder(args), named_tokenizer(args)
        return ADOPT[args.source](folder, args.out, args.vocab_size, args.tokenizer, given)
    request = read_request(args)
    return prepare(request.source, args.out, request.options, args.workers, request.given, request.fit)


if __name__ == "__main__":
    sys.exit(main())
