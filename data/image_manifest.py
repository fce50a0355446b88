"""manifest.json of prepared images: what they are. They exist when it does.

Files, beside it: `train_images.u8`, uint8 (N, C, H, W) row by row; `train_labels.u16`, little-endian uint16 (N,);
`train_true_labels.u16` where labels were made wrong; `val_images.u8`, `val_labels.u16`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from configs.errors import InputError
from configs.prepared import ImageSummary
from data.manifest import FILE, digest_of
from record.files import plain_name, read_object

FORMAT = 1
KIND: Literal["images"] = "images"


class ImageSplit(BaseModel):
    """One split's files. `true_labels_file`: the labels before some were made wrong, which no training reads."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: int = Field(ge=1)
    images_file: str
    images_sha256: str
    labels_file: str
    labels_sha256: str
    true_labels_file: str | None = None
    true_labels_sha256: str | None = None

    @model_validator(mode="after")
    def _stay_inside(self) -> ImageSplit:
        """No file of prepared data lies elsewhere than in its folder."""
        for name, _ in self.files():
            plain_name(name)
        return self

    def files(self) -> Iterator[tuple[str, str]]:
        """Name and hash of every file of the split."""
        yield self.labels_file, self.labels_sha256
        if self.true_labels_file is not None:
            yield self.true_labels_file, self.true_labels_sha256 or ""
        yield self.images_file, self.images_sha256


class ImageManifest(BaseModel):
    """`digest` is what a run's identity uses for the data: images, labels, their shape and the number of classes.

    Where the images came from, how the classes are called and what the files are called is recorded beside it. `mean` and
    `deviation`: of each channel over all pixels of the training split, in units of 255. `checksum` covers everything else, so
    that an edited manifest is no manifest.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    kind: Literal["images"] = KIND
    source: dict[str, Any]
    options: dict[str, Any]
    classes: list[str] = Field(min_length=2, max_length=1 << 16)
    shape: tuple[int, int, int]  # (C, H, W)
    train: ImageSplit
    val: ImageSplit
    mean: list[float]
    deviation: list[float]
    wrong_labels: int = 0  # of the training split, made wrong on purpose
    digest: str = ""
    checksum: str = ""

    @property
    def pixels(self) -> int:
        """Bytes of one image."""
        return math.prod(self.shape)

    def with_digest(self) -> ImageManifest:
        """The same with its digest and checksum, which are made from all the rest."""
        with_digest = self.model_copy(update={"digest": digest_of(self._content())})
        return with_digest.model_copy(
            update={"checksum": digest_of(with_digest.model_dump(mode="json", exclude={"checksum"}))}
        )

    def _content(self) -> dict[str, Any]:
        """What the digest is made of: nothing that a run does not read."""
        hashes = {"images", "images_sha256", "labels_sha256"}
        kept = self.model_dump(mode="json", include={"kind": True, "shape": True, "train": hashes, "val": hashes})
        return kept | {"classes": len(self.classes)}

    @property
    def intact(self) -> bool:
        """Whether digest and checksum are those of the rest: nobody has edited the file."""
        return self == self.with_digest()

    def summary(self) -> ImageSummary:
        """What a plan needs to know of the data."""
        return ImageSummary(self.digest, self.shape, len(self.classes), self.train.images, self.val.images)

    def described(self) -> dict[str, Any]:
        """What a start of a run records of its data: where it came from, how much it is, how many labels are wrong."""
        return {
            "digest": self.digest,
            "source": self.source.get("kind"),
            "classes": len(self.classes),
            "shape": list(self.shape),
            "train_images": self.train.images,
            "val_images": self.val.images,
            "wrong_labels": self.wrong_labels,
        }


def read_image_manifest(folder: str | Path) -> ImageManifest | None:
    """The manifest of prepared images; None where there is no manifest. InputError for one that is damaged or of other data."""
    path = Path(folder) / FILE
    try:
        fields = read_object(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if fields.get("kind") != KIND:
        what = "of tokens" if "tokenizer" in fields else f"of the kind {str(fields.get('kind'))[:80]!r}"
        raise InputError(
            f"{path} is the manifest of data {what}, not of images; `python -m data.prepare_images` makes those"
        )
    if fields.get("format") != FORMAT:
        raise InputError(
            f"{path} has format {str(fields.get('format'))[:80]}, and this code reads {FORMAT}; use newer code"
        )
    try:
        manifest = ImageManifest.model_validate(fields)
    except ValidationError as error:
        raise InputError(
            f"{path} is not a manifest of prepared images: {error.errors()[0]['msg']}; prepare the data again"
        ) from None
    if not manifest.intact:
        raise InputError(f"{path} was changed after preparation (its digest does not fit); prepare the data again")
    return manifest
