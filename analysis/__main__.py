"""The command line of every analysis.

python -m analysis                           what there is
python -m analysis NAME --help               one of them
python -m analysis NAME RUN… [--out DIR]     RUN: run folders, archives, folders of either, globs, sweep files
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys

from analysis.catalogue import CATALOGUE, about
from analysis.command import Analysis, add_runs, late_notes, load_runs, options_of, parser_of, root_of, show
from analysis.due import dues, provisional
from configs.errors import InputError


def listing() -> str:
    """Every analysis in a line: its name, what it is given, what it shows, which runs it needs."""
    lines = [(__doc__ or "").partition("\n\n")[2]]
    for name, entry in CATALOGUE.items():
        needs = f" Needs {entry.needs}." if entry.needs else ""
        lines.append(f"{name + ' ' + entry.given:<22} {about(entry)}{needs}")
    return "\n".join(lines)


def unknown(name: str) -> str:
    """What to say to a name that no analysis has: the near one, or how to give the runs that stand in its place."""
    # runs without a name before them: most likely all of them are meant
    if os.path.exists(name):
        return f"the name of an analysis stands before its runs: python -m analysis report {name}"
    # a word of ten thousand letters is compared for seconds
    near = difflib.get_close_matches(name, CATALOGUE, n=1, cutoff=0.5) if len(name) < 100 else []
    meant = f"did you mean {near[0]!r}?" if near else "`python -m analysis` says what each shows."
    return f"there is no analysis {name[:80]!r}; {meant} There are: {', '.join(CATALOGUE)}"


def tell(analysis: Analysis, args: argparse.Namespace) -> int:
    """Ask an analysis about the runs that `add_runs` has taken from the command line, and show what it answers."""
    options, root = options_of(args), root_of(args)
    runs, notes = load_runs(args.runs, root)
    result = provisional(analysis(runs, options), dues(args.runs, root, runs))
    show(result, notes + late_notes(runs), args.out)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Exit code 2 and one message for bad input."""
    words = sys.argv[1:] if argv is None else argv
    # to ask what there is is no mistake
    if not words or words[0] in ("-h", "--help"):
        print(listing())
        return 0
    name, *rest = words
    try:
        if name not in CATALOGUE:
            raise InputError(unknown(name))
        module = CATALOGUE[name].load()
        parser = parser_of(name, module.__doc__)
        getattr(module, "add_options", add_runs)(parser)  # those with options of their own bring both
        args = parser.parse_args(rest)
        return int(module.act(args)) if hasattr(module, "act") else tell(module.analyse, args)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
