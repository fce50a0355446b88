"""The manifest of a run's data, whatever its kind."""

from __future__ import annotations

from configs.schema import RunConfig
from data.image_manifest import ImageManifest, read_image_manifest
from data.manifest import Manifest, read_manifest

AnyManifest = Manifest | ImageManifest


def manifest_of(config: RunConfig) -> AnyManifest | None:
    """What data.kind says; None where nothing is prepared. InputError for a manifest that is damaged, or of the other kind."""
    read = read_manifest if config.unit == "tokens" else read_image_manifest
    return read(config.data.path)
