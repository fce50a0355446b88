"""The command line of a preparation: its options, and what is chosen, and said, where the user chooses nothing."""

from __future__ import annotations

import argparse
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from configs.errors import InputError
from data.dictionary import DOCUMENT_BYTES
from data.documents import (
    BLANK_LINE,
    FEW_FILES,
    FILE,
    LARGEST,
    LINE,
    PIECES,
    SMALLEST,
    default_document_bytes,
    separator,
)
from data.hub import OPENWEBTEXT, open_hub
from data.options import (
    DEFAULT_VOCAB,
    SMALLEST_VOCAB,
    VOCAB_BYTES,
    Options,
    default_val_fraction,
    default_vocab,
    sized,
    why_val_fraction,
)
from data.sources import SOURCES, Source, open_source
from data.streams import MAX_DOCUMENT, MAX_RATIO, MAX_UNPACKED
from data.tokenizer import GPT2, SentencePiece

TRAINED = ("bpe", "unigram")

RULES = f"""
how a text file becomes documents (--source text)
  {FEW_FILES} files or more: each file is a document. Fewer, or with --document-bytes: a file is split at its blank lines, and
  the pieces are gathered to documents of --document-bytes or more. --split-on says where else to split: {FILE} (not at all),
  {BLANK_LINE}, {LINE}, or a separator such as '<|endoftext|>', which is left out; pieces between separators are not gathered.
  A document of more than twice --document-bytes is cut, at a line's end if there is one. --document-bytes has a default only
  where --split-on is not given and files are few: a {PIECES}th of the text, from {SMALLEST} bytes to {LARGEST >> 10} KiB.

how a dictionary becomes documents (--source dictd)
  --input names its text, X.dict.dz or X.dict; X.index lies beside it. Its entries, in their order, are gathered to
  documents of --document-bytes or more, {DOCUMENT_BYTES >> 10} KiB by default. No entry is cut; each stands
  once, however many headwords name it.

what is held out for validation
  The files of --val-input, if given. Else, for few text files, a folder or a saved dataset: the file or split that its
  name says is for validation (wiki.valid.raw beside wiki.train.raw), unless --val-fraction is given. Else the documents
  whose content's hash is in the lowest --val-fraction. Where that would leave a split empty, or a text was split into few
  documents, the tail of each shard: its last --val-fraction of bytes.

the vocabulary
  Its default is {DEFAULT_VOCAB}. For a text that is split and has less than 16 MiB, it is the power of two at or below an entry for
  512 bytes of text, 512 at least. Where a text cannot fill a default, or has more characters, another is taken, and said.

bounds
  A line or a document has at most {MAX_DOCUMENT >> 20} MiB. A compressed file gives at most {MAX_RATIO} times its own bytes, or
  {MAX_UNPACKED >> 20} MiB if that is more. What is beyond is refused.
"""


@dataclass
class Request:
    """What a command line asks for. `model`: a given tokenizer. `fit`: the vocabulary is a default and may be lowered."""

    source: Source
    options: Options
    model: bytes | None
    fit: bool


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m data.prepare",
        description="Turn documents into token shards.",
        epilog=RULES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("--source", required=True, choices=SOURCES)
    add("--input", nargs="+", help="files, folders or quoted globs; for nanogpt the folder of train.bin and val.bin")
    add("--val-input", nargs="+", default=[], help="files of their own for validation, instead of a share of --input")
    add("--out", required=True, type=Path, help="folder to create")
    add(
        "--tokenizer",
        help="bpe (default) or unigram, trained here; gpt2, or a SentencePiece model file; nanogpt: its tokens'",
    )
    add("--vocab-size", type=int, help="of the tokenizer to train; default: see below. nanogpt: of its tokens")
    add("--val-fraction", type=float, help="share of documents held out; default 0.0005, or enough to validate")
    add("--split-on", help="text: where a file is split into documents: file, blank-line, line, or a separator")
    add("--document-bytes", type=int, help="text, dictd: the size that documents are gathered to; text: and cut at")
    add(
        "--skip-bad",
        action="store_true",
        help="leave out bad rows (null, not JSON, too long, not UTF-8) and count them",
    )
    add("--seed", type=int, default=0, help="seed of the shuffle")
    add("--workers", type=int, default=os.cpu_count() or 1)
    add("--text-field", default="text", help="field or column of jsonl, parquet, arrow and datasets")
    add("--packages", action="store_true", help="python-source: the installed packages' sources too")
    add("--dataset", default=OPENWEBTEXT, help="openwebtext: a hub dataset with text, or a local copy's folder")
    add("--revision", help="openwebtext: of the dataset; default main, else the hub's parquet conversion")
    return made


