"""Adopt an existing nanoGPT pair, train.bin and val.bin (raw uint16), without copying a token."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from configs.errors import InputError
from data.characters import FILE as CHARACTERS
from data.characters import Characters, read_meta
from data.manifest import FILE, Manifest, Split, read_manifest
from data.output import building, prepared_already, replace_file
from data.shards import Shard, sha256_of
from data.tokenizer import MODEL_FILE, SentencePiece

GPT2_VOCAB, GPT2_EOT = 50257, 50256
BLOCK = 1 << 26  # bytes read at a time


@dataclass(frozen=True)
class Vocabulary:
    """What the ids mean. `end`: the id that ends a document, where it occurs; `ground`: how this is known."""

    size: int
    tokenizer: dict[str, Any]
    ground: str
    end: int | None = None
    file: tuple[str, bytes] | None = None  # of the tokenizer, to stand beside the tokens


def adopt(folder: Path, out: Path, vocab_size: int | None, tokenizer: str | None = None) -> Manifest:
    """Prepared data in `out` whose shards are links to `folder`'s files.

    What the ids mean is told by `tokenizer` (gpt2, or a SentencePiece model's file), `vocab_size` or the folder's
    meta.pkl; without these it is guessed where the largest id is GPT-2's end of text. One pass over the tokens hashes
    them and finds the documents' ends and the largest id. Raises InputError for missing or odd files, ids beyond the
    vocabulary, or where nothing tells what the vocabulary is.
    """
    paths = {split: (folder / f"{split}.bin").resolve() for split in ("train", "val")}
    for path in paths.values():
        if not path.is_file() or path.stat().st_size < 4 or path.stat().st_size % 2:
            raise InputError(
                f"{path} is missing, empty, or of odd size: nanogpt reads a folder's train.bin and val.bin of uint16"
            )
    told = _told(folder, vocab_size, tokenizer)
    size = sum(path.stat().st_size for path in paths.values())
    origin = {"kind": "nanogpt", "folder": str(folder.resolve()), "files": 2, "bytes": size, "skipped": {}}
    options: dict[str, Any] = {"vocab_size": vocab_size} | ({"tokenizer": told.tokenizer} if told and tokenizer else {})
    request = {"source": origin, "options": options}
    done = prepared_already(out, request)
    if done is not None:
        _warn_of_old(out, done)
        return done
    with building(out, request) as work:
        # Ends are looked for before it is sure what the ids mean: a second pass over the tokens would cost as much again.
        scans = {split: _scan(path, told.end if told else GPT2_EOT) for split, path in paths.items()}
        largest = max(top for _, top, _ in scans.values())
        vocabulary = told or _guess(folder, largest, vocab_size)
        if largest >= vocabulary.size:
            raise InputError(
                f"{folder} holds token id {largest}, outside the vocabulary of {vocabulary.size} ({vocabulary.ground}); "
                "set --vocab-size"
            )
        # Without a single end of text in the data nobody can say where a document ends, whatever the vocabulary allows.
        ended = vocabulary.end is not None and any(len(ends) for _, _, ends in scans.values())
        splits = {
            split: _split(work, split, path, scans[split][0], scans[split][2] if ended else scans[split][2][:0])
            for split, path in paths.items()
        }
        if vocabulary.file is not None:
            replace_file(work / vocabulary.file[0], vocabulary.file[1])
        manifest = Manifest(
            source=origin,
            options=options,
            tokenizer=vocabulary.tokenizer,
            vocab_size=vocabulary.size,
            eot=vocabulary.end if ended else None,
            dtype="uint16",
            train=splits["train"],
            val=splits["val"],
        ).with_digest()
        replace_file(work / FILE, (manifest.model_dump_json(indent=2) + "\n").encode())
    print(_said(vocabulary, manifest))
    written = read_manifest(out)
    assert written is not None
    return written


def _told(folder: Path, vocab_size: int | None, tokenizer: str | None) -> Vocabulary | None:
    """What the command line or the folder says of the ids; None where the tokens themselves must tell."""
    if tokenizer == "gpt2":
        if (vocab_size or GPT2_VOCAB) < GPT2_VOCAB:
            raise InputError(
                f"--vocab-size {vocab_size} is less than the {GPT2_VOCAB} of --tokenizer gpt2; leave it out"
            )
        return Vocabulary(vocab_size or GPT2_VOCAB, {"kind": "gpt2"}, "--tokenizer gpt2", GPT2_EOT)
    if tokenizer is not None:
        if not Path(tokenizer).is_file():
            raise InputError(
                f"--tokenizer {tokenizer}: for nanogpt's tokens gpt2, or the SentencePiece model they are of"
            )
        model = SentencePiece(Path(tokenizer).read_bytes())
        if vocab_size not in (None, model.vocab_size):
            raise InputError(f"--vocab-size {vocab_size}: the model {tokenizer} has {model.vocab_size}; leave it out")
        ground = f"--tokenizer {tokenizer}"
        return Vocabulary(model.vocab_size, model.describe(), ground, model.eot, (MODEL_FILE, model.model))
    if vocab_size is not None or not (folder / "meta.pkl").exists():
        return None
    meta, ground = read_meta(folder / "meta.pkl"), f"{folder / 'meta.pkl'}, read without running it"
    if isinstance(meta, Characters):
        return Vocabulary(meta.vocab_size, meta.describe(), ground, file=(CHARACTERS, meta.encoded()))
    return Vocabulary(meta, {"kind": "unknown"}, ground)


def _guess(folder: Path, largest: int, vocab_size: int | None) -> Vocabulary:
    """What the tokens tell. InputError where they tell nothing: data without end-of-text may be of any vocabulary."""
    if largest == GPT2_EOT:
        ground = f"guessed: the largest id is {GPT2_EOT}, GPT-2's <|endoftext|>"
        return Vocabulary(vocab_size or GPT2_VOCAB, {"kind": "gpt2"}, ground, GPT2_EOT)
    if vocab_size is not None:
        return Vocabulary(vocab_size, {"kind": "unknown"}, "--vocab-size")
    raise InputError(
        f"nothing tells what the ids of {folder} mean: the largest is {largest}, which is not GPT-2's <|endoftext|> "
        f"({GPT2_EOT}), and there is no meta.pkl; give --tokenizer gpt2 (or the SentencePiece model), "
        f"or --vocab-size ({largest + 1} or more)"
    )


def _said(vocabulary: Vocabulary, manifest: Manifest) -> str:
    """A line that tells the user what the ids were taken for, and why."""
    line = f"vocabulary {manifest.vocab_size}, tokenizer {vocabulary.tokenizer['kind']} ({vocabulary.ground})"
    if manifest.eot is not None:
        return f"{line}; end of text {manifest.eot}"
    return (
        f"{line}; no end of text: where a document ends cannot be seen, so data.cross_document_attention false and "
        "data.order documents are refused"
    )


def _warn_of_old(out: Path, done: Manifest) -> None:
    """Say of data from an older version that its documents' ends were guessed wrong."""
    if done.format == 1 and done.tokenizer.get("kind") == "unknown":
        print(
            f"{out} was adopted by an older version, which took the ordinary token {done.eot} for the end of text; "
            "its runs stay as they are; for new ones adopt it again with another --out"
        )


def _split(work: Path, split: str, path: Path, digest: str, ends: NDArray[np.uint64]) -> Split:
    """Link one file, and write its documents' ends."""
    tokens = path.stat().st_size // 2
    if not len(ends) or ends[-1] != tokens:  # a last document without end-of-text
        ends = np.append(ends, np.uint64(tokens))
    docs = work / f"{split}_docs.bin"
    replace_file(docs, ends.astype("<u8").tobytes())
    link = work / f"{split}_00000.bin"
    link.unlink(missing_ok=True)
    os.symlink(path, link)
    return Split(
        tokens=tokens,
        documents=len(ends),
        shards=[Shard(link.name, tokens, digest)],
        docs_file=docs.name,
        docs_sha256=sha256_of(docs),
        sha256=digest,
    )


def _scan(path: Path, end: int | None) -> tuple[str, int, NDArray[np.uint64]]:
    """SHA-256, largest id, and the positions after each token `end`, of a file of uint16."""
    digest, largest, position = hashlib.sha256(), 0, 0
    ends = [np.empty(0, np.uint64)]
    with open(path, "rb") as file, tqdm(total=path.stat().st_size, desc=path.name, unit="B", unit_scale=True) as bar:
        while block := file.read(BLOCK):
            digest.update(block)
            tokens = np.frombuffer(block, "<u2")
            largest = max(largest, int(tokens.max()))
            if end is not None:
                ends.append((np.flatnonzero(tokens == end) + position + 1).astype(np.uint64))
            position += len(tokens)
            bar.update(len(block))
    return digest.hexdigest(), largest, np.concatenate(ends)
