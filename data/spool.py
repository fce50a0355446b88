"""The first pass: every document goes to a bucket, by a seeded hash of its content, and to the training or validation split.

A bucket is a file of records (sort key, bytes of text, text). Sorted by key it is a shard in the order of the shuffle.
"""

from __future__ import annotations

import hashlib
import os
import resource
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from configs.errors import InputError
from data.documents import FILE, cut_point
from data.options import Options, sized
from data.sources import HUB, Source

MIN_BUCKETS = 8  # so that small corpora use several workers
FEW_DOCUMENTS = 32  # of fewer pieces of a text, a hash would hold out anything from none to half
RECORD = struct.Struct("<16sQ")  # sort key, bytes of text


def spool(source: Source, folder: Path, options: Options) -> dict[str, Any]:
    """Fill the buckets. Returns their names, `split_index`, in order; what was skipped; and what was decided, in sentences.

    An unseeded hash of its content sends a document to the validation split, so that it never changes split as a corpus
    grows. Where that would leave a split empty, or the documents are few pieces of a text, the tail of each training bucket
    is held out instead. InputError for an empty corpus or split.
    """
    buckets = _Buckets(folder, options, source)
    total = source.size + source.val_size()
    counted = source.kind not in HUB  # the hub's files are read by its own library, which tells no position
    with buckets, tqdm(desc="read", total=total if counted else None, unit="B", unit_scale=True) as bar:
        source.on_bytes = bar.update
        for text in source.documents():
            buckets.add(text)
            bar.set_postfix_str(f"{buckets.count:,} documents", refresh=False)
        for text in source.val_documents():
            buckets.add(text, "val")
        bar.refresh()
    source.on_bytes = None
    _check_filled(source, buckets)
    notes = list(source.notes)
    pieces = source.split_on != FILE or source.document_bytes is not None
    if not source.val_files and (0 in buckets.documents.values() or (pieces and buckets.count < FEW_DOCUMENTS)):
        notes.append(_hold_out_tails(folder, buckets, options))
    return {"buckets": buckets.names, "skipped": source.skipped, "notes": notes}


