"""Tokenizers of Hugging Face, by the optional package tokenizers: a tokenizer.json, or GPT-2's own merges.

The file may hold any tokenizer. So it is tried: on a hard text when it is read, and on every document when it is used.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, ClassVar

from configs.errors import InputError
from data.lossless import EOT, HARD_TEXT, difference
from data.merges import tokenizer_json

if TYPE_CHECKING:
    import tokenizers

FILE = "tokenizer.json"
GPT2_FILE = "vocab.bpe"
GPT2_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"  # of OpenAI's vocab.bpe
LARGEST = 256 << 20  # bytes: tokenizer.json of a vocabulary of 262,144 has 33 MB
SHOWN = 12  # special tokens that a message names


class HuggingFace:
    """A tokenizer.json whose token `eot` ends a document.

    InputError for a file that is none, one that draws its ids at random, does not give a text back, or takes words of a text
    for its end; and where the package is missing.
    """

    file: ClassVar[str] = FILE

    def __init__(self, content: bytes, eot: int) -> None:
        self.content, self.eot = content, eot
        spec = read_spec(content)
        self._tokenizer = _load(content)
        # What looks like a special token in a text is text, as with every other tokenizer here.
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.vocab_size: int = max(token_ids(self._tokenizer).values(), default=-1) + 1
        end = self._tokenizer.id_to_token(eot)
        if end is None:
            raise InputError(f"the tokenizer has no token {eot} to end a document; {candidates(spec)}")
        if spec["model"].get("dropout"):
            raise InputError(
                f"the tokenizer drops merges at random (dropout {spec['model']['dropout']}), so a text has no ids of its own; "
                "set model.dropout to null in tokenizer.json"
            )
        for text in (HARD_TEXT, "", "A", "Aß ﬁ①", f"a{end}b"):  # upper case and ligatures: what normalizers change
            try:
                self.check(text, self.encode(text))
            except InputError as error:
                raise InputError(
                    f"{error}. It has {_parts(spec)}; give one of byte-level BPE without a normalizer"
                ) from None

    def encode(self, text: str) -> list[int]:
        """Token ids of one document, without its end-of-text token."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: list[int]) -> str:
        """The text of token ids. Bytes cut inside a character decode to U+FFFD."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False)
        return text

    def check(self, text: str, ids: list[int]) -> None:
        """InputError where the `ids` of a text hold the end of text, or do not give the text back."""
        if self.eot in ids:
            end = self._tokenizer.id_to_token(self.eot)
            raise InputError(
                f"the tokenizer takes the words {end!r} in a text for the end of a document: it must be a special token"
            )
        if lost := difference(text, self.decode(ids)):
            raise InputError(f"the tokenizer is not lossless: in the text that begins {text[:20]!r}, {lost}")

    def token_bytes(self) -> list[int]:
        """How many bytes of text each token stands for; 0 of special ones. InputError where its decoder is not byte-level."""
        spec = read_spec(self.json())
        if (spec.get("decoder") or {}).get("type") != "ByteLevel":
            raise InputError(
                "the bytes of a token are known of byte-level tokenizers only, and this has another decoder"
            )
        lengths = [0] * self.vocab_size
        for token, index in token_ids(self._tokenizer).items():
            lengths[index] = len(token)  # a character stands for a byte
        for added in spec["added_tokens"]:
            lengths[added["id"]] = 0 if added.get("special") else len(added["content"].encode())
        return lengths

    def json(self) -> bytes:
        """It as tokenizer.json."""
        return self.content

    def describe(self) -> dict[str, Any]:
        digest = hashlib.sha256(self.content).hexdigest()
        return {"kind": "huggingface", "file": FILE, "sha256": digest, "eot": self.eot}


class GPT2Merges(HuggingFace):
    """GPT-2's own BPE from its file of merges, the same as tiktoken's gpt2, without a network.

    Its 50,257 ids follow from the merges: the 256 bytes in GPT-2's order, the merges in theirs, the end of text.
    """

    file: ClassVar[str] = GPT2_FILE

    def __init__(self, merges: bytes) -> None:
        digest = hashlib.sha256(merges).hexdigest()
        if digest != GPT2_SHA256:
            raise InputError(
                f"these are not GPT-2's merges: their SHA-256 is {digest[:16]}…, that of OpenAI's vocab.bpe, which is also "
                f"merges.txt of the model gpt2, is {GPT2_SHA256[:16]}…; name a tokenizer of your own with --tokenizer FILE"
            )
        self._json, eot = tokenizer_json(merges, None, EOT)
        super().__init__(self._json, eot)
        self.content = merges

    def json(self) -> bytes:
        return self._json

    def describe(self) -> dict[str, Any]:
        return {"kind": "gpt2"}  # as through tiktoken: the same ids are the same data


def read_spec(content: bytes) -> dict[str, Any]:
    """tokenizer.json as a dict with its model and its added tokens. InputError for anything else."""
    if len(content) > LARGEST:
        raise InputError(f"not a tokenizer.json: {len(content):,} bytes, {LARGEST:,} is the most")
    try:
        spec = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not a tokenizer.json: {str(error)[:200]}") from None
    if not isinstance(spec, dict) or not isinstance(spec.get("model"), dict):
        what = ", ".join(list(map(str, spec))[:5]) if isinstance(spec, dict) else type(spec).__name__
        raise InputError(f"not a tokenizer.json: it has no model (found: {what[:200]})")
    added = spec.get("added_tokens")
    if not isinstance(added, list) or not all(isinstance(token, dict) and "content" in token for token in added):
        raise InputError("not a tokenizer.json: it has no list added_tokens")
    return spec


def find_eot(content: bytes, token: str | None) -> int | None:
    """The id of a token of tokenizer.json; of <|endoftext|> where None is asked for. None: it has no such token."""
    ids: dict[str, int] = token_ids(_load(content))
    return ids.get(EOT if token is None else token)


def candidates(spec: dict[str, Any]) -> str:
    """A sentence on the tokens that may end a document: the special ones."""
    names = [str(token["content"]) for token in spec["added_tokens"] if token.get("special")]
    shown = ", ".join(map(repr, names[:SHOWN])) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
    return f"its special tokens are {shown}" if names else "it has no special token at all"


def token_ids(tokenizer: tokenizers.Tokenizer) -> dict[str, int]:
    """Every token and its id, added ones included."""
    ids: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
    return ids


def _load(content: bytes) -> tokenizers.Tokenizer:
    """The tokenizer. InputError where the package is missing or does not read the file."""
    try:
        import tokenizers
    except ImportError:
        raise InputError("a tokenizer.json is read by the package tokenizers: pip install tokenizers") from None
    try:
        return tokenizers.Tokenizer.from_buffer(content)
    except Exception as error:  # the package raises nothing more special
        raise InputError(f"the package tokenizers does not read it: {str(error)[:200]}") from None


def _parts(spec: dict[str, Any]) -> str:
    """What a tokenizer is made of, where it may lose text."""
    kinds = {name: spec.get(name) for name in ("model", "normalizer", "pre_tokenizer", "decoder")}
    return ", ".join(f"{name} {part.get('type') if isinstance(part, dict) else part}" for name, part in kinds.items())
