"""The pages are true: their commands exist with the options they give them, their links lead somewhere, their tables fit."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from pydoc_data.topics import topics
from unittest.mock import patch

import pytest

from analysis.catalogue import CATALOGUE
from configs.load import load_config
from configs.precision import TABLE
from configs.reference_page import PAGE, filled
from configs.sweep import all_cells, expand
from optim import rules
from tests.processes import ROOT
from train import main

PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
}
README = PAGES["README.md"]
EVERYTHING = "\n".join(PAGES.values())
# They only act.
NO_OPTIONS = {"configs.editor_schema", "configs.reference_page", "tests.test_identities", "pytest"}
SHELL = {
    ".",
    "pre-commit",
    "cat",
    "cp",
    "touch",
    "kill",
    "pip",
    "git",
    "bash",
    "END",
}  # of these only the files are looked at
# What a command needs that a machine for tests may lack stands behind it, for the reader too. None of them is started here.
NEEDS = re.compile(r"# .*\bneeds? (a cluster|a GPU|hours|the network)")


def commands(text: str) -> list[str]:
    """The lines of a page's shell blocks, continued ones joined, files written in them left out; and `python -m …` in its prose."""
    lines: list[str] = []
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
        block = re.sub(r"(<<'END'[^\n]*\n).*?^END$", r"\1", block, flags=re.DOTALL | re.MULTILINE).replace("\\\n", " ")
        lines += [line for line in block.splitlines() if line.strip() and not line.startswith("#")]
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return lines + re.findall(r"`(python -m [^`\n]+)`", prose)


COMMANDS = {f"{name}: {line}": line for name, text in PAGES.items() for line in commands(text)}


@cache
def usage(*words: str) -> str:
    """What a module says to --help."""
    text = io.StringIO()
    with patch("sys.argv", [*words, "--help"]), contextlib.redirect_stdout(text), pytest.raises(SystemExit) as ended:
        runpy.run_module(words[0], run_name="__main__", alter_sys=False)
    assert not ended.value.code, words
    return text.getvalue()


def words_of(line: str) -> list[str]:
    words = shlex.split(line, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):  # variables before the command
        words.pop(0)
    return words


def test_something_is_checked() -> None:
    """Breaks if the extraction finds nothing and the tests below pass on air."""
    assert len(COMMANDS) >= 20
    assert {words_of(line)[0] for line in COMMANDS.values()} - SHELL == {"make", "deepspeed", "python"}