class _Buckets:
    """The bucket files of both splits while they are filled."""

    def __init__(self, folder: Path, options: Options, source: Source) -> None:
        self.options = options
        size = options.bucket_bytes
        val_text = source.val_text_bytes() if source.val_files else int(source.text_bytes() * options.val_fraction)
        self.sizes = {"train": max(MIN_BUCKETS, -(-source.text_bytes() // size)), "val": max(1, -(-val_text // size))}
        self.names = [f"{split}_{index:05d}" for split, count in self.sizes.items() for index in range(count)]
        self.documents = {"train": 0, "val": 0}
        self._seed = options.seed.to_bytes(8, "little")
        folder.mkdir()
        _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))  # one open file per bucket
        self._files: dict[str, BinaryIO] = {name: open(folder / name, "wb") for name in self.names}  # noqa: SIM115

    @property
    def count(self) -> int:
        return sum(self.documents.values())

    def add(self, text: str, split: str | None = None) -> None:
        """Append a document to its bucket; `split` None: to the split that its content decides."""
        raw = text.encode("utf-8")
        content = hashlib.blake2b(raw, digest_size=16).digest()
        # The split follows from the content alone, the place in the shuffle from content and seed: another seed shuffles
        # otherwise, and holds out the same documents.
        if split is None:
            split = "val" if _fraction(content) < self.options.val_fraction else "train"
        key = hashlib.blake2b(self._seed + content, digest_size=16).digest()
        write_record(self._files[self.bucket(split, key)], key, raw)
        self.documents[split] += 1

    def bucket(self, split: str, key: bytes) -> str:
        """Buckets are ranges of sort keys: their order is the order of the shuffle."""
        return f"{split}_{int(_fraction(key) * self.sizes[split]):05d}"

    def __enter__(self) -> _Buckets:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()


def _check_filled(source: Source, buckets: _Buckets) -> None:
    """InputError where there is nothing to train on, or to validate on in files that are for it."""
    skipped = ", ".join(f"{count} × {reason}" for reason, count in source.skipped.items())
    left_out = f"; left out: {skipped}" if skipped else ""
    if buckets.count == 0:
        named = f"{source.files[0]} holds" if len(source.files) == 1 else f"{len(source.files)} files hold"
        raise InputError(f"the corpus is empty: {named} no document{left_out}")
    if source.val_files and 0 in buckets.documents.values():
        empty = "--input" if buckets.documents["train"] == 0 else "--val-input"
        raise InputError(f"the files of {empty} hold no document{left_out}")


def _hold_out_tails(folder: Path, buckets: _Buckets, options: Options) -> str:
    """Give the validation split the last `val_fraction` of every training bucket's bytes, cutting a document where it falls.

    Memory is bounded by a bucket. Returns the sentence that says so. InputError for a text that is too short.
    """
    counted = f"{buckets.count} document" + "s" * (buckets.count != 1)
    for name in [name for name in buckets.names if name.startswith("val_")]:  # what the hash had held out comes back
        for key, raw in read_records(folder / name):
            with open(folder / buckets.bucket("train", key), "ab") as file:
                write_record(file, key, raw)
        (folder / name).write_bytes(b"")
    # One bucket after the other. Which bytes are held out follows from the sorted records, and so from content and seed.
    held = kept = 0
    for name in [name for name in buckets.names if name.startswith("train_")]:
        records = sorted(read_records(folder / name))
        left = -int(-options.val_fraction * sum(len(raw) for _, raw in records) // 1)  # rounded up: of 3 bytes, one
        rest: list[tuple[bytes, bytes]] = []
        for key, raw in reversed(records):
            start = _tail_start(raw, left) if left else len(raw)
            if raw[start:]:
                with open(folder / buckets.bucket("val", key), "ab") as file:
                    write_record(file, key, raw[start:])
            if raw[:start] or not raw:
                rest.append((key, raw[:start]))
            held, kept, left = held + len(raw) - start, kept + start, max(0, left - (len(raw) - start))
        unfinished = folder / f"{name}.tmp"
        with open(unfinished, "wb") as file:
            for key, raw in rest:
                write_record(file, key, raw)
        os.replace(unfinished, folder / name)
    if not held or not kept:
        raise InputError(
            f"the {'train' if held else 'val'} split would be empty: a val_fraction of {options.val_fraction:g} of {counted}, "
            f"{held + kept} bytes in all; give more text or another --val-fraction"
        )
    return (
        f"validation: {counted} {'is' if buckets.count == 1 else 'are'} too few to hold some out by their hash, so the tail of "
        f"each shard is held out, {sized(held)} of {sized(held + kept)}; a document that is cut there has a part in both"
    )


def _tail_start(raw: bytes, size: int) -> int:
    """Where the last `size` bytes of a text begin, or up to half as many before, at the beginning of a line or word."""
    return 0 if size >= len(raw) else cut_point(raw, len(raw) - size, back=size // 2)


def write_record(file: BinaryIO, key: bytes, raw: bytes) -> None:
    file.write(RECORD.pack(key, len(raw)) + raw)


def read_records(path: Path) -> Iterator[tuple[bytes, bytes]]:
    with open(path, "rb") as file:
        while header := file.read(RECORD.size):
            key, size = RECORD.unpack(header)
            yield key, file.read(size)


def read_bucket(path: Path) -> list[bytes]:
    """The texts of a bucket in the order of the shuffle."""
    return [raw for _, raw in sorted(read_records(path))]


def _fraction(digest: bytes) -> float:
    """A digest as a number in [0, 1): its first 53 bits, big-endian, so that buckets are ranges of sort keys."""
    return (int.from_bytes(digest[:8], "big") >> 11) / (1 << 53)
