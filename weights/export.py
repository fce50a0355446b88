"""Weights out of a run: `python -m weights.export RUN[@STEP] --to safetensors --out DIR`.

Writes `model.safetensors`, float32 by parameter name with tied weights once, whatever the precision, ZeRO stage or number of ranks
of the run, of a network for images its running statistics too; and `config.json`, the model section of its configuration. Without
@STEP it takes the newest sound checkpoint, and names newer ones that are damaged or set aside.
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
from weights.read import choose_in


def export(run: Path, step: int | None, out: Path, kind: str = "weights") -> Path:
    """Export the checkpoint of `step` (None: the newest sound one) into the new folder `out`; returns the checkpoint.

    `kind` is `weights` or an average, `ema_0.99`. Raises InputError if there is no such checkpoint or average, it is
    damaged, or `out` exists; nothing is left behind then.
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
    parser.add_argument("--to", choices=("safetensors",), default="safetensors", help="format")
    parser.add_argument("--out", type=Path, required=True, help="folder to create")
    parser.add_argument("--weights", default="weights", metavar="KIND", help="an average instead: ema_0.99")
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(levelname)s: %(message)s")
    try:
        run, step = parse_address(args.run)
        path = export(run, step, args.out, args.weights)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.out}: weights of {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
