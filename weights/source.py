"""A transformer outside of a run, wherever it comes from: its shape, weights and tokenizer.

From a run's checkpoint, a folder of Hugging Face, or a checkpoint of nanoGPT.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from configs.errors import InputError
from configs.precision import TABLE
from configs.schema import Model, Precision
from configs.tensors import tensor_table
from data.lossless import Tokenizer
from data.manifest import Manifest, read_manifest
from data.named_tokenizer import tokenizer_in
from data.tokenizer import load_tokenizer
from engine.dtypes import autocast_dtype, set_matmul_precision
from engine.foreign_tensors import open_foreign
from model.gpt import GPT
from record.foreign import Foreign, find_foreign
from weights.read import Chosen, choose, config_with_data

NO_TOKENIZER: dict[str, Any] = {}


@dataclass(frozen=True)
class Source:
    """`name` is what messages call it; `weights` are float32, by our names. `precision` is that of the forward pass.

    `separate_at`: the token that ends a document, where attention stays within one; None: it does not. `has_data`: the tokenizer
    lies with the prepared data of a run.
    """

    name: str
    model: Model
    precision: Precision
    weights: dict[str, Tensor]
    separate_at: int | None
    tokenizer_folder: Path
    tokenizer_described: dict[str, Any]
    has_data: bool = True
    own: Tokenizer | None = None  # one that is read already
    why_not: str = ""  # why the one that is there cannot be used

    def network(self, device: torch.device, precision: Precision | None = None) -> GPT:
        """The network with these weights, ready to evaluate, in `precision` (None: its own). InputError if they are another's.

        What the precision says of matrix products is set for the whole process.
        """
        precision = precision or self.precision
        set_matmul_precision(precision, device)
        network = GPT(self.model, autocast_dtype(precision), self.separate_at).to(device).eval()
        try:
            network.load_state_dict(self.weights)
        except RuntimeError as error:
            raise InputError(f"the weights of {self.name} are not those of its model: {error}") from None
        return network.to(getattr(torch, TABLE[precision].weights))

    def tokenizer(self, without_end: bool = False) -> Tokenizer:
        """Text to tokens and back. InputError where it is not there, has more tokens than the model, or none that ends a document.

        `without_end`: one whose `eot` is None will do, of single characters.
        """
        if self.why_not:
            raise InputError(self.why_not)
        if self.own is None and not self.tokenizer_described:
            raise InputError(
                f"{self.name} has no tokenizer with it; name prepared data that has its own with --data DIR"
            )
        tokenizer = self.own or cast(Tokenizer, load_tokenizer(self.tokenizer_folder, self.tokenizer_described))
        if tokenizer.vocab_size > self.model.vocab_size:
            raise InputError(
                f"{self.name} has {self.model.vocab_size:,} tokens, and the tokenizer in {self.tokenizer_folder} "
                f"{tokenizer.vocab_size:,}: it is another model's"
            )
        if tokenizer.eot is None and not without_end:
            raise InputError(
                f"the tokenizer of {self.name} has no token that ends a document, and none to begin one with"
            )
        return tokenizer


def read_source(address: str, kind: str = "weights", data: Path | None = None, steps: Sequence[int] = ()) -> Source:
    """The transformer of `RUN@STEP` (of `RUN` its newest sound checkpoint), of a folder of Hugging Face or of nanoGPT's ckpt.pt.

    `kind`: `weights`, or of a run an average, `ema_0.99`; `steps`: of a run the mean of these checkpoints. `data`: whose tokenizer
    it has; None: a run's own data, where the run says. InputError for a run on images, and as read.choose and open_foreign.
    """
    foreign = find_foreign(address)
    if foreign is not None:
        return _foreign_source(foreign, kind, data, steps)
    return source_of(choose(address, steps), kind, data)


def source_of(chosen: Chosen, kind: str, data: Path | None) -> Source:
    """As `read_source`, of checkpoints of a run."""
    config, manifest = config_with_data(chosen.run, data)
    if not isinstance(manifest, Manifest):
        raise InputError(f"{chosen.run.path} is a run on images; this is for language models")
    name = f"{chosen.run.path}@{'+'.join(map(str, chosen.steps))}" + (f" {kind}" if kind != "weights" else "")
    separate_at = None if config.text.cross_document_attention else manifest.eot
    text = Path(config.text.path), manifest.tokenizer
    return Source(name, config.gpt, config.precision, chosen.tensors(kind), separate_at, *text)


def _foreign_source(foreign: Foreign, kind: str, data: Path | None, steps: Sequence[int]) -> Source:
    """In fp32, whatever the files hold: how it was trained is not known."""
    if kind != "weights" or steps:
        raise InputError(
            f"{foreign.path} is a model without a run and has no averages; leave --weights and --average out"
        )
    model, read = open_foreign(foreign)
    weights = {name: read(name) for name in tensor_table(model)}
    own, why_not = None, ""
    if data is None:
        try:
            own = tokenizer_in(foreign.path)
        except InputError as error:  # it matters only to who asks for it
            why_not = str(error)
    folder, described = foreign.path, own.describe() if own is not None else NO_TOKENIZER
    if data is not None:
        manifest = read_manifest(data)
        if manifest is None:
            raise InputError(f"--data {data}: no prepared data lies there")
        folder, described = data, manifest.tokenizer
    return Source(str(foreign.path), model, "fp32", weights, None, folder, described, False, own, why_not)
