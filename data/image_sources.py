"""What a source of labelled images is, and how one image is decoded. Shapes: C channels, H height, W width."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from configs.errors import InputError

SOURCES = ("digits", "mnist5k", "cifar10", "cifar100", "tiny-imagenet", "cifar5m", "folder")
MAX_SIDE = 1024  # pixels: what a configuration can ask for at most; a larger image is refused before it is decoded
# How PIL calls what is taken as it is: grey, colours; a bitmap and a palette are these two, stored otherwise.
MODES = {"L": "L", "1": "L", "RGB": "RGB", "P": "RGB"}
CONVERTED = {1: "L", 3: "RGB"}  # by --channels; only from modes of 8 bits a channel, since PIL would cut others off
CONVERTIBLE = {*MODES, "RGBA", "LA", "PA", "CMYK", "YCbCr", "HSV"}

Image = NDArray[np.uint8]


class Row(NamedTuple):
    """One image (C, H, W), its label, and where it stands, for messages."""

    image: Image
    label: int
    place: str


Rows = Callable[[], Iterator[Row]]


@dataclass
class ImageSource:
    """Labelled images of one kind. `train` and `val` begin anew at each call; `val` is None where the source has no split.

    `origin` enters the manifest: what was read, by which version. `notes`: what was decided without being asked, in
    sentences. `skipped` counts files that are no images, by reason.
    """

    kind: str
    classes: list[str]
    train: Rows
    val: Rows | None = None
    origin: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        left_out = {"skipped": dict(self.skipped)} if self.skipped else {}
        return {"kind": self.kind, **self.origin, **left_out}


def decode_image(raw: bytes, place: str, channels: int | None) -> Image:
    """The pixels of an image file (C, H, W), grey or colour as it is, or with `channels`.

    InputError names `place` for what is no image, is damaged, is larger than MAX_SIDE, or has pixels that would be cut to 8 bits.
    """
    from PIL import Image as Pillow

    try:
        with Pillow.open(io.BytesIO(raw)) as picture:
            if max(picture.size) > MAX_SIDE:
                width, height = picture.size
                raise InputError(
                    f"{place} has {width} × {height} pixels; at most {MAX_SIDE} a side are read: resize it"
                )
            mode = _target_mode(picture.mode, place, channels)
            pixels = np.asarray(picture if picture.mode == mode else picture.convert(mode), dtype=np.uint8)
    except InputError:
        raise
    except Exception as error:  # each format's decoder has exceptions of its own
        reason = str(error).split("<_io.")[0].strip() or "no reason given"
        raise InputError(f"{place} cannot be read as an image ({type(error).__name__}: {reason[:200]})") from None
    return np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))


def _target_mode(mode: str, place: str, channels: int | None) -> str:
    """The mode in which pixels are taken. InputError where that would lose something that nobody gave up."""
    if channels is not None and mode in CONVERTIBLE:
        return CONVERTED[channels]
    if mode not in MODES:
        mend = "--channels 3 or 1 converts it" if mode in CONVERTIBLE else "convert it to 8 bits a channel"
        raise InputError(f"{place} has pixels of the kind {mode}; grey (L) and colours (RGB) are read: {mend}")
    return MODES[mode]


def with_channels(image: Image, place: str, channels: int | None) -> Image:
    """An image that was stored as numbers (C, H, W): they have no names to convert by, so that grey alone is repeated."""
    if channels is None or len(image) == channels:
        return image
    if len(image) == 1:
        return np.repeat(image, channels, axis=0)
    raise InputError(f"{place} has {len(image)} channels and --channels asks for {channels}; leave --channels out")
