"""Look at prepared data: `python -m data.inspect DIR`. Shows the manifest, verifies every hash, and random windows or images."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from configs.errors import InputError
from data.any_manifest import read_any_manifest
from data.image_manifest import ImageManifest
from data.image_view import pictures, render_images
from data.manifest import Manifest
from data.shards import TokenStream
from data.tokenizer import load_tokenizer
from data.verify import verify_split


def render(folder: Path, manifest: Manifest) -> str:
    """The manifest as lines for a reader."""
    lines = [("data", f"{folder}, digest {manifest.digest}")]
    lines += [("source", ", ".join(f"{key} {value}" for key, value in manifest.source.items()))]
    lines += [("options", ", ".join(f"{key} {value}" for key, value in manifest.options.items()))]
    end = "none: where a document ends cannot be seen" if manifest.eot is None else manifest.eot
    lines += [("tokenizer", f"{manifest.tokenizer}, vocabulary {manifest.vocab_size}, end of text {end}")]
    for name, split in (("train", manifest.train), ("val", manifest.val)):
        mean = split.tokens / split.documents
        shards = f"{len(split.shards)} shard(s) of {manifest.dtype}"
        lines += [(name, f"{split.tokens:,} tokens, {split.documents:,} documents of {mean:,.0f} tokens, {shards}")]
    return "\n".join(f"{label:<10} {text}" for label, text in lines)


def windows(folder: Path, manifest: Manifest, count: int, length: int, seed: int) -> list[str]:
    """Random windows of the training split, decoded, with the documents' ends shown."""
    stream = TokenStream(folder, manifest.train.shards, manifest.dtype)
    tokenizer = load_tokenizer(folder, manifest.tokenizer)
    length = min(length, len(stream))
    out, texts = np.empty(length, np.int64), []
    for start in np.random.default_rng(seed).integers(0, len(stream) - length + 1, count).tolist():
        stream.read(start, start + length, out)
        ends = np.flatnonzero(out == (-1 if manifest.eot is None else manifest.eot)) + 1  # no id is below 0
        parts = np.split(out, ends)
        text = "<|endoftext|>\n".join(
            tokenizer.decode([i for i in part.tolist() if i != manifest.eot]) for part in parts
        )
        texts.append(f"--- tokens {start:,} to {start + length:,}\n{text}")
    return texts


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m data.inspect", description="Show, verify and sample prepared data."
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--windows", type=int, default=3, help="random windows of tokens to decode")
    parser.add_argument("--length", type=int, default=64, help="tokens of a window")
    parser.add_argument("--images", type=int, default=3, help="random training images to draw")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-verify", action="store_true", help="do not hash the files")
    args = parser.parse_args(argv)
    try:
        manifest = read_any_manifest(args.folder)
        print(
            render_images(args.folder, manifest)
            if isinstance(manifest, ImageManifest)
            else render(args.folder, manifest)
        )
        if not args.no_verify:
            verify_split(args.folder, manifest.train)
            verify_split(args.folder, manifest.val)
            print(f"{'hashes':<10} all as in the manifest")
        if isinstance(manifest, ImageManifest):
            texts = pictures(args.folder, manifest, args.images, args.seed)
        else:
            texts = windows(args.folder, manifest, args.windows, args.length, args.seed)
        if texts:
            print("\n".join(texts))
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
