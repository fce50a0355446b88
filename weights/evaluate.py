"""What a model costs on text, after the fact: loss, perplexity, bits per byte. Of a run on images its loss and error.

    python -m weights.evaluate RUN[@STEP]                     over the run's own validation windows
    python -m weights.evaluate RUN --average 800,1000,1200    the mean of several checkpoints' weights
    python -m weights.evaluate RUN --data DIR                 on other prepared text, or where the run's own data lies now
    python -m weights.evaluate RUN RUN@STEP FOLDER --data DIR several, each minus the first

FOLDER is a model of Hugging Face or of nanoGPT (record/foreign.py). One process and one device; the precision of the run. Of one
model prints one JSON object, of several a table, or with --json an array. Without @STEP the newest sound checkpoint is evaluated;
newer ones that are damaged or set aside are named, and listed under `left_out`.

Errors are standard errors over windows (weights/elsewhere.py): what other windows of this text would change, and not other seeds.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.errors import InputError
from configs.load import read_json, validate
from data.manifest import Manifest, read_manifest
from record.checkpoints import parse_address
from record.foreign import find_foreign
from record.run import RunFolder
from weights.elsewhere import Losses, Text, losses_on, paired
from weights.on_images import validation_means
from weights.read import choose, choose_device, config_with_data
from weights.source import Source, read_source, source_of


@dataclass(frozen=True)
class Asked:
    """The options of `main`."""

    average: str | None = None
    kind: str = "weights"
    data: Path | None = None
    tokens: int | None = None
    context: int | None = None


def parse_steps(text: str, option: str = "--average") -> list[int]:
    """The steps of `--average 800,1000,1200`. InputError if they are not different steps with one comma between two."""
    parts = text.split(",")
    if not text.replace(",", "").isdecimal() or max(map(len, parts)) > 15:
        raise InputError(f"{option} {text}: expected steps with commas between")
    if not all(parts) or len(set(map(int, parts))) < len(parts):
        raise InputError(f"{option} {text}: expected different steps, one comma between two")
    return [int(part) for part in parts]


@dataclass(frozen=True)
class Named:
    """What one address names: its row so far, and of a transformer its source, and the tokens that its own evaluations see."""

    row: dict[str, object]
    source: Source | None
    tokens: int | None = None


def evaluate(addresses: Sequence[str], asked: Asked) -> list[dict[str, object]]:
    """What `main` prints, a row a model. InputError for what cannot be evaluated."""
    if asked.average is not None and any(parse_address(address)[1] is not None for address in addresses):
        raise InputError(f"--average {asked.average}: expected a run without @STEP, found {', '.join(addresses)}")
    models = [_name(address, asked) for address in addresses]
    sources = [model.source for model in models if model.source is not None]
    if len(sources) == len(models):
        measured = _on_text(sources, models[0].tokens if len(models) == 1 else None, asked)
        return [model.row | each for model, each in zip(models, measured, strict=True)]
    if len(models) > 1 or asked.tokens is not None or asked.context is not None:
        raise InputError("a run on images is evaluated by itself, over all of its validation images")
    return [models[0].row]


def _name(address: str, asked: Asked) -> Named:
    """Of a run on images the row is whole."""
    steps = parse_steps(asked.average) if asked.average is not None else ()
    if find_foreign(address) is not None:
        row = {"run": address, "steps": [], "weights": asked.kind}
        return Named(row, read_source(address, asked.kind, steps=steps))
    chosen = choose(address, steps)
    left_out = [{"checkpoint": str(path), "why": why} for path, why in chosen.left_out]
    row = {"run": str(chosen.run.path), "steps": chosen.steps, "weights": asked.kind, "left_out": left_out}
    # images are evaluated on their own data alone, wherever that lies now
    images = validate(read_json(chosen.run.config), str(chosen.run.config)).unit == "images"
    elsewhere = not images and is_elsewhere(chosen.run, asked.data)
    try:
        config, manifest = config_with_data(chosen.run, None if elsewhere else asked.data)
    except InputError as error:
        if asked.data is None or images:
            raise
        raise InputError(
            f"{error}. On other data a run is evaluated where its own lies too, for its tokenizer"
        ) from None
    if isinstance(manifest, Manifest):
        source = source_of(chosen, asked.kind, None if elsewhere else asked.data)
        return Named(row, source, None if elsewhere else config.eval.tokens)
    averaged = asked.kind != "weights" or len(chosen.paths) > 1
    weights = {**chosen.tensors(asked.kind), **chosen.buffers()}
    return Named(row | validation_means(config, manifest, weights, averaged, choose_device()), None)


def is_elsewhere(run: RunFolder, data: Path | None) -> bool:
    """Whether `data` is other data than the run's, which lies where the run says."""
    if data is None:
        return False
    own, other = (read_manifest(folder) for folder in (run.data_path() or "", data))
    return own is not None and other is not None and own.digest != other.digest


