"""The tokenizer that a command line names by a file or a folder, and the token that ends its documents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from configs.errors import InputError
from data.huggingface import FILE as JSON
from data.huggingface import GPT2Merges, HuggingFace, candidates, find_eot, read_spec
from data.lossless import EOT, Given, Tokenizer, are_same
from data.merges import tokenizer_json
from data.tokenizer import MODEL_FILE, SentencePiece, load_tokenizer
from record.files import read_regular

CONFIG = "tokenizer_config.json"
VOCABULARIES = {"merges.txt": "vocab.json", "vocab.bpe": "encoder.json"}  # merges → their vocabulary
SPLITS_AS_GPT2 = ("GPT2Tokenizer", "GPT2TokenizerFast")  # classes whose merges.txt is read with GPT-2's pattern


def read_gpt2(merges: Path) -> GPT2Merges:
    """GPT-2's tokenizer of --merges. InputError where that file is another's, or missing."""
    if merges.is_dir():
        found = [merges / name for name in VOCABULARIES if (merges / name).is_file()]
        merges = found[0] if found else merges
    try:
        return GPT2Merges(_read(merges, "--merges"))
    except InputError as error:
        raise InputError(_at(f"--merges {merges}", error)) from None


def read_named(path: Path, eot: str | None) -> tuple[Given, str]:
    """The tokenizer of --tokenizer PATH, and a sentence on what was taken; `eot`: the token of --eot.

    InputError where there is none, it is not lossless, or nothing tells which of its tokens ends a document.
    """
    file = _file_of(path)
    try:
        if file.suffix == ".json":
            return _of_json(file, eot)
        if file.name in VOCABULARIES or file.suffix == ".bpe":
            return _of_merges(file, eot)
        if eot is not None:
            raise InputError("a SentencePiece model names its own end of text: leave --eot out")
        return SentencePiece(_read(file, "--tokenizer")), ""
    except InputError as error:
        raise InputError(_at(f"--tokenizer {file}", error)) from None


def tokenizer_in(folder: Path) -> Given | None:
    """The tokenizer in a model's folder; None where there is none. InputError for one that does not give a text back."""
    if not folder.is_dir() or not any((folder / name).is_file() for name in (JSON, *VOCABULARIES)):
        return None
    try:
        return read_named(folder, None)[0]
    except InputError as error:
        raise InputError(f"the tokenizer of {folder} cannot be used: {error}") from None


def check_beside(folder: Path, data: Path, described: dict[str, Any]) -> str:
    """What is known of the tokens of prepared data to a model's folder, in a sentence; `described`: of the data's manifest.

    InputError where the tokenizer in the folder gives other ids than the data's.
    """
    try:
        own = tokenizer_in(folder)
        theirs = load_tokenizer(data, described) if own is not None else None
    except InputError as error:
        return f"whether {folder} was made with the tokens of {data} is not known: {error}"
    if own is None or not hasattr(theirs, "encode"):
        return f"{folder} has no tokenizer beside it: the tokens of {data} are taken for its own"
    if not are_same(own, cast(Tokenizer, theirs)):
        raise InputError(
            f"{folder} has another tokenizer than the data in {data}: its ids mean something else to these weights; prepare the "
            f"data with --tokenizer {folder}"
        )
    return f"{folder} and {data} have one tokenizer"


def _of_json(file: Path, eot: str | None) -> tuple[Given, str]:
    """A tokenizer.json, with the end of text of --eot, of tokenizer_config.json beside it, or <|endoftext|>."""
    content = _read(file, "--tokenizer")
    spec = read_spec(content)
    end, ground = _end_of(file, eot)
    found = find_eot(content, end)
    if found is None:
        wanted = f"it has no token {end!r}, which {ground} names" if end else f"it has no token {EOT}"
        raise InputError(f"{wanted}, to end a document; {candidates(spec)}: name one with --eot TOKEN")
    tokenizer = HuggingFace(content, found)
    return tokenizer, _said(file, tokenizer, end or EOT, ground)


def _of_merges(file: Path, eot: str | None) -> tuple[Given, str]:
    """A file of merges in GPT-2's layout, and the vocabulary beside it; without one, the ids are as GPT-2's own."""
    config = _config(file)
    kind = config.get("tokenizer_class")
    if kind not in (None, *SPLITS_AS_GPT2) or config.get("add_prefix_space"):
        raise InputError(
            f"{CONFIG} beside it says {kind or 'add_prefix_space'}: only GPT-2's way to split a text is known for merges; give "
            "the tokenizer.json"
        )
    end, ground = _end_of(file, eot)
    beside = file.with_name(VOCABULARIES.get(file.name, "encoder.json"))
    vocabulary = _read(beside, "the vocabulary") if beside.exists() else None
    content, found = tokenizer_json(_read(file, "--tokenizer"), vocabulary, end or EOT)
    tokenizer = HuggingFace(content, found)
    where = f"its ids are of {beside.name}" if vocabulary is not None else "its ids are counted as GPT-2's"
    return tokenizer, f"{_said(file, tokenizer, end or EOT, ground)}; {where}, and text is split by GPT-2's pattern"


def _end_of(file: Path, eot: str | None) -> tuple[str | None, str]:
    """The token that ends a document, and what says so; None where nothing does."""
    if eot is not None:
        return eot, "--eot"
    token = _config(file).get("eos_token")
    token = token.get("content") if isinstance(token, dict) else token
    return (token, f"{CONFIG} beside it") if isinstance(token, str) and token else (None, "its name")


def _config(file: Path) -> dict[str, Any]:
    """tokenizer_config.json beside a file; empty where there is none. InputError for one that is no JSON object."""
    path = file.with_name(CONFIG)
    if not path.exists():
        return {}
    try:
        config = json.loads(_read(path, "the configuration"))
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise InputError(f"{path} is not one JSON object; mend it, or move it away and give --eot TOKEN")
    return config


def _file_of(path: Path) -> Path:
    """The tokenizer's file in a folder, or the file itself. InputError where there is none."""
    if not path.exists():
        raise InputError(f"--tokenizer {path} is neither bpe, unigram, gpt2 nor a file")
    if not path.is_dir():
        return path
    for name in (JSON, *VOCABULARIES, MODEL_FILE):
        if (path / name).is_file():
            return path / name
    raise InputError(f"--tokenizer {path} is a folder without {JSON}, {', '.join(VOCABULARIES)} and {MODEL_FILE}")


def _read(path: Path, what: str) -> bytes:
    try:
        return read_regular(path)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{what} {path} is not there") from None


def _at(place: str, error: InputError) -> str:
    return f"{place}: {error}"


def _said(file: Path, tokenizer: HuggingFace, end: str, ground: str) -> str:
    """What was taken, for the user."""
    return f"tokenizer {file.name}: {tokenizer.vocab_size:,} ids, a document ends with {end!r} ({tokenizer.eot}), by {ground}"
