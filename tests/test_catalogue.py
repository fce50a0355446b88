"""`python -m analysis`: what it lists is there, and a word that it does not know is answered with what would work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from analysis.__main__ import main
from analysis.catalogue import CATALOGUE, about
from tests.processes import ROOT
from tests.recorded import write_run


def test_listing(capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if an analysis is missing from the list, has no words of its own, or takes more than a line."""
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, entry in CATALOGUE.items():
        (line,) = (line for line in lines if line.startswith(f"{name} "))
        assert about(entry) in line
        assert len(line) <= 150, line


@pytest.mark.parametrize("name", CATALOGUE)
def test_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if an analysis cannot say what it is asked with, or its example is a command of another one."""
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0
    assert f"usage: python -m analysis {name}" in text
    examples = [line.split()[3] for line in text.splitlines() if line.startswith("    python -m analysis ")]
    assert examples, "no example"
    assert set(examples) == {name}


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["loss_curve", "runs"], "there is no analysis 'loss_curve'; did you mean 'loss_curves'?"),
        (["x" * 10_000], "There are: loss_curves, sweep"),
        (["configs"], "the name of an analysis stands before its runs: python -m analysis report configs"),
        (["sweep", "no/such"], "'no/such' names no run folder"),
        (["sweep", ".", "--smoothing", "2"], "--smoothing 2 is no fraction of a run"),
    ],
)
def test_bad_words(words: list[str], answer: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if a wrong name is a traceback, is not answered with the near one, or repeats a long word in full."""
    assert main(words) == 2
    error = capsys.readouterr().err
    assert answer in error
    assert error.count("\n") == 1
    assert len(error) < 450


def test_a_module_is_no_command() -> None:
    """Breaks if `python -m analysis.NAME`, which no module answers, ends without a word as if all were well."""
    command = [sys.executable, "-m", "analysis.loss_curves", "runs"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "write `python -m analysis loss_curves …`" in ended.stderr


@pytest.mark.slow
def test_as_a_command(tmp_path: Path) -> None:
    """Breaks if what the tests call in this process does not work as its users call it."""
    write_run(tmp_path / "run", steps=100)
    command = [sys.executable, "-m", "analysis", "generalisation", str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.startswith("Generalisation\n- Validation minus training loss")
