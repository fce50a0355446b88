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
from data.huggingface import HuggingFace
from data.lossless import Given
from data.named_tokenizer import read_gpt2, read_named
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
from data.sources import HUB, SOURCES, Source, open_source
from data.streams import MAX_DOCUMENT, MAX_RATIO, MAX_UNPACKED
from data.tokenizer import GPT2

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

the token that ends a document, of a tokenizer of Hugging Face
  --eot; else eos_token of tokenizer_config.json beside the file; else <|endoftext|>. The tokenizer must be lossless: a text that
  it does not give back, a word of a text that it takes for the end, or ids drawn at random are refused.

bounds
  A line or a document has at most {MAX_DOCUMENT >> 20} MiB. A compressed file gives at most {MAX_RATIO} times its own bytes, or
  {MAX_UNPACKED >> 20} MiB if that is more. What is beyond is refused.
"""


@dataclass
class Request:
    """What a command line asks for. `given`: a tokenizer of a file. `fit`: the vocabulary is a default and may be lowered."""

    source: Source
    options: Options
    given: Given | None
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
    add("--input", nargs="+", help="files, folders or quoted globs; for nanogpt and llmc the folder of .bin files")
    add("--val-input", nargs="+", default=[], help="files of their own for validation, instead of a share of --input")
    add("--out", required=True, type=Path, help="folder to create")
    add(
        "--tokenizer",
        help="bpe (default) or unigram, trained here; gpt2; or a file: of a SentencePiece model, tokenizer.json, or GPT-2's "
        "merges; nanogpt, llmc: its tokens'",
    )
    add("--merges", type=Path, help="gpt2: OpenAI's vocab.bpe, for a machine without network")
    add("--eot", metavar="TOKEN", help="tokenizer.json: the token that ends a document, where its files do not tell")
    add("--vocab-size", type=int, help="of the tokenizer to train; default: see below. nanogpt, llmc: of its tokens")
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
    add(
        "--dataset",
        help="hub, openwebtext: a dataset with text, such as HuggingFaceFW/fineweb, or the folder of a copy",
    )
    add("--config", help="hub: a configuration that the dataset's card names, such as sample-10BT; default: the card's")
    add("--revision", help="hub, openwebtext: of the dataset; default main, else the hub's parquet conversion")
    return made


def read_request(args: argparse.Namespace) -> Request:
    """Find the files and choose what was left open. What was chosen is in the source's notes. InputError for bad options."""
    if args.source in HUB:
        source = _open_dataset(args)
    elif args.config is not None:
        raise InputError(f"--config {args.config} is for --source hub, of which it names a configuration")
    else:
        by_name = args.val_fraction is None
        source = open_source(args.source, args.input, args.text_field, args.packages, args.val_input, by_name)
    source.skip_bad = args.skip_bad
    split = _choose_documents(args, source)
    fraction = _choose_val_fraction(args, source)
    args.tokenizer = args.tokenizer or "bpe"
    given, tokenizer = named_tokenizer(args), args.tokenizer
    if given is not None and tokenizer != "gpt2":
        tokenizer = hashlib.sha256(given.content).hexdigest()
        if isinstance(given, HuggingFace):  # which of its tokens ends a document is not said by its file
            tokenizer += f", end of text {given.eot}"
    fit = args.tokenizer in TRAINED and args.vocab_size is None
    vocab_size = _choose_vocab(args, source, given, split)
    options = Options(vocab_size, fraction, args.seed, args.text_field, tokenizer)
    return Request(source, options, given, fit)


def _open_dataset(args: argparse.Namespace) -> Source:
    """A dataset of the hub. InputError for options of files, and where no dataset is named."""
    if args.input or args.val_input:
        raise InputError(
            f"--source {args.source} takes no --input and no --val-input; see --dataset, or --source parquet"
        )
    if args.source == "hub" and args.dataset is None:
        raise InputError("--source hub needs --dataset: a name such as HuggingFaceFW/fineweb, or a local copy's folder")
    return open_hub(args.dataset or OPENWEBTEXT, args.revision, args.text_field, args.config, args.source)


def named_tokenizer(args: argparse.Namespace) -> Given | None:
    """The tokenizer of a file that --tokenizer, --merges and --eot ask for; what was taken is printed. None: of no file."""
    if args.merges is not None and args.tokenizer != "gpt2":
        raise InputError(
            f"--merges {args.merges} is for --tokenizer gpt2; name a tokenizer of your own with --tokenizer FILE"
        )
    if args.eot is not None and args.tokenizer in (None, *TRAINED, "gpt2"):
        raise InputError(f"--eot {args.eot} is for a tokenizer of Hugging Face: --tokenizer PATH/tokenizer.json")
    if args.merges is not None:
        return read_gpt2(args.merges)
    if args.tokenizer in (None, *TRAINED, "gpt2"):
        return None
    given, said = read_named(Path(args.tokenizer), args.eot)
    if said:
        print(said)
    return given


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


def _choose_vocab(args: argparse.Namespace, source: Source, tokenizer: Given | None, split: bool) -> int:
    """The vocabulary to train. InputError beside a tokenizer that has another."""
    given: int | None = args.vocab_size
    if given is not None and given < 1:
        raise InputError(f"--vocab-size {given} must be at least 1")
    if given is not None and args.tokenizer not in TRAINED:
        own = (tokenizer or GPT2()).vocab_size
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
    """The --input of adopted tokens. InputError for several, or for options that its tokens cannot obey."""
    text_only = {"--val-input": args.val_input, "--split-on": args.split_on, "--document-bytes": args.document_bytes}
    others = {"--skip-bad": args.skip_bad, "--dataset": args.dataset, "--config": args.config}
    given = [name for name, value in {**text_only, **others}.items() if value]
    if given:
        raise InputError(f"--source {args.source} takes tokens as they are: leave {', '.join(given)} out")
    paths: list[str] = args.input or ["."]
    if len(paths) > 1:
        raise InputError(f"--source {args.source} reads one folder; --input names {len(paths)}")
    return Path(paths[0])
