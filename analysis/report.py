"""One page of all that these runs say: findings, interactive figures, tables.

    python -m analysis report 'runs/quickstart-*' --out runs/report

The page opens anywhere and asks no network. Beside index.html lie the figures as PNG, SVG and CSV, and the tables as CSV.
"""

from __future__ import annotations

import argparse
import base64
import html
import json
import os
import re
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, select_autoescape
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from analysis.catalogue import CATALOGUE
from analysis.command import Options, Result, add_runs, late_notes, load_runs, options_of, root_of, write
from analysis.due import dues, provisional
from analysis.on_page import plotly
from analysis.opening import AT_ONCE, opening
from analysis.runs import Run, differing_fields, field_name, shown
from analysis.trained import facts
from configs.errors import InputError

HERE = Path(__file__).parent


def results_of(runs: list[Run], options: Options) -> tuple[list[Result], list[str]]:
    """Every analysis that has something to say of these runs, and why the others have not."""
    # an analysis that finds nothing to work on does not end the page
    results, notes = [], []
    for name, entry in CATALOGUE.items():
        if not entry.on_page or not entry.fits(runs):
            continue
        try:
            results.append(entry.load().analyse(runs, options))
        except InputError as error:
            notes.append(f"{name} is left out: {error}")
    return results, notes


def differences(runs: list[Run]) -> pd.DataFrame:
    """The runs' states and the fields in which they differ."""
    # a short name where it is clear, the whole one where two fields end alike
    names = differing_fields(runs)
    alone = [name for name in names if sum(field_name(name) == field_name(other) for other in names) == 1]
    rows = []
    for run in runs:
        row: dict[str, object] = {field_name(n) if n in alone else n: shown(run.fields.get(n)) for n in names}
        # names are long: they come last
        rows.append(row | {"state": run.state, "step": run.last_step, "run": run.path.name})
    return pd.DataFrame(rows)


def render(runs: list[Run], results: list[Result], notes: list[str], title: str) -> str:
    """The page. Its scripts and styles are told apart from any that a run's name might bring by their hashes."""
    here = Environment(loader=FileSystemLoader(HERE), autoescape=select_autoescape(default=True))
    plotlyjs, js, css = (_lines(text) for text in (get_plotlyjs(), *map(_beside, ("report.js", "report.css"))))
    # JSON in the page: the reader's browser draws, no figure is a picture
    figures: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        for figure in result.figures:
            figures[f"{result.name}-{figure.name}"] = [_escaped(panel) for panel in plotly(figure)]
    # what the switches of the page offer: every value that some line carries
    keys: dict[str, list[str]] = {}
    for panels in figures.values():
        for trace in (trace for panel in panels for trace in panel["data"]):
            for key, value in trace.get("meta", {}).items():
                keys.setdefault(key, [])
                keys[key] += [value] if value not in keys[key] else []
    return here.get_template("report.html").render(
        title=title,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        runs=runs,
        trained=dict(facts(runs)),
        tables={"Runs and how they differ": differences(runs)},
        results=results,
        opening=opening(results),
        at_once=AT_ONCE,
        notes=notes,
        # a switch of one value would hide everything
        switches={key: sorted(values, key=_place) for key, values in keys.items() if len(values) > 1},
        # "<" in a run's name would end the script
        figures=Markup(json.dumps(figures, allow_nan=False).replace("<", "\\u003c")),
        plotlyjs=Markup(plotlyjs),
        js=Markup(js),
        css=Markup(css),
        policy=policy([plotlyjs, js], [css, ""]),  # plotly makes an empty style element, and fills it by rules
        # It also brings its maps' styles, which the policy would refuse, unless an element of this id is there already.
        unwanted=re.findall(r'if\(!document\.getElementById\("([0-9a-f]{64})"\)\)', plotlyjs),
        rows_of=lambda table: table.astype(object).where(table.notna(), "").to_numpy().tolist(),
    )


def policy(scripts: list[str], styles: list[str]) -> str:
    """What the page may do: run these scripts, show these style sheets, ask nobody.

    Style attributes stay free, because plotly sets them on what it draws; they can neither run nor fetch anything here.
    """

    def sources(texts: list[str]) -> str:
        return " ".join(f"'sha256-{base64.b64encode(sha256(text.encode()).digest()).decode()}'" for text in texts)

    return (
        f"default-src 'none'; script-src {sources(scripts)}; style-src-elem {sources(styles)}; "
        "style-src-attr 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def _beside(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _lines(text: str) -> str:
    """With the line ends that a browser hashes."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _place(value: str) -> tuple[int, float, str]:
    try:
        return (0, float(value), "")
    except ValueError:
        return (1, 0.0, value)


def _escaped(panel: dict[str, Any]) -> dict[str, Any]:
    """Plotly reads a little HTML in names and titles: names of runs are text."""
    for trace in panel["data"]:
        if "name" in trace:
            trace["name"] = html.escape(trace["name"])
    panel["layout"]["title"]["text"] = html.escape(panel["layout"]["title"]["text"])
    return panel


def add_options(parser: argparse.ArgumentParser) -> None:
    add_runs(parser)
    parser.add_argument("--title", default="What weight decay did", help="of the page")


def act(args: argparse.Namespace) -> int:
    out, options = args.out or Path("report"), options_of(args)
    root = root_of(args)
    runs, notes = load_runs(args.runs, root)
    results, more = results_of(runs, options)
    due = dues(args.runs, root, runs)
    results = [provisional(result, due) for result in results]
    if not results:
        raise InputError("no analysis has anything to say of these runs: " + "; ".join(more))
    for result in results:
        write(result, out / "figures")
    # figures first: the page is new only when all it shows is
    page, text = out / "index.html", render(runs, results, notes + more + late_notes(runs), args.title)
    draft = page.with_suffix(".tmp")
    # a report that is made again replaces the old page whole
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, page)
    told = opening(results)
    print(told.sum)
    for text in [*told.cautions, *(claim.sentence for claim in told.decided), *told.others]:
        print(f"- {text}")
    print(page)
    return 0
