"""Adopt an existing nanoGPT pair, train.bin and val.bin (raw uint16), without copying a token."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from configs.errors import InputError
from data.adoption import (
    GPT2_EOT,
    GPT2_VOCAB,
    Found,
    Part,
    Vocabulary,
    adopt_files,
    asked,
    told_vocabulary,
)
from data.characters import FILE as CHARACTERS
from data.characters import Characters, read_meta
from data.llmc import begins_with_header
from data.lossless import Given
from data.manifest import Manifest


def adopt(
    folder: Path, out: Path, vocab_size: int | None, tokenizer: str | None = None, given: Given | None = None
) -> Manifest:
    """Prepared data in `out` whose shards are links to `folder`'s files.

    What the ids mean is told by `tokenizer` (gpt2, or the file of `given`), `vocab_size` or the folder's meta.pkl; without
    these it is guessed where the largest id is GPT-2's end of text. Raises InputError for missing or odd files, ids beyond
    the vocabulary, or where nothing tells what the vocabulary is.
    """
    paths = {split: (folder / f"{split}.bin").resolve() for split in ("train", "val")}
    for path in paths.values():
        if not path.is_file() or path.stat().st_size < 4 or path.stat().st_size % 2:
            raise InputError(
                f"{path} is missing, empty, or of odd size: nanogpt reads a folder's train.bin and val.bin of uint16"
            )
        if begins_with_header(path):
            raise InputError(f"{path} begins with the header of llm.c's token shards; --source llmc reads those")
    told = told_vocabulary(vocab_size, tokenizer, given) or _read_meta(folder, vocab_size)
    size = sum(path.stat().st_size for path in paths.values())
    origin = {"kind": "nanogpt", "folder": str(folder.resolve()), "files": 2, "bytes": size, "skipped": {}}
    splits = {split: [Part(path)] for split, path in paths.items()}
    found = Found(splits, "uint16", origin, asked(vocab_size, told, tokenizer), told)
    manifest = adopt_files(found, out, partial(_guess, folder, vocab_size))
    _warn_of_old(out, manifest)
    return manifest


def _read_meta(folder: Path, vocab_size: int | None) -> Vocabulary | None:
    """What the folder's meta.pkl says of the ids; None where the tokens themselves must tell."""
    if vocab_size is not None or not (folder / "meta.pkl").exists():
        return None
    meta, ground = read_meta(folder / "meta.pkl"), f"{folder / 'meta.pkl'}, read without running it"
    if isinstance(meta, Characters):
        return Vocabulary(meta.vocab_size, meta.describe(), ground, file=(CHARACTERS, meta.encoded()))
    return Vocabulary(meta, {"kind": "unknown"}, ground)


def _guess(folder: Path, vocab_size: int | None, largest: int) -> Vocabulary:
    """What the tokens tell. InputError where they tell nothing: data without end-of-text may be of any vocabulary."""
    if largest == GPT2_EOT:
        ground = f"guessed: the largest id is {GPT2_EOT}, GPT-2's <|endoftext|>"
        return Vocabulary(vocab_size or GPT2_VOCAB, {"kind": "gpt2"}, ground, GPT2_EOT)
    if vocab_size is not None:
        return Vocabulary(vocab_size, {"kind": "unknown"}, "--vocab-size")
    raise InputError(
        f"nothing tells what the ids of {folder} mean: the largest is {largest}, which is not GPT-2's <|endoftext|> "
        f"({GPT2_EOT}), and there is no meta.pkl; give --tokenizer gpt2 (or the tokenizer's file), "
        f"or --vocab-size ({largest + 1} or more)"
    )


def _warn_of_old(out: Path, done: Manifest) -> None:
    """Say of data from an older version that its documents' ends were guessed wrong."""
    if done.format == 1 and done.tokenizer.get("kind") == "unknown":
        print(
            f"{out} was adopted by an older version, which took the ordinary token {done.eot} for the end of text; "
            "its runs stay as they are; for new ones adopt it again with another --out"
        )