@pytest.mark.filterwarnings(
    "ignore:.*found in sys.modules:RuntimeWarning"
)  # a module that runs, and is imported elsewhere
@pytest.mark.parametrize("line", COMMANDS.values(), ids=COMMANDS.keys())
def test_command(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if a documented command names a target, module, configuration or option that is not there."""
    words = words_of(line)
    for word in words:
        if re.fullmatch(r"(configs|slurm|tests|benchmarks|docs)/[\w./-]+\.\w+", word) and word != "slurm/site.json":
            assert (ROOT / word).exists(), word
    if words[0] == "make":
        subprocess.run(["make", "-n", words[1]], cwd=ROOT, check=True, capture_output=True)
    elif "train.py" in words and "configs/" in line:
        options = [word for word in words[words.index("train.py") + 1 :] if word != "--dry-run"]
        assert main([*options, "--dry-run", *([] if "--ranks" in options else ["--ranks", "1"])]) == 0
        capsys.readouterr()
    elif words[:2] == ["python", "-m"]:
        named = words[2:4] if words[2] == "analysis" and len(words) > 3 and words[3].islower() else words[2:3]
        assert find_spec(named[0]), named
        if named[0] not in NO_OPTIONS:
            for option in (word.partition("=")[0] for word in words if word.startswith("--")):
                assert option in usage(*named), option


@pytest.mark.parametrize("name", [name for name, text in PAGES.items() if "```json" in text])
def test_examples(name: str, tmp_path: Path) -> None:
    """Breaks if a configuration or a sweep that a page shows whole is refused."""
    for text in re.findall(r"```json\n(.*?)```", PAGES[name], re.DOTALL):
        given = json.loads(text)
        given["base"] = str(ROOT / "configs" / Path(given["base"]).name)
        path = tmp_path / "example.json"
        path.write_text(json.dumps(given))
        if "axes" in given:
            assert len(all_cells(expand(path, tmp_path, lambda _: None)[1])) == 21  # as the page counts them
        else:
            load_config(path)


def test_the_rule_that_is_shown() -> None:
    """Breaks if docs/add-a-rule.md shows another rule than the one that is there, or leaves out what a rule may say."""
    page = PAGES["docs/add-a-rule.md"]
    (shown,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert shown == (ROOT / "optim" / "rules" / "selective_projection.py").read_text()
    said = re.findall(r"^    (\w+)(?:\(|  )", rules.__doc__ or "", re.MULTILINE)
    assert len(said) == 15
    assert [name for name in said if f"`{name}" not in page] == []


@pytest.mark.engine
def test_own_text(tmp_path: Path) -> None:
    """Breaks if a stranger with a text file does not get from the README's first screen to two runs and their curves.

    The lines are run as they stand, with a shorter schedule and this Python; what is shown of a run must be what one prints.
    """
    block, shown = re.findall(r"```(?:sh)?\n(.*?)```", README, re.DOTALL)[:2]
    lines = [line for line in block.splitlines() if not line.startswith(("make ", ". "))]
    script = (
        "\n".join(["set -e", *lines]).replace('"steps": 200', '"steps": 60').replace("python ", f"{sys.executable} ")
    )
    (tmp_path / "book.txt").write_text("\n\n".join(topics.values()))
    (tmp_path / "train.py").symlink_to(ROOT / "train.py")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    for line in shown.splitlines():
        words = re.split(r"  +|:|\d", line.strip())[0]
        assert words in ended.stderr, line
    assert "λ = 0.5 minus λ = 0" in ended.stdout
    assert len(list((tmp_path / "runs").glob("book-*/status.json"))) == 2
    assert (tmp_path / "runs" / "book-curves" / "loss.png").is_file()


def test_needs_are_said() -> None:
    """Breaks if a page has a reader start a study of days, or a job of a cluster, without a word of what it needs."""
    for name, line in COMMANDS.items():
        submits = "slurm.submit" in line and "--dry-run" not in line and "FILE" not in line
        if (submits and ("--local" not in line or "/p1_" in line)) or "gpu.sh" in line or "--no_ssh" in line:
            assert NEEDS.search(line), name


@pytest.mark.parametrize("name", PAGES)
def test_links(name: str) -> None:
    """Breaks if a page links to a file or a heading that is not there."""
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[name]):
        if "://" in target:
            continue
        file, _, heading = target.partition("#")
        path = (ROOT / name).parent / file if file else ROOT / name
        assert path.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
            anchors = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
            assert heading in anchors, target


@pytest.mark.parametrize("target", ["quickstart", "test", "check", "system-deps"])
def test_make_targets(target: str) -> None:
    """Breaks if the README and the Makefile lose one of the promised targets."""
    assert f"make {target}" in README
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", [".pre-commit-config.yaml", ".github/workflows/test.yml", ".ci/run"])
def test_machines_call_the_makefile(name: str) -> None:
    """Breaks if a hook or a workflow calls a target that is gone: it would fail where nobody of us looks."""
    targets = set(re.findall(r"(?:run:|entry:|^|=1) ?make ([\w-]+)", (ROOT / name).read_text(), re.MULTILINE))
    assert targets
    for target in targets:
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)


def test_every_field_is_documented() -> None:
    """Breaks if docs/configuration.md lags behind the schema; `python -m configs.reference_page` fills it anew."""
    assert filled(PAGE.read_text()) == PAGE.read_text(), "run python -m configs.reference_page"


def test_precision_table() -> None:
    """Breaks if the dtypes on the page are not those of the table in code."""
    short = {"float32": "float32", "bfloat16": "bfloat16", "tensorfloat32": "TF32"}
    for precision, dtypes in TABLE.items():
        row = next(
            line for line in EVERYTHING.splitlines() if re.match(rf"\| `{precision}`.*float", line)
        )  # `fp32` and more behind it
        cells = [cell.strip() for cell in row.strip("|").split("|")][1:]
        assert cells[:4] == [dtypes.weights, dtypes.masters, dtypes.accumulation, dtypes.moments], precision
        assert dtypes.accumulation == dtypes.reduction
        assert cells[4].startswith(short[dtypes.matmul]), precision
        assert cells[5] == dtypes.rounding, precision


def test_every_analysis_is_explained() -> None:
    """Breaks if an analysis is added, or gets another name, and the page on reading figures does not have it."""
    for name in CATALOGUE:
        assert re.search(rf"`(python -m analysis )?{name}\b", PAGES["docs/analysis.md"]), name


def test_trouble_quotes_real_messages() -> None:
    """Breaks if docs/trouble.md quotes a message that the code no longer gives: a reader would search for it in vain."""
    rooms = ("configs", "record", "data", "model", "optim", "engine", "weights", "slurm", "analysis")
    files = [ROOT / "train.py", *(path for room in rooms for path in (ROOT / room).rglob("*.py"))]
    code = re.sub(r'"\s*\n\s*f?"', "", "\n".join(path.read_text() for path in files))  # strings in pieces, joined
    for row in re.findall(r"^\| (?!symptom|---)(.*?) \|", PAGES["docs/trouble.md"], re.MULTILINE):
        for quoted in re.findall(r"`([^`]+)`", row):
            assert all(piece.strip() in code for piece in quoted.split("…") if not quoted.startswith("python")), quoted
