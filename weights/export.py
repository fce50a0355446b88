"""Weights out of a run.

    python -m weights.export RUN[@STEP] --to safetensors --out DIR
    python -m weights.export RUN[@STEP] --to hf --out DIR [--weights ema_0.99] [--data DIR]

`safetensors`: `model.safetensors`, float32 by parameter name with tied weights once, whatever the precision, ZeRO stage or number
of ranks of the run, of a network for images its running statistics too; and `config.json`, its configuration's model section.
`hf`: a folder that transformers reads, model and tokenizer (weights/hf_folder.py). Without @STEP it takes the newest sound
checkpoint, and names newer ones that are damaged or set aside.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
from pathlib import Path

from safetensors.torch import save_file

from configs.errors import InputError
from record.checkpoints import parse_address
from record.files import read_object, write_json
from record.run import RunFolder
from weights.hf_folder import write_folder
from weights.read import choose_in


def export(
    run: Path, step: int | None, out: Path, kind: str = "weights", to: str = "safetensors", data: Path | None = None
) -> Path:
    """Export the checkpoint of `step` (None: the newest sound one) into the new folder `out`; returns the checkpoint.

    `kind` is `weights` or an average, `ema_0.99`; `to` is safetensors or hf, whose tokenizer lies with the run's data, in `data`
    or where the run says. Raises InputError if there is no such checkpoint or average, it is damaged, the format cannot hold
    it, or `out` exists; nothing is left behind then.
    """
    if out.exists():
        raise InputError(f"{out} exists; choose another --out")
    folder = RunFolder(run)
    chosen = choose_in(folder, step)
    weights, buffers = chosen.tensors(kind), chosen.buffers()
    if buffers and kind != "weights":
        raise InputError(
            f"{kind} of {run} has no running statistics of batch normalisation, which a network needs; `python -m "
            "weights.evaluate` estimates them for an evaluation. Export weights"
        )
    weights |= buffers
    model = read_object(folder.config).get("model")
    if not isinstance(model, dict):
        raise InputError(f"{folder.config} has no section model")
    # Both files are written into a folder beside `out`, which is then renamed: `out` is whole, or not there.
    work = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(work, ignore_errors=True)
    try:
        work.mkdir(parents=True)
        if to == "hf":
            write_folder(work, chosen, kind, weights, data)
        else:
            write_json(work / "config.json", model)
            save_file(weights, work / "model.safetensors", metadata={"format": "pt"})
        shutil.copymode(work / "config.json", work / "model.safetensors")  # as the umask says; safetensors leaves 0600
        work.rename(out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return chosen.paths[0]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m weights.export", description="Export the weights of a run.")
    parser.add_argument("run", help="run folder, or FOLDER@STEP")
    parser.add_argument("--to", choices=("safetensors", "hf"), default="safetensors", help="format")
    parser.add_argument("--out", type=Path, required=True, help="folder to create")
    parser.add_argument(
        "--weights", "--average", default="weights", metavar="KIND", help="an average instead: ema_0.99"
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="of hf: where the run's data lies now")
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(levelname)s: %(message)s")
    try:
        run, step = parse_address(args.run)
        if args.data is not None and args.to != "hf":
            raise InputError(f"--data does nothing with --to {args.to}; leave it out")
        path = export(run, step, args.out, args.weights, args.to, args.data)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.out}: weights of {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
