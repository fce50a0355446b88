"""The house's rules: who may import whom, and which rooms need no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
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


def test_weights_are_read_without_deepspeed() -> None:
    """Breaks if reading, evaluating or exporting weights starts to need DeepSpeed, by whatever files in between."""
    names = [f"weights.{path.stem}" for path in sorted((ROOT / "weights").glob("*.py")) if path.stem != "__init__"]
    code = f"import sys, {', '.join(names)}; sys.exit('deepspeed' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("name", ["utils", "common", "helpers", "misc"])
def test_no_drawer_for_everything(name: str) -> None:
    """Breaks if a file gets a name that says nothing."""
    assert not [path for room in ROOMS for path in (ROOT / room).rglob(f"{name}.py")]
