"""Losses of transformers on any text: what each costs per token, and what per byte, with a standard error over windows.

The text is the validation split of prepared data, in windows that do not overlap. A model with the data's tokenizer sees the data's
tokens. For a model with another the text is decoded and encoded anew, and only bits per byte can be compared with others.

Shapes: n windows of T targets.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from configs.errors import InputError
from configs.windows import windows_in
from data.loader import inputs_and_targets, read_document_ends, spread_windows
from data.lossless import Tokenizer, are_same
from data.manifest import Manifest, read_manifest
from data.shards import TokenStream
from data.token_bytes import byte_lengths
from data.tokenizer import load_tokenizer
from model.gpt import GPT
from weights.source import Source

logger = logging.getLogger(__name__)

LOGITS = 1 << 26  # of one batch, at most: 256 MiB in float32


@dataclass(frozen=True)
class Text:
    """The validation split of prepared data in `folder`."""

    folder: Path
    manifest: Manifest

    @classmethod
    def of(cls, folder: Path) -> Text:
        """InputError where no prepared text lies."""
        manifest = read_manifest(folder)
        if manifest is None:
            raise InputError(f"--data {folder}: no prepared data of text lies there; `python -m data.prepare` makes it")
        return cls(folder, manifest)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """InputError where the data names none, or its file is gone."""
        return cast(Tokenizer, load_tokenizer(self.folder, self.manifest.tokenizer))

    @cached_property
    def tokens(self) -> NDArray[np.int64]:
        """All tokens of the split."""
        stream = TokenStream(self.folder, self.manifest.val.shards, self.manifest.dtype)
        tokens = np.empty(len(stream), np.int64)
        stream.read(0, len(stream), tokens)
        if tokens.max() >= self.manifest.vocab_size:  # where it is, is looked up only now
            stream.check_ids(0, len(stream), self.manifest.vocab_size)
        return tokens

    def encoded_by(self, tokenizer: Tokenizer) -> NDArray[np.int64]:
        """The same documents in another tokenizer's tokens, each ended by its end-of-text token."""
        ends = read_document_ends(self.folder, self.manifest.val).astype(np.int64)
        documents = np.split(self.tokens, ends[:-1])
        encoded: list[NDArray[np.int64]] = []
        for document in tqdm(documents, desc="encode", unit=" documents", leave=False, disable=len(documents) < 100):
            has_end = len(document) and document[-1] == self.manifest.eot
            text = self.tokenizer.decode((document[:-1] if has_end else document).tolist())
            encoded.append(np.array([*tokenizer.encode(text), tokenizer.eot], np.int64))
        return np.concatenate(encoded)


@dataclass(frozen=True)
class Losses:
    """Of each window the nats of its targets, and their bytes, (n,) each; `targets`: how many a window has.

    `bytes` is None where the tokenizer is not known to say them; `is_own`: the tokens are the data's own.
    """

    nats: NDArray[np.float64]
    targets: int
    bytes: NDArray[np.int64] | None
    is_own: bool

    @property
    def per_token(self) -> tuple[float, float]:
        """Mean in nats, and its standard error over windows."""
        return _ratio(self.nats, np.full(len(self.nats), float(self.targets)))

    @property
    def per_byte(self) -> tuple[float, float] | None:
        """Bits, and their standard error."""
        return None if self.bytes is None else _ratio(self.nats / math.log(2), self.bytes.astype(float))


def _ratio(above: NDArray[np.float64], below: NDArray[np.float64]) -> tuple[float, float]:
    """Σa/Σb over windows, and its standard error: that of the residuals a − r·b; NaN of one window."""
    ratio = float(above.sum() / below.sum())
    if len(above) < 2:
        return ratio, math.nan
    residuals = above - ratio * below
    return ratio, float(residuals.std(ddof=1) * math.sqrt(len(above)) / below.sum())


