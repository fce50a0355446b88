"""Run folders with any file changed at random: a report is made, or the folder is refused by name; never a traceback."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from analysis import advise, gate, report
from analysis.command import Options, late_notes, load_runs, write
from configs.load import load_config
from configs.prepared import read_summary
from configs.schema import RunConfig
from configs.sweep import all_cells, expand
from record.run import RunFolder
from slurm import status
from slurm.cells import standings
from tests.recorded import write_run
from tests.test_damage import sweep_of

HOSTILE: list[Any] = [
    *(None, True, False, 0, -1, 1, 2.5, 10**18, 10**400, -(10**30), 1e308, -1e-300, float("nan"), float("inf")),
    *("", "x", "a@b", "../x@5", "\0", "\ud800", "$x^{", "<b>", "é" * 300, "/dev/zero", "x" * 5000 + "@3"),
    *([], [1], [[]], {}, {"a": {"b": 1}}, ["train/loss"]),
]


FILES = [
    *("config.json", "experiment.json", "status.json", "plan.json", "metrics.jsonl", "probes.jsonl", "starts.jsonl"),
]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places of everything inside a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inner for place in places(item, (*path, key)))]


def changed(text: str, dice: random.Random) -> str:
    """A JSON text with one value replaced, or one field taken out, renamed or added."""
    value = json.loads(text)
    *above, last = dice.choice(places(value)[1:])
    inside = value
    for key in above:
        inside = inside[key]
    match dice.randrange(5):
        case 0:
            del inside[last]
        case 1 if isinstance(inside, dict):
            inside[str(dice.choice(HOSTILE))[:100]] = inside.pop(last)
        case 2 if isinstance(inside, dict):
            inside[dice.choice(["train/loss", "probe/rms/kind:x", "seeds", "a/b", "precision"])] = dice.choice(HOSTILE)
        case _:
            inside[last] = dice.choice(HOSTILE)
    return json.dumps(value)


def mutate(path: Path, dice: random.Random) -> None:
    """Damage a file of a run as a disk, an editor, another version or an attacker might."""
    data = path.read_bytes()
    lines = data.splitlines(keepends=True)
    a, b = sorted(dice.randrange(len(data)) for _ in range(2))
    b = min(b, a + dice.choice([1, 20, len(data)]))
    place = dice.randrange(len(lines))
    match dice.randrange(9):
        case 0:
            data = bytes([*data[:a], data[a] ^ (1 << dice.randrange(8)), *data[a + 1 :]])
        case 1:
            data = data[:a] + data[b:]
        case 2:
            data = data[:a] + dice.randbytes(dice.choice([1, 8])) + data[a:]
        case 3:
            data = data[:a] + data[a:b] * 2 + data[b:]
        case 4:
            path.unlink()
            kind = dice.randrange(5)
            if kind < 2:
                (path.mkdir, partial(os.mkfifo, path))[kind]()
            elif kind < 4:
                path.symlink_to(["/dev/zero", path.with_name("nothing")][kind - 2])
            return
        case 5:
            data = dice.choice(
                [b"", b"null", b"5", b"[]", b"\n", b"[" * 5000, b'{"step": 1}', b'{"a":' * 900 + b"1" + b"}" * 900]
            )
        case _ if path.suffix == ".jsonl":
            lines[place] = changed(lines[place].decode(), dice).encode() + b"\n"
            data = b"".join(lines)
        case _:
            data = changed(data.decode(), dice).encode()
    path.write_bytes(data)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """λ × two seeds, a branch, a matched run and one of another precision, with every kind of column."""
    root = tmp_path_factory.mktemp("recorded")
    columns: dict[str, Any] = {
        name: lambda s, k=k: k + 0.01 * s
        for k, name in enumerate(
            ("optim/lr", "weights/norm", "optim/grad_norm", "optim/decay_sum", "val/loss_ema_0.99"), 1
        )
    }
    names = ("rotation/kind:mlp.fc", "rms/kind:mlp.fc", "predicted_rms/blocks.0.mlp.fc.weight", "max", "adam_lr")
    rows = [{"step": s, "tokens": 0, **{f"probe/{name}": 0.1 + s for name in names}} for s in (20, 40, 60, 80)]
    made: dict[str, Any] = {
        "steps": 80,
        "eval_every": 20,
        "columns": columns,
        "probes": rows,
        "log": {"probe_every": 20},
    }
    for decay in (0.0, 0.1, 0.3):
        for seed in range(2):
            write_run(root / f"wd{decay}-{seed}", decay=decay, seed=seed, **made)
    write_run(root / "branch", **made | {"steps": 40}, branch={"origin": f"{root / 'wd0.1-0'}@40"}, optim={"lr": 1e-3})
    write_run(root / "matched", **made, schedule={"match": {"reference": str(root / "wd0.1-0")}})
    write_run(root / "other", **made, precision="bf16-mixed")
    for path in root.iterdir():
        RunFolder(path).record_start({"step": 0, "attention": "flash", "compiled": True})
    return root


def report_of(root: Path, out: Path | None = None) -> None:
    """Everything that is said of these runs: every analysis, the page, and with `out` the drawings."""
    runs, notes = load_runs([str(root)], Path("runs"))
    config = load_config("configs/quickstart.json")[0]
    results, more = report.results_of(runs, Options())
    results += [gate.analyse(runs, Options()), advise.analyse(config, runs, Options())]
    assert not [note for note in more if not note.startswith("bias_variance")], "one run ends an analysis of all"
    page = report.render(runs, results, notes + more + late_notes(runs), "fuzz")
    page.encode()
    "\n".join([*notes, *(text for result in results for text in [*result.findings, *result.notes])]).encode()
    for result in results if out is not None else []:
        write(result, out)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_mutated_runs(recorded: Path, tmp_path: Path, tiny_config: Callable[..., RunConfig], tiny_data: Any) -> None:
    """Breaks if anything in a run folder, each time something else, ends an analysis, the report or the status in a traceback,
    or hangs it."""
    cells = all_cells(expand(*sweep_of(tmp_path, tiny_config()), read_summary)[1])
    for number in range(40):
        dice = random.Random(number)
        shutil.copytree(recorded, tmp_path / "now", symlinks=True)
        victim = dice.choice(sorted((tmp_path / "now").iterdir()))
        file = dice.choice(FILES)
        mutate(victim / file, dice)
        try:
            report_of(tmp_path / "now", tmp_path / "out" if number % 20 == 0 else None)
            shutil.copytree(victim, cells[0].folder, symlinks=True)
            assert len(status.render(cells, standings(cells))) > 100
        except BaseException as error:
            error.add_note(f"mutation {number}: {file} of {victim.name}")
            raise
        shutil.rmtree(tmp_path / "now")
        shutil.rmtree(cells[0].folder)
