"""Adopt existing files of tokens as prepared data, without copying a token: what the ids mean, and where documents end."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from configs.errors import InputError
from data.lossless import Given
from data.manifest import FILE, Manifest, Split, read_manifest
from data.output import building, prepared_already, replace_file
from data.shards import Shard, sha256_of

GPT2_VOCAB, GPT2_EOT = 50257, 50256
BLOCK = 1 << 26  # bytes read at a time
Ends = NDArray[np.uint64]


@dataclass(frozen=True)
class Vocabulary:
    """What the ids mean. `end`: the id that stands between documents, where it occurs; `ground`: how this is known."""

    size: int
    tokenizer: dict[str, Any]
    ground: str
    end: int | None = None
    file: tuple[str, bytes] | None = None  # of the tokenizer, to stand beside the tokens


@dataclass(frozen=True)
class Part:
    """A file of tokens, behind `header_bytes` of something else."""

    path: Path
    header_bytes: int = 0

    def tokens(self, dtype: str) -> int:
        return (self.path.stat().st_size - self.header_bytes) // np.dtype(dtype).itemsize


@dataclass(frozen=True)
class Found:
    """Files of tokens to adopt: the parts of `train` and `val` in order; where they came from, and what was asked of them.

    `told`: what the ids mean; None where the tokens must tell, and `likely_end` is looked for.
    """

    splits: dict[str, list[Part]]
    dtype: str
    origin: dict[str, Any]
    options: dict[str, Any]
    told: Vocabulary | None
    likely_end: int | None = GPT2_EOT


def adopt_files(found: Found, out: Path, guess: Callable[[int], Vocabulary]) -> Manifest:
    """Prepared data in `out` whose shards are links to the files. `guess`: what the ids mean, by the largest of them.

    One pass over the tokens hashes them and finds the documents' ends and the largest id. InputError for ids beyond the
    vocabulary, and whatever `guess` raises.
    """
    request = {"source": found.origin, "options": found.options}
    done = prepared_already(out, request)
    if done is not None:
        return done
    with building(out, request) as work:
        # Ends are looked for before it is sure what the ids mean: a second pass over the tokens would cost as much again.
        end = found.told.end if found.told else found.likely_end
        scans = {split: _Scan(parts, found.dtype, end) for split, parts in found.splits.items()}
        largest = max(scan.largest for scan in scans.values())
        vocabulary = found.told or guess(largest)
        for scan in scans.values():
            if scan.largest >= vocabulary.size:
                raise InputError(
                    f"{scan.largest_in} holds token id {scan.largest}, outside the vocabulary of {vocabulary.size} "
                    f"({vocabulary.ground}); set --vocab-size"
                )
        # Without a single end of text in the data nobody can say where a document ends, whatever the vocabulary allows.
        ended = vocabulary.end is not None and any(len(scan.ends) for scan in scans.values())
        splits = {split: scan.link(work, split, ended) for split, scan in scans.items()}
        if vocabulary.file is not None:
            replace_file(work / vocabulary.file[0], vocabulary.file[1])
        manifest = Manifest(
            source=found.origin,
            options=found.options,
            tokenizer=vocabulary.tokenizer,
            vocab_size=vocabulary.size,
            eot=vocabulary.end if ended else None,
            dtype=found.dtype,
            train=splits["train"],
            val=splits["val"],
        ).with_digest()
        replace_file(work / FILE, (manifest.model_dump_json(indent=2) + "\n").encode())
    print(_said(vocabulary, manifest))
    written = read_manifest(out)
    assert written is not None
    return written


def told_vocabulary(vocab_size: int | None, tokenizer: str | None, given: Given | None) -> Vocabulary | None:
    """What the command line says of the ids, where it names a tokenizer; `given`: that of a file."""
    ground = f"--tokenizer {tokenizer}"
    if tokenizer == "gpt2":
        if (vocab_size or GPT2_VOCAB) < GPT2_VOCAB:
            raise InputError(
                f"--vocab-size {vocab_size} is less than the {GPT2_VOCAB} of --tokenizer gpt2; leave it out"
            )
        file = None if given is None else (given.file, given.content)
        return Vocabulary(vocab_size or GPT2_VOCAB, {"kind": "gpt2"}, ground, GPT2_EOT, file)
    if tokenizer is None:
        return None
    if given is None:
        raise InputError(f"{ground}: for tokens that are there gpt2, or the file of the tokenizer they are of")
    if vocab_size not in (None, given.vocab_size):
        raise InputError(f"--vocab-size {vocab_size}: the tokenizer {tokenizer} has {given.vocab_size}; leave it out")
    return Vocabulary(given.vocab_size, given.describe(), ground, given.eot, (given.file, given.content))


def asked(vocab_size: int | None, told: Vocabulary | None, tokenizer: str | None) -> dict[str, Any]:
    """The options of an adoption, as its manifest records them."""
    return {"vocab_size": vocab_size} | ({"tokenizer": told.tokenizer} if told and tokenizer else {})


def _said(vocabulary: Vocabulary, manifest: Manifest) -> str:
    """A line that tells the user what the ids were taken for, and why."""
    line = f"vocabulary {manifest.vocab_size}, tokenizer {vocabulary.tokenizer['kind']} ({vocabulary.ground})"
    if manifest.eot is not None:
        return f"{line}; end of text {manifest.eot}"
    return (
        f"{line}; no end of text: where a document ends cannot be seen, so data.cross_document_attention false and "
        "data.order documents are refused"
    )


class _Scan:
    """One pass over a split's parts: their hashes, the largest id and where it is, the positions after each token `end`."""

    def __init__(self, parts: list[Part], dtype: str, end: int | None) -> None:
        self.parts, self.dtype = parts, dtype
        self.largest, self.largest_in = -1, parts[0].path
        self.digests: list[str] = []
        self._whole = hashlib.sha256()
        ends = [np.empty(0, np.uint64)]
        self.tokens = 0
        size = sum(part.path.stat().st_size for part in parts)
        with tqdm(total=size, desc=parts[0].path.name, unit="B", unit_scale=True) as bar:
            for part in parts:
                ends += self._read(part, end, bar)
        self.ends: Ends = np.concatenate(ends)

    def _read(self, part: Part, end: int | None, bar: tqdm[Any]) -> list[Ends]:
        """The ends of one part, as positions in the split."""
        digest, ends = hashlib.sha256(), []
        with open(part.path, "rb") as file:
            digest.update(file.read(part.header_bytes))
            while block := file.read(BLOCK):
                digest.update(block)
                self._whole.update(block)
                tokens = np.frombuffer(block, np.dtype(self.dtype).newbyteorder("<"))
                if (largest := int(tokens.max())) > self.largest:
                    self.largest, self.largest_in = largest, part.path
                if end is not None:
                    ends.append((np.flatnonzero(tokens == end) + self.tokens + 1).astype(np.uint64))
                self.tokens += len(tokens)
                bar.update(len(block))
        self.digests.append(digest.hexdigest())
        return ends

    def link(self, work: Path, split: str, ended: bool) -> Split:
        """Link the files, and write the documents' ends."""
        ends = self.ends if ended else self.ends[:0]
        if not len(ends) or ends[-1] != self.tokens:  # a last document without end-of-text
            ends = np.append(ends, np.uint64(self.tokens))
        docs = work / f"{split}_docs.bin"
        replace_file(docs, ends.astype("<u8").tobytes())
        shards = []
        for index, (part, digest) in enumerate(zip(self.parts, self.digests, strict=True)):
            link = work / f"{split}_{index:05d}.bin"
            link.unlink(missing_ok=True)
            os.symlink(part.path, link)
            shards.append(Shard(link.name, part.tokens(self.dtype), digest, part.header_bytes))
        return Split(
            tokens=self.tokens,
            documents=len(ends),
            shards=shards,
            docs_file=docs.name,
            docs_sha256=sha256_of(docs),
            sha256=self._whole.hexdigest(),
        )
