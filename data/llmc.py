"""Adopt token shards of llm.c and modded-nanogpt, without copying a token.

A file is a header of 256 little-endian int32 (magic, version, number of tokens, zeros) and the tokens. Its name has the split and,
of several, a number: fineweb_train_000001.bin, fineweb_val_000000.bin. The format: https://github.com/karpathy/llm.c,
dev/data/data_common.py. There an end of text stands before each document.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

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
from data.lossless import Given
from data.manifest import Manifest

HEADER = 256 * 4  # bytes
NAME = re.compile(r"(?P<set>.*?)_?(?P<split>train|val)(?:_(?P<number>\d+))?\.bin")
EXPECTED = "NAME_train_000001.bin, … and NAME_val_000000.bin"


@dataclass(frozen=True)
class Form:
    """A version of the format: what its tokens are, and of which vocabulary."""

    dtype: str
    version: int
    vocabulary: Vocabulary

    def guess(self, folder: Path, vocab_size: int | None, largest: int) -> Vocabulary:
        """What the header and the largest id tell. The header alone tells nothing: shards of other vocabularies bear it too.

        InputError where no id is the end of text of the header's vocabulary, and no size is given.
        """
        usual = self.vocabulary
        assert usual.end is not None
        if usual.end <= largest < usual.size:  # an id behind them all is of another vocabulary
            return replace(usual, size=max(usual.size, vocab_size or 0))
        if vocab_size is not None:
            return Vocabulary(vocab_size, {"kind": "unknown"}, "--vocab-size")
        raise InputError(
            f"nothing tells what the ids of {folder} mean: shards with this header usually have the end of text {usual.end}, and "
            f"here the largest id is {largest}; give --tokenizer FILE, the tokenizer they are of, or --vocab-size "
            f"({largest + 1} or more)"
        )


FORMS = {
    20240520: Form("uint16", 1, Vocabulary(GPT2_VOCAB, {"kind": "gpt2"}, "as the header and the ids say", GPT2_EOT)),
    # Llama 3 has 128,256 ids; its documents begin with <|begin_of_text|>.
    20240801: Form(
        "uint32", 7, Vocabulary(128256, {"kind": "unknown"}, "Llama 3's, as the header and the ids say", 128000)
    ),
}


def adopt_shards(
    folder: Path, out: Path, vocab_size: int | None, tokenizer: str | None = None, given: Given | None = None
) -> Manifest:
    """Prepared data in `out` whose shards are links to `folder`'s, train and val each in the order of their numbers.

    The header and the largest id tell what the ids mean, unless `tokenizer` does. Raises InputError for another header, a length
    that disagrees with it, forms that are mixed, a number that is missing, a split without shards, ids beyond the vocabulary.
    """
    splits = find_shards(folder)
    paths = [path for split in splits.values() for path in split]
    forms = {path: _read_form(path) for path in paths}
    kinds = {form.dtype: path for path, form in forms.items()}
    if len(kinds) > 1:
        which = ", ".join(f"{path.name} of {dtype}" for dtype, path in sorted(kinds.items()))
        raise InputError(
            f"the shards of {folder} are of different kinds ({which}); put each kind into a folder of its own"
        )
    form = forms[paths[0]]
    told = told_vocabulary(vocab_size, tokenizer, given)
    size = sum(path.stat().st_size for path in paths)
    origin = {"kind": "llmc", "folder": str(folder.resolve()), "files": len(paths), "bytes": size, "skipped": {}}
    options = asked(vocab_size, told, tokenizer)
    parts = {split: [Part(path.resolve(), HEADER) for path in found] for split, found in splits.items()}
    # The token that begins a document is taken for the end of the one before: data here has one token that ends documents.
    found = Found(parts, form.dtype, origin, options, told, form.vocabulary.end)
    return adopt_files(found, out, partial(form.guess, folder, vocab_size))


def find_shards(folder: Path) -> dict[str, list[Path]]:
    """The shards of each split in the order of their numbers. InputError where one is missing, or they are of several sets."""
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; llmc reads a folder of {EXPECTED}")
    matches = {
        path: match for path in sorted(folder.glob("*.bin")) if (match := NAME.fullmatch(path.name)) and path.is_file()
    }
    sets = sorted({match["set"] for match in matches.values()})
    if len(sets) > 1:
        raise InputError(
            f"{folder} holds shards of several sets ({', '.join(sets)}); put each into a folder of its own"
        )
    splits = {}
    for split, word in (("train", "training"), ("val", "validation")):
        numbered = {path: match["number"] for path, match in matches.items() if match["split"] == split}
        if not numbered:
            raise InputError(f"{folder} has no {word} shard, *_{split}_*.bin; llmc reads a folder of {EXPECTED}")
        splits[split] = _in_order(folder, split, numbered)
    return splits


def _in_order(folder: Path, split: str, numbered: dict[Path, str | None]) -> list[Path]:
    """Shards by their numbers, which begin at 0 or 1 and have no gap; one alone needs no number."""
    if len(numbered) == 1 and None in numbered.values():
        return list(numbered)
    by_number = {int(number): path for path, number in numbered.items() if number is not None}
    if len(by_number) < len(numbered):
        raise InputError(
            f"{folder} has {split} shards without a number, or two of one: {', '.join(p.name for p in numbered)}"
        )
    first = (
        min(by_number) if min(by_number) < 2 else 1
    )  # llm.c's number 0 is for validation, and training goes on from it
    missing = [number for number in range(first, max(by_number)) if number not in by_number]
    if missing:
        shown = ", ".join(map(str, missing[:8])) + (", …" if len(missing) > 8 else "")
        raise InputError(
            f"{folder} has no {split} shard of number {shown}, and has number {max(by_number)}; fetch what is missing, or put the "
            "shards up to there into a folder of their own"
        )
    return [by_number[number] for number in sorted(by_number)]


def begins_with_header(path: Path) -> bool:
    """Whether a file's first number is that of a token shard."""
    with open(path, "rb") as file:
        return int.from_bytes(file.read(4), "little") in FORMS


def _read_form(path: Path) -> Form:
    """What the header of a shard says. InputError where it says anything that is not known, or not the file's length."""
    with open(path, "rb") as file:
        raw = file.read(HEADER)
    magic, version, tokens = np.frombuffer(raw.ljust(12, b"\0")[:12], "<i4").tolist()
    form = FORMS.get(magic)
    if form is None or len(raw) < HEADER:
        known = " or ".join(map(str, FORMS))
        raise InputError(
            f"{path} does not begin with the header of a token shard: 1,024 bytes, the first number {known}; found are "
            f"{len(raw):,} bytes and {magic}. Raw tokens named train.bin and val.bin are for --source nanogpt"
        )
    if version != form.version:
        raise InputError(f"{path} is of version {version}; known is {form.version} of the number {magic}")
    size, expected = path.stat().st_size, HEADER + tokens * np.dtype(form.dtype).itemsize
    if tokens < 1 or size != expected:
        raise InputError(
            f"{path} has {size:,} bytes, and its header says {tokens:,} tokens of {form.dtype}, which are {expected:,}: it is "
            "damaged or was not fetched whole; fetch it again"
        )
    return form
