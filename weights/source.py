"""A transformer from outside of a run: its shape, weights and tokenizer, from a run's checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from configs.errors import InputError
from configs.precision import TABLE
from configs.schema import Model, Precision
from data.lossless import Tokenizer
from data.manifest import Manifest
from data.tokenizer import load_tokenizer
from engine.dtypes import autocast_dtype, set_matmul_precision
from model.gpt import GPT
from weights.read import choose, config_with_data


@dataclass(frozen=True)
class Source:
    """`name` is what messages call it; `weights` are float32, by our names. `precision` is that of the forward pass.

    `separate_at`: the token that ends a document, where attention stays within one; None: it does not.
    """

    name: str
    model: Model
    precision: Precision
    weights: dict[str, Tensor]
    separate_at: int | None
    tokenizer_folder: Path
    tokenizer_described: dict[str, Any]

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

    def tokenizer(self) -> Tokenizer:
        """Text to tokens and back. InputError where it is not there, or the data was prepared without one that encodes."""
        tokenizer = load_tokenizer(self.tokenizer_folder, self.tokenizer_described)
        if not hasattr(tokenizer, "encode"):
            raise InputError(f"the tokenizer of {self.name} decodes tokens only; it cannot encode a text")
        return cast(Tokenizer, tokenizer)


def read_source(address: str, kind: str = "weights", data: Path | None = None) -> Source:
    """The transformer of `RUN@STEP` (of `RUN` its newest sound checkpoint). `kind`: `weights` or an average, `ema_0.99`.

    `data`: where the run's data lies now; None: where the run says. InputError for a run on images, and as read.choose.
    """
    chosen = choose(address)
    config, manifest = config_with_data(chosen.run, data)
    if not isinstance(manifest, Manifest):
        raise InputError(f"{address} is a run on images; this is for language models")
    name = f"{chosen.run.path}@{chosen.steps[-1]}"
    separate_at = None if config.text.cross_document_attention else manifest.eot
    text = Path(config.text.path), manifest.tokenizer
    return Source(name, config.gpt, config.precision, chosen.tensors(kind), separate_at, *text)
