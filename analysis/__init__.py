"""What the runs say: `python -m analysis` lists the analyses."""

import sys

# While Python looks up the module after -m, argv[0] is still "-m". A module of this room has nothing to do by itself:
# without a word here, `python -m analysis.sweep RUN` would end as if all were well.
if sys.argv[0] == "-m":
    _module = next((word for word in sys.orig_argv if word.startswith("analysis")), "analysis")
    if _module != "analysis":
        _name = _module.removeprefix("analysis.")
        print(f"error: write `python -m analysis {_name} …`; `python -m analysis` lists what there is", file=sys.stderr)
        sys.exit(2)