def _on_text(sources: Sequence[Source], own_tokens: int | None, asked: Asked) -> list[dict[str, object]]:
    """Loss, perplexity, bits per byte of each model, and its difference from the first.

    `own_tokens`: of a run alone on its own data, how much of it its own evaluations see.
    """
    folders = {source.tokenizer_folder for source in sources if source.has_data}
    if asked.data is None and (len(folders) != 1 or not all(source.has_data for source in sources)):
        raise InputError(
            "say with --data DIR on which prepared text: these models have not one and the same of their own"
        )
    text = Text.of(asked.data or folders.pop())
    shortest = min(source.model.seq_len for source in sources)
    length = asked.context or shortest
    if length > shortest:
        raise InputError(f"--context {length}: the shortest context among these models is {shortest}")
    tokens = asked.tokens or (own_tokens if asked.context is None else None)
    most = None if tokens is None else max(1, tokens // length)
    device = choose_device()
    losses = [losses_on(source, text, length, most, device) for source in sources]
    return [_row(each, difference) for each, difference in zip(losses, paired(losses), strict=True)]


def _row(losses: Losses, difference: tuple[float, float] | None) -> dict[str, object]:
    """One model's numbers. Per token only where the tokens are the data's own: others' are of other lengths."""
    row: dict[str, object] = {"windows": len(losses.nats), "context": losses.targets}
    if losses.is_own:
        loss, error = losses.per_token
        row |= {"val/loss": loss, "val/loss_se": error, "val/perplexity": math.exp(min(loss, 700.0))}
    if losses.per_byte is not None:
        row |= dict(zip(("val/bits_per_byte", "val/bits_per_byte_se"), losses.per_byte, strict=True))
    if difference is not None:
        row |= dict(zip(("minus_first", "minus_first_se"), difference, strict=True))
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}


def table(rows: Sequence[dict[str, object]]) -> str:
    """Rows of several models as text."""
    lines = [["model", "nats per token", "perplexity", "bits per byte", "minus the first"]]
    for row in rows:
        steps = row["steps"]
        assert isinstance(steps, list)
        model = str(row["run"]) + ("@" + "+".join(map(str, steps)) if steps else "")
        model += "" if row["weights"] == "weights" else f" {row['weights']}"
        perplexity = f"{row['val/perplexity']:.2f}" if "val/perplexity" in row else "–"
        difference = _with_error(row, "minus_first") if row is not rows[0] else ""
        lines.append(
            [model, _with_error(row, "val/loss"), perplexity, _with_error(row, "val/bits_per_byte"), difference]
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)
    windows = f"{rows[0]['windows']} windows of {rows[0]['context']} targets"
    return "\n".join([*padded, f"{windows}; ± one standard error over windows, paired in the last column"])


def _with_error(row: dict[str, object], name: str) -> str:
    value, spread = row.get(name), row.get(f"{name}_se")
    if not isinstance(value, float):
        return "–"
    sign = "+" if name.startswith("minus") else ""
    return f"{value:{sign}.4f}" + (f" ± {spread:.4f}" if isinstance(spread, float) else "")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m weights.evaluate", description="What models cost on text.")
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="run folder, FOLDER@STEP, or a model of Hugging Face or nanoGPT"
    )
    parser.add_argument(
        "--average", metavar="STEP,STEP,…", help="of the mean of these checkpoints' weights; ema_0.99: as --weights"
    )
    parser.add_argument("--weights", default="weights", metavar="KIND", help="an average instead: ema_0.99")
    parser.add_argument("--data", type=Path, metavar="DIR", help="prepared data, the run's own or other")
    parser.add_argument(
        "--tokens",
        type=positive,
        metavar="N",
        help="of the validation split, spread evenly; default: all, or a run's own windows",
    )
    parser.add_argument(
        "--context", type=positive, metavar="T", help="targets in a window; default: the shortest context"
    )
    parser.add_argument("--json", action="store_true", help="an array of objects, also of several models")
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(levelname)s: %(message)s")
    try:
        # of an average that the run kept, or of checkpoints: the name tells
        kept = args.average if str(args.average).startswith("ema_") else None
        average = None if kept else args.average
        if kept and args.weights != "weights":
            raise InputError(f"--average {kept} and --weights {args.weights} name two averages; give one")
        rows = evaluate(args.runs, Asked(average, kept or args.weights, args.data, args.tokens, args.context))
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(rows) if args.json else json.dumps(rows[0]) if len(rows) == 1 else table(rows))
    return 0


def positive(text: str) -> int:
    """A count of one or more, of an option."""
    if not text.isdecimal() or not int(text[:15]) >= 1 or len(text) > 15:
        raise argparse.ArgumentTypeError(f"expected a number from 1 up, found {text[:40]!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
