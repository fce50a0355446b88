"""GPT-2's layout of a byte-level BPE, a file of merges with or without its vocabulary, as a tokenizer.json.

The layout: https://github.com/openai/gpt-2, vocab.bpe and encoder.json; Hugging Face calls them merges.txt and vocab.json.
A line of merges names two pieces that become one; bytes are written as printable characters.
"""

from __future__ import annotations

import json
from typing import Any

from configs.errors import InputError

# Bytes that stand for themselves, in the order of their ids; the others follow and are written from U+0100 on.
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
OTHERS = [byte for byte in range(256) if byte not in PRINTABLE]
ALPHABET = [chr(byte) for byte in PRINTABLE] + [chr(256 + place) for place in range(len(OTHERS))]


def tokenizer_json(merges: bytes, vocabulary: bytes | None, end: str) -> tuple[bytes, int]:
    """tokenizer.json and the id of `end`, the token that ends a document. InputError for files of another layout.

    Without a `vocabulary` (token → id, JSON) the ids are those that GPT-2's own has: bytes, merges, end.
    """
    pairs = _read_merges(merges)
    made = [*ALPHABET, *(left + right for left, right in pairs)]
    if vocabulary is None:
        ids = {token: index for index, token in enumerate([*made, end])}
    else:
        ids = _read_vocabulary(vocabulary)
        if missing := [token for token in made if token not in ids]:
            raise InputError(f"the vocabulary lacks {len(missing)} tokens that the merges make, first {missing[0]!r}")
        if end not in ids:
            raise InputError(f"the vocabulary has no token {end!r} to end a document; name another with --eot")
    # Written by hand and not by the package, whose releases may write other bytes: the file's hash is part of the data.
    special = {"id": ids[end], "content": end, "special": True}
    special |= dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    bytewise: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model: dict[str, Any] = {"type": "BPE", "dropout": None, "unk_token": None, "fuse_unk": False}
    model |= {
        "byte_fallback": False,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "ignore_merges": False,
    }
    model |= {"vocab": ids, "merges": [list(pair) for pair in pairs]}
    whole: dict[str, Any] = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [special]}
    whole |= {
        "normalizer": None,
        "pre_tokenizer": bytewise,
        "post_processor": None,
        "decoder": bytewise,
        "model": model,
    }
    return json.dumps(whole, ensure_ascii=False).encode(), ids[end]


def _read_merges(content: bytes) -> list[tuple[str, str]]:
    """The pairs, in order. InputError names the first line that is none, or joins what no line before it made."""
    try:
        lines = content.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"not a file of merges: not UTF-8 (byte {error.start})") from None
    pairs: list[tuple[str, str]] = []
    pieces = set(ALPHABET)
    for number, line in enumerate(lines, 1):
        if (number == 1 and line.startswith("#version")) or (number == len(lines) and not line):
            continue
        left, space, right = line.partition(" ")
        if not (space and left in pieces and right in pieces) or left + right in pieces:
            raise InputError(
                f"not a file of merges of GPT-2's layout: line {number} is {line[:40]!r}; expected are two pieces, each a byte's "
                "character or made by a line before, that make a new one"
            )
        pairs.append((left, right))
        pieces.add(left + right)
    if not pairs:
        raise InputError("not a file of merges: it has no line")
    return pairs


def _read_vocabulary(content: bytes) -> dict[str, int]:
    """Token → id. InputError where it is anything else, or two tokens share an id."""
    try:
        ids = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the vocabulary is not JSON: {str(error)[:200]}") from None
    if not isinstance(ids, dict) or not all(type(value) is int and value >= 0 for value in ids.values()):
        raise InputError("the vocabulary is not one JSON object of tokens and their ids")
    if len(set(ids.values())) != len(ids):
        raise InputError("two tokens of the vocabulary have one id")
    return ids
