"""Fill the tables of the pages from the committed results and the code: `python -m benchmarks.pages`.

In README.md and docs/ a table stands between `<!-- table: NAME -->` and `<!-- end -->`, and only that is written here: the
words around it are the page's own. A test compares.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks import cost_tables, image_experiments, muon_pieces, noise_equilibrium, rule_table, speed_tables
from benchmarks.markdown import ROOT

TABLES: dict[str, Callable[[], str]] = {
    "device": cost_tables.device,
    "study": cost_tables.study,
    "devices": cost_tables.devices,
    "memory": cost_tables.memory,
    "memory_of_shapes": cost_tables.memory_of_shapes,
    "logits": cost_tables.logits,
    "experiments": cost_tables.experiments,
    "vision": image_experiments.experiments_on_images,
    "mechanisms": image_experiments.experiments_of_p2,
    "aims": speed_tables.aims,
    "loop": speed_tables.loop,
    "images": speed_tables.images,
    "shares": speed_tables.shares,
    "means": speed_tables.means,
    "ranks": speed_tables.ranks,
    "gpus": speed_tables.gpus,
    "rules": rule_table.rules,
    "algorithms": rule_table.algorithms,
    "muon": muon_pieces.pieces_of_matrices,
    "noise": noise_equilibrium.rules_under_noise,
}
MARKED = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def pages() -> list[Path]:
    """The pages that hold a table."""
    every = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [path for path in every if MARKED.search(path.read_text(encoding="utf-8"))]


def filled(page: str) -> str:
    """The text of a page with every table as the results have it today."""
    if unknown := {name for _, name, _ in MARKED.findall(page)} - set(TABLES):
        raise SystemExit(f"there is no table {min(unknown)!r}; there are {', '.join(TABLES)}")
    return MARKED.sub(lambda marked: f"{marked[1]}{TABLES[marked[2]]()}\n{marked[3]}", page)


def main() -> int:
    argparse.ArgumentParser(
        prog="python -m benchmarks.pages", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    for path in pages():
        before = path.read_text(encoding="utf-8")
        after = filled(before)
        path.write_text(after, encoding="utf-8")
        print(f"{path.relative_to(ROOT)}: {'as it was' if after == before else 'filled'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
