"""The manifest of prepared data, whatever its kind."""

from __future__ import annotations

from pathlib import Path

from configs.errors import InputError
from configs.schema import RunConfig
from data.image_manifest import KIND, ImageManifest, read_image_manifest
from data.manifest import FILE, Manifest, read_manifest
from record.files import read_object

AnyManifest = Manifest | ImageManifest


def manifest_of(config: RunConfig) -> AnyManifest | None:
    """What data.kind says; None where nothing is prepared. InputError for a manifest that is damaged, or of the other kind."""
    read = read_manifest if config.unit == "tokens" else read_image_manifest
    return read(config.data.path)


def read_any_manifest(folder: Path) -> AnyManifest:
    """Of the kind that lies there. InputError where nothing is prepared, or the manifest is damaged."""
    try:
        kind = read_object(folder / FILE).get("kind")
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{folder} holds no prepared data (no {FILE})") from None
    manifest = (read_image_manifest if kind == KIND else read_manifest)(folder)
    assert manifest is not None, "it was there a moment ago"
    return manifest