def losses_on(source: Source, text: Text, length: int, most: int | None, device: torch.device) -> Losses:
    """Of windows of `length` targets, `most` of them spread evenly over the split (None: all).

    InputError for data whose tokens the model does not have, or too short for one window.
    """
    tokenizer = _tokenizer_of(source, text)
    is_own = tokenizer is None
    tokens = text.tokens if tokenizer is None else text.encoded_by(tokenizer)
    if int(tokens.max()) >= source.model.vocab_size:
        raise InputError(
            f"{text.folder} has the token {int(tokens.max())}, and {source.name} a vocabulary of {source.model.vocab_size}: "
            "another tokenizer made it"
        )
    available = windows_in(len(tokens), length)
    if available < 1:
        raise InputError(
            f"{text.folder} has {len(tokens)} validation tokens, less than one window of {length}; set --context less"
        )
    starts = spread_windows(min(most or available, available), len(tokens), length) * length
    network = source.network(device)
    nats = _nats(network, tokens, starts, length, device, source.name)
    lengths = _lengths(tokenizer, text)
    if lengths is None:
        return Losses(nats, length, None, is_own)
    targets = tokens[starts[:, None] + np.arange(1, length + 1)]  # (n, T)
    return Losses(nats, length, lengths[targets].sum(1), is_own)


@torch.no_grad()
def _nats(
    network: GPT, tokens: NDArray[np.int64], starts: NDArray[np.int64], length: int, device: torch.device, name: str
) -> NDArray[np.float64]:
    """Summed cross-entropy of each window, (n,)."""
    rows = max(1, min(64, LOGITS // (length * network.config.vocab_size)))
    sums: list[NDArray[np.float64]] = []
    with tqdm(total=len(starts), desc=name[-40:], unit=" windows", leave=False, mininterval=1, delay=2) as bar:
        for first in range(0, len(starts), rows):
            windows = tokens[starts[first : first + rows, None] + np.arange(length + 1)]  # (b, T+1)
            inputs, targets = (torch.from_numpy(half.copy()).to(device) for half in inputs_and_targets(windows))
            each = network(inputs, targets, by_target=True).view(len(windows), length)
            sums.append(each.double().sum(1).cpu().numpy())
            bar.update(len(windows))
    return np.concatenate(sums)


def _tokenizer_of(source: Source, text: Text) -> Tokenizer | None:
    """The model's own tokenizer where it is another than the data's; None where the data's tokens are its own.

    Where nothing tells whose they are, they are taken for its own, and that is said.
    """
    theirs = text.manifest.tokenizer
    is_unknown = theirs.get("kind") == "unknown"
    if source.tokenizer_described == theirs and (not is_unknown or source.tokenizer_folder == text.folder):
        return None
    if is_unknown or not (source.tokenizer_described or source.why_not):
        why = f"{text.folder} says of no tokenizer" if is_unknown else f"{source.name} has no tokenizer with it"
        logger.warning("%s: the tokens of %s are taken for those of %s", why, text.folder, source.name)
        return None
    own = source.tokenizer()
    if are_same(own, text.tokenizer):
        return None
    logger.warning("%s has another tokenizer than %s: the text is encoded anew", source.name, text.folder)
    return own


def _lengths(tokenizer: Tokenizer | None, text: Text) -> NDArray[np.int64] | None:
    """Bytes of each token, of the data's own where `tokenizer` is None; None where they cannot be told, which is said."""
    try:
        return byte_lengths(tokenizer or text.tokenizer)
    except InputError as error:
        logger.warning("no bits per byte: %s", error)
        return None


def paired(losses: Sequence[Losses]) -> list[tuple[float, float] | None]:
    """Each minus the first, nats per token, with the standard error of the paired differences; None where the tokens differ."""
    first = losses[0]
    rows: list[tuple[float, float] | None] = []
    for each in losses:
        same = each.is_own and first.is_own
        rows.append(_ratio(each.nats - first.nats, np.full(len(each.nats), float(each.targets))) if same else None)
    return rows
