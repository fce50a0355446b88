"""The house's rules: who may import whom, and which rooms need no torch."""

from __future__ import annotations

import ast
import io
import subprocess
import sys
import tokenize
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("configs", "record", "data", "model", "optim", "engine", "weights", "slurm", "analysis")
MAY_IMPORT = {
    "configs": set(),
    "record": {"configs"},
    "data": {"configs", "record"},
    "model": {"configs"},
    "optim": {"configs"},
    "engine": {"configs", "record", "data", "model", "optim"},
    "weights": {"configs", "record", "data", "model", "engine"},  # of engine only what needs no DeepSpeed, see below
    "slurm": {"configs", "record"},
    "analysis": {"configs", "record"},
}


def imports(path: Path) -> set[str]:
    """Top-level names of every import in a file, also those inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_arrows(room: str) -> None:
    """Breaks if a room imports one it may not, deepspeed outside engine, or torch on a login node."""
    for path in (ROOT / room).rglob("*.py"):
        found = imports(path)
        ours = (found & set(ROOMS)) - {room}
        assert ours <= MAY_IMPORT[room], f"{path} imports {sorted(ours - MAY_IMPORT[room])}"
        assert room == "engine" or "deepspeed" not in found, f"{path} imports deepspeed"
        assert room in ("model", "optim", "engine", "weights") or "torch" not in found, f"{path} imports torch"


def neighbours(path: Path) -> set[str]:
    """The files of its own room that a file imports, also inside functions and for types alone."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == path.parent.name:
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            room, _, name = node.module.rpartition(".")
            found |= {name} if room == path.parent.name else set()
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_no_circle_inside_a_room(room: str) -> None:
    """Breaks if two files of a room need each other, so that neither can be read first."""
    files = {path.stem: neighbours(path) for path in (ROOT / room).glob("*.py")}
    while ready := [name for name, needs in files.items() if not needs & set(files)]:
        for name in ready:
            del files[name]
    assert not files, f"{room}: a circle among {sorted(files)}"


def test_benchmarks_need_no_tests() -> None:
    """Breaks if a benchmark leans on what only the suite has."""
    for path in (ROOT / "benchmarks").rglob("*.py"):
        assert "tests" not in imports(path), path


def test_rooms_are_packages_or_absent() -> None:
    """Breaks if a room loses its __init__ and its modules can no longer be run with -m."""
    for room in ROOMS:
        assert not (ROOT / room).is_dir() or (ROOT / room / "__init__.py").exists(), room


def test_planning_needs_no_torch() -> None:
    """Breaks if a dry run, an import away from a cluster's login node, starts to need torch."""
    code = "import sys, train, record.checkpoints, record.metrics; from analysis.catalogue import CATALOGUE\n"
    code += "for entry in CATALOGUE.values(): entry.load()\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.slow
def test_weights_are_read_without_deepspeed() -> None:
    """Breaks if reading, evaluating or exporting weights starts to need DeepSpeed, by whatever files in between."""
    names = [f"weights.{path.stem}" for path in sorted((ROOT / "weights").glob("*.py")) if path.stem != "__init__"]
    code = f"import sys, {', '.join(names)}; sys.exit('deepspeed' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def sources() -> list[Path]:
    """Every Python file that is under version control, or is about to be."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    return [ROOT / name for name in listed if (ROOT / name).exists()]


def test_files_are_read_in_one_sitting() -> None:
    """Breaks if a file grows over 300 lines, or a function over 60."""
    long = [
        f"{path.relative_to(ROOT)}: {n} lines" for path in sources() if (n := len(path.read_text().splitlines())) > 300
    ]
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and (lines := (node.end_lineno or 0) - node.lineno + 1) > 60:
                long.append(f"{path.relative_to(ROOT)}, {node.name}: {lines} lines")
    assert not long


def test_no_two_files_of_one_name() -> None:
    """Breaks if a name leads to two files: whoever looks for one finds the other."""
    names = Counter(path.name for path in sources() if path.name not in ("__init__.py", "__main__.py"))
    assert not {name: count for name, count in names.items() if count > 1}


@pytest.mark.parametrize("room", ["engine", "optim", "analysis"])
def test_the_code_talks(room: str) -> None:
    """Breaks if a room has fewer than 8 lines with a comment to 100 lines of code; docstrings are neither."""
    comments = code = 0
    for path in (ROOT / room).rglob("*.py"):
        text, docstrings = path.read_text(), set()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
                docstrings |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        comments += len({token.start[0] for token in tokens if token.type == tokenize.COMMENT})
        lines = enumerate(text.splitlines(), 1)
        code += sum(1 for n, line in lines if line.strip() and not line.strip().startswith("#") and n not in docstrings)
    assert comments >= 0.08 * code, f"{comments} comments, {code} lines of code"


def test_readme_is_one_page() -> None:
    """Breaks if the front door becomes a manual again."""
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130


@pytest.mark.parametrize("name", ["utils", "common", "helpers", "misc"])
def test_no_drawer_for_everything(name: str) -> None:
    """Breaks if a file gets a name that says nothing."""
    assert not [path for room in ROOMS for path in (ROOT / room).rglob(f"{name}.py")]
