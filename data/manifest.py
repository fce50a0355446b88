"""manifest.json: what prepared data is. Data exists when its manifest does."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from configs.plan import DataSummary
from data.shards import Shard

FILE = "manifest.json"


class Split(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: int
    documents: int
    shards: list[Shard]
    docs_file: str
    docs_sha256: str


class Manifest(BaseModel):
    """Everything but `digest` enters the digest, which is what a run's identity uses for the data."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = 1
    source: dict[str, Any]
    options: dict[str, Any]
    tokenizer: dict[str, Any]
    vocab_size: int
    eot: int
    dtype: str
    train: Split
    val: Split
    digest: str = ""

    def with_digest(self) -> Manifest:
        text = json.dumps(self.model_dump(mode="json", exclude={"digest"}), sort_keys=True, separators=(",", ":"))
        return self.model_copy(update={"digest": hashlib.sha256(text.encode()).hexdigest()})

    def summary(self) -> DataSummary:
        return DataSummary(self.digest, self.vocab_size, self.train.tokens, self.val.tokens)


def read_manifest(folder: str | Path) -> Manifest | None:
    """The manifest of prepared data; None where there is none. ValueError for one that is damaged or foreign."""
    path = Path(folder) / FILE
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        raise ValueError(
            f"{path} is not a manifest of prepared data: {error.errors()[0]['msg']}; prepare the data again"
        ) from None
    if manifest.with_digest().digest != manifest.digest:
        raise ValueError(f"{path} was changed after preparation (its digest does not fit); prepare the data again")
    return manifest
