"""manifest.json: what prepared data is. Data exists when its manifest does."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, field_serializer, model_validator

from configs.errors import InputError
from configs.prepared import DataSummary, ends_known
from data.shards import Shard
from record.files import plain_name, read_regular

FILE = "manifest.json"
FORMAT = 2  # 1: source and options were part of the digest


class Split(BaseModel):
    """One split: its shards, in order, and the file of its documents' ends."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: int
    documents: int
    shards: list[Shard]
    docs_file: str
    docs_sha256: str
    sha256: str = ""  # of all tokens as one stream, however it is cut into shards; format 1 has none

    @model_validator(mode="after")
    def _stay_inside(self) -> Split:
        """No file of prepared data lies elsewhere than in its folder."""
        for name in (self.docs_file, *(shard.file for shard in self.shards)):
            plain_name(name)
        if any(shard.header_bytes < 0 for shard in self.shards):
            raise ValueError("a shard has a header of fewer than 0 bytes")
        return self

    @field_serializer("shards")
    def _written(self, shards: list[Shard]) -> list[dict[str, Any]]:
        """Shards as they were written before some had a header: the checksum of a manifest is made of what is written."""
        return [
            {key: value for key, value in asdict(shard).items() if key != "header_bytes" or value} for shard in shards
        ]

    def files(self) -> Iterator[tuple[str, str]]:
        """Name and hash of every file of the split."""
        yield self.docs_file, self.docs_sha256
        for shard in self.shards:
            yield shard.file, shard.sha256


class Manifest(BaseModel):
    """`digest` is what a run's identity uses for the data: its tokens, documents and tokenizer.

    Where the documents came from, and how, is recorded beside it: the same documents from another kind of file are the
    same data. `checksum` covers everything else, so that an edited manifest is no manifest.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    source: dict[str, Any]
    options: dict[str, Any]
    tokenizer: dict[str, Any]
    vocab_size: int
    eot: int | None  # the token after each document; None where no document end is known
    dtype: str
    train: Split
    val: Split
    digest: str = ""
    checksum: str = ""

    def with_digest(self) -> Manifest:
        """The same with its digest and checksum, which are made from all the rest."""
        with_digest = self.model_copy(update={"digest": digest_of(self._content())})
        return with_digest.model_copy(update={"checksum": with_digest._sum()})

    def _content(self) -> dict[str, Any]:
        """What the digest is made of."""
        if self.format == 1:  # as it was written then, so that no run on that data gets another id
            fields = self.model_dump(mode="json", exclude={"digest", "checksum"})
            return fields | {
                name: {k: v for k, v in fields[name].items() if k != "sha256"} for name in ("train", "val")
            }
        streams = {"tokens", "documents", "sha256", "docs_sha256"}  # not the shards: they are how it is stored
        kept = {"format", "tokenizer", "vocab_size", "eot", "dtype"}
        return self.model_dump(mode="json", include={**dict.fromkeys(kept, True), "train": streams, "val": streams})

    def _sum(self) -> str:
        """Empty for format 1, whose digest covers everything."""
        return "" if self.format == 1 else digest_of(self.model_dump(mode="json", exclude={"checksum"}))

    @property
    def intact(self) -> bool:
        """Whether digest and checksum are those of the rest: nobody has edited the file."""
        return self == self.with_digest()

    def described(self) -> dict[str, Any]:
        """What a start of a run records of its data: where it came from, by which tokenizer, how much it is."""
        return {
            "digest": self.digest,
            "source": self.source.get("kind"),
            "tokenizer": self.tokenizer.get("kind"),
            "vocab_size": self.vocab_size,
            "train_tokens": self.train.tokens,
            "train_documents": self.train.documents,
            "val_tokens": self.val.tokens,
            "val_documents": self.val.documents,
        }

    def summary(self) -> DataSummary:
        """What a plan needs to know of the data."""
        return DataSummary(
            self.digest,
            self.vocab_size,
            self.train.tokens,
            self.val.tokens,
            self.train.documents,
            ends_known(self.format, self.eot, self.tokenizer),
            self.tokenizer,
        )


def read_manifest(folder: str | Path) -> Manifest | None:
    """The manifest of prepared data; None where there is none. InputError for one that is damaged or foreign."""
    path = Path(folder) / FILE
    try:
        text = read_regular(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        if any(problem["loc"] == ("kind",) and problem["input"] == "images" for problem in error.errors()):
            raise InputError(f"{path} is the manifest of prepared images, not of tokens") from None
        raise InputError(
            f"{path} is not a manifest of prepared data: {error.errors()[0]['msg']}; prepare the data again"
        ) from None
    if manifest.format not in (1, FORMAT):
        raise InputError(f"{path} has format {manifest.format}, and this code reads 1 to {FORMAT}; use newer code")
    if not manifest.intact:
        raise InputError(f"{path} was changed after preparation (its digest does not fit); prepare the data again")
    return manifest


def digest_of(fields: dict[str, Any]) -> str:
    """SHA-256 of the fields' canonical JSON."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