def read_request(args: argparse.Namespace) -> Request:
    """Find the files and choose what was left open. What was chosen is in the source's notes. InputError for bad options."""
    if args.source == "openwebtext":
        if args.input or args.val_input:
            raise InputError(
                "--source openwebtext takes no --input and no --val-input; see --dataset, or --source parquet"
            )
        source = open_hub(args.dataset, args.revision, args.text_field)
    else:
        by_name = args.val_fraction is None
        source = open_source(args.source, args.input, args.text_field, args.packages, args.val_input, by_name)
    source.skip_bad = args.skip_bad
    split = _choose_documents(args, source)
    fraction = _choose_val_fraction(args, source)
    args.tokenizer = args.tokenizer or "bpe"
    model, tokenizer = None, args.tokenizer
    if tokenizer not in (*TRAINED, "gpt2"):
        model = _read_model(Path(tokenizer))
        tokenizer = hashlib.sha256(model).hexdigest()
    fit = args.tokenizer in TRAINED and args.vocab_size is None
    vocab_size = _choose_vocab(args, source, model, split)
    options = Options(vocab_size, fraction, args.seed, args.text_field, tokenizer)
    return Request(source, options, model, fit)


def _choose_documents(args: argparse.Namespace, source: Source) -> bool:
    """Set how the source's files are split into documents; returns whether they are."""
    if source.kind not in ("text", "dictd"):
        if args.split_on is not None or args.document_bytes is not None:
            raise InputError(
                f"--split-on and --document-bytes are for --source text; a row of {source.kind} is a document"
            )
        return False
    if args.document_bytes is not None and not 0 < args.document_bytes <= MAX_DOCUMENT // 2:
        raise InputError(f"--document-bytes {args.document_bytes} must lie between 1 and {MAX_DOCUMENT // 2}")
    if source.kind == "dictd":
        if args.split_on is not None:
            raise InputError("--split-on is for --source text; a dictionary is split between its entries")
        source.document_bytes = args.document_bytes or DOCUMENT_BYTES
        return True
    few = len(source.files) < FEW_FILES
    source.split_on = args.split_on
    source.document_bytes = args.document_bytes
    if args.split_on is not None:
        separator(args.split_on)  # refuses an empty one
        return bool(args.split_on != FILE or args.document_bytes)
    source.split_on = BLANK_LINE if few or args.document_bytes else FILE
    if few and args.document_bytes is None:
        size = default_document_bytes(source.text_bytes())
        source.document_bytes = size
        source.notes.append(
            f"the text is split at blank lines into documents of at least {size:,} bytes: a {PIECES}th of the text, but no fewer "
            f"than {SMALLEST:,} and no more than {LARGEST:,}; --split-on and --document-bytes ask for others"
        )
    return source.split_on != FILE


def _choose_val_fraction(args: argparse.Namespace, source: Source) -> float:
    """The share to hold out; 0 where the validation split has files of its own."""
    fraction: float | None = args.val_fraction
    if source.val_files:
        if fraction is not None:
            raise InputError("--val-input gives the validation split: leave --val-fraction out")
        return 0.0
    if fraction is None:
        if why := why_val_fraction(source.text_bytes()):
            source.notes.append(why)
        return default_val_fraction(source.text_bytes())
    if not 0 < fraction < 1:
        raise InputError(f"--val-fraction {fraction} must lie between 0 and 1")
    return fraction


def _choose_vocab(args: argparse.Namespace, source: Source, model: bytes | None, split: bool) -> int:
    """The vocabulary to train. InputError beside a tokenizer that has another."""
    given: int | None = args.vocab_size
    if given is not None and given < 1:
        raise InputError(f"--vocab-size {given} must be at least 1")
    if given is not None and args.tokenizer not in TRAINED:
        own = SentencePiece(model).vocab_size if model is not None else GPT2().vocab_size
        if given != own:
            raise InputError(
                f"--vocab-size {given} beside --tokenizer {args.tokenizer}, whose vocabulary is {own}: leave --vocab-size out, "
                "or train a tokenizer with --tokenizer bpe"
            )
    if given is not None or not split or args.tokenizer not in TRAINED:
        return given or DEFAULT_VOCAB
    size = default_vocab(source.text_bytes())
    if size != DEFAULT_VOCAB:
        source.notes.append(
            f"vocab-size {size} instead of {DEFAULT_VOCAB}: {sized(source.text_bytes())} of text at {VOCAB_BYTES} bytes an entry, "
            f"rounded down to a power of two, {SMALLEST_VOCAB} at least; --vocab-size asks for another"
        )
    return size


def one_folder(args: argparse.Namespace) -> Path:
    """The --input of an adopted pair. InputError for several, or for options that its tokens cannot obey."""
    text_only = {"--val-input": args.val_input, "--split-on": args.split_on, "--document-bytes": args.document_bytes}
    given = [name for name, value in {**text_only, "--skip-bad": args.skip_bad}.items() if value]
    if given:
        raise InputError(f"--source nanogpt takes tokens as they are: leave {', '.join(given)} out")
    paths: list[str] = args.input or ["."]
    if len(paths) > 1:
        raise InputError(f"--source nanogpt reads one folder; --input names {len(paths)}")
    return Path(paths[0])


def _read_model(path: Path) -> bytes:
    if not path.is_file():
        raise InputError(f"--tokenizer {path} is neither bpe, unigram, gpt2 nor a file")
    try:
        SentencePiece(path.read_bytes())
    except InputError as error:
        raise InputError(f"--tokenizer {path}: {error}") from None
    return path.read_bytes()
