"""The command line of train.py."""

from __future__ import annotations

import argparse
from pathlib import Path

from configs.echo import shown


def parse_args(argv: list[str] | None, description: str | None) -> argparse.Namespace:
    """Options that do not fit together end with a message and exit code 2, as argparse does it."""
    parser = argparse.ArgumentParser(
        prog="train.py", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="JSON configuration")
    parser.add_argument(
        "--set", action="append", metavar="KEY=VALUE", help="override a field, e.g. optim.weight_decay=0.1"
    )
    parser.add_argument("--run-dir", type=Path, help="run folder; default runs/<name>-<id>")
    parser.add_argument("--resume", choices=("auto", "must", "never"), default="auto", help="default: auto")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the resolved configuration and the plan, then exit"
    )
    parser.add_argument(
        "--step", type=int, help="with --resume must: continue from this checkpoint, not from the newest"
    )
    parser.add_argument(
        "--replay", type=int, metavar="STEP", help="take one step of the run again, print its tensors, write nothing"
    )
    parser.add_argument(
        "--profile", type=int, default=0, metavar="N", help="trace N updates from the third on, into the run folder"
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="where the data of a run that is resumed lies now; other data is refused",
    )
    parser.add_argument("--branch", metavar="RUN@STEP", help="start a new run from this checkpoint (branch.origin)")
    parser.add_argument("--ranks", type=int, help="with --dry-run: plan for this many ranks")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    args, stray = parser.parse_known_args(argv)
    if stray:
        parser.error(
            f"no option takes {shown(stray)}: each override needs a --set of its own (--set optim.lr=0.1 --set seeds.init=1), "
            "and a name with a * must be quoted, or the shell replaces it by many"
        )
    if args.step is not None and args.resume != "must":
        parser.error("--step goes with --resume must")
    if args.profile < 0:
        parser.error("--profile takes a number of updates")
    if args.ranks is not None and (args.ranks < 1 or not args.dry_run):
        parser.error("--ranks takes a positive number and goes with --dry-run; otherwise the launcher sets the ranks")
    return args
