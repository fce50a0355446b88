"""Other people's tables of λ: every file is whole, and says what its source and the shipped sweeps say."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from analysis.__main__ import main
from analysis.outside_tables import FOLDER, Place, places, read_table, tables
from configs.cost import n_parameters
from configs.errors import InputError
from configs.schema import RunConfig
from tests.processes import ROOT
from tests.test_sweep import cells


def of(table: str, optimiser: str, name: str) -> Place:
    """The one case of a table whose name holds `name`."""
    (place,) = [p for p in places() if (p.table.table, p.case.optimiser) == (table, optimiser) and name in p.case.name]
    return place


# Table, optimiser, model and horizon; λ → value, as the source prints them.
PRINTED = [
    ("T1", "AdamW", "130M, 2.7 B", {0.0: 3.545, 0.1: 3.529, 0.2: 3.536}),
    ("T1", "AdamW", "130M, 5.4 B", {0.0: 3.436, 0.1: 3.409, 0.2: 3.415}),
    ("T1", "AdamW", "130M, 10.7 B", {0.0: 3.359, 0.1: 3.322, 0.2: 3.335}),
    ("T1", "AdamW", "130M, 21.5 B", {0.0: 3.310, 0.1: 3.262, 0.2: 3.269}),
    ("T1", "AdamW", "300M", {0.0: 3.303, 0.1: 3.264, 0.2: 3.275}),
    ("T1", "AdamW", "520M", {0.0: None, 0.1: 3.135, 0.2: 3.110}),
    ("T1", "Cautious AdamW", "2.7 B", {0.0: 3.552, 0.1: 3.535, 0.2: 3.537}),
    ("T1", "Cautious AdamW", "5.4 B", {0.0: 3.436, 0.1: 3.403, 0.2: 3.405}),
    ("T1", "Cautious AdamW", "21.5 B", {0.0: 3.291, 0.1: 3.253, 0.2: 3.253}),
    ("T1", "Muon", "2.7 B", {0.0: 3.532, 0.1: 3.464, 0.2: 3.483}),
    (
        "T1",
        "Lion",
        "2.7 B",
        dict(
            zip(
                [n / 10 for n in range(11)],
                [3.570, 3.562, 3.557, 3.555, 3.553, 3.551, 3.549, 3.552, 3.554, 3.556, 3.557],
                strict=True,
            )
        ),
    ),
    ("T2", "AdamW", "60M", {0.0: 32.73, 0.01: 32.66, 0.05: 32.31, 0.1: 31.95}),
    ("T2", "AdamW", "135M", {0.0: 24.39, 0.01: 24.28, 0.05: 23.81, 0.1: 23.32}),
    ("T2", "Adam with L2", "60M", {0.0: 33.23, 1e-6: 33.03, 5e-6: 32.56, 1e-5: 32.39}),
    ("T2", "Adam with L2", "135M", {0.0: 24.60, 1e-6: 24.14, 5e-6: 23.14, 1e-5: 22.99}),
    ("T3", "AdamW", "2.9 B", {0.1: 5625}),
    ("T3", "AdamW", "2.6 B", {1.0: 4950}),
    ("T5", "AdamW", "163M", {0.01: 3.643, 0.1: 3.692, 0.337: 3.814}),
    ("T7", "AdamW", "88M", {0.0: 4.223, 0.05: 4.316, 0.1: 4.420}),
]


@pytest.mark.parametrize(("table", "optimiser", "name", "values"), PRINTED, ids=lambda value: str(value)[:20])
def test_numbers_are_the_printed_ones(table: str, optimiser: str, name: str, values: dict[float, float | None]) -> None:
    """Breaks if a λ or its value is another than the table's, or a run that diverged there has one."""
    case = of(table, optimiser, name).case
    assert {row.weight_decay: row.value for row in case.rows} == values
    assert [row.diverged for row in case.rows] == [value is None for value in values.values()]


def test_tables_are_whole() -> None:
    """Breaks if a table, its source, how it was read, or what counts as equal is missing, or a case is in no list above."""
    assert [table.table for table in tables(FOLDER)] == ["T1", "T2", "T3", "T4", "T5", "T7"]
    assert {table.table: table.tolerance for table in tables(FOLDER)} == {
        "T1": 0.003, "T2": None, "T3": 0.004, "T4": None, "T5": None, "T7": None,
    }  # fmt: skip
    muon = [p for p in places() if (p.table.table, p.case.optimiser) == ("T3", "Muon")]
    listed = len(PRINTED) + len(muon) + len(next(t for t in tables(FOLDER) if t.table == "T4").cases)
    assert len(places()) == listed
    assert [p.case.best.value for p in muon] == [3600, 3500, 3375, 3325, 3250]
    products = [p.config.optim.lr * p.case.best.weight_decay for p in muon if p.config]
    assert products == pytest.approx([2.0e-4, 3.1e-4, 6.3e-4, 8.8e-4, 12.5e-4], rel=0.01)
    assert of("T3", "AdamW", "2.6 B").case.best.seeds == 10
    # of an order there are ranks and no losses
    assert of("T4", "AdamW", "8.4 B").case.best.weight_decay == 0.5
    assert of("T4", "AdamW", "16.8 B").case.best.weight_decay == 0.1
    assert of("T4", "AdamW", "16.8 B").case.gain is None


def test_horizons_are_those_of_the_settings() -> None:
    """Breaks if a setting's steps and batch give other tokens than its source says, or its blocks other parameters."""
    for place in places():
        if (config := place.config) is not None:
            tokens, whole = config.schedule.steps * config.units_per_step, n_parameters(config.model)
            assert tokens == pytest.approx(place.case.tokens, rel=0.01), place.name
            # a source counts all, or leaves out the head, or the embedding too
            table = config.gpt.vocab_size * config.gpt.n_embd
            counted = [whole - times * table for times in range(3)]
            assert place.case.parameters in [pytest.approx(count, rel=0.05) for count in counted], place.name


def test_interior_optima_lie_at_two_to_eight() -> None:
    """Breaks if λ·Ση of a lowest loss that lies inside its λ is not 2 to 8, or a lowest loss at an end, or one that is equal to
    an end's, passes for one inside."""
    inside = {place.name: place.decay_sum for place in places() if place.is_interior}
    assert len(inside) == 7
    assert all(total is not None and 2 <= round(total) <= 8 for total in inside.values()), inside
    first = of("T1", "AdamW", "130M, 2.7 B").decay_sum
    assert first == pytest.approx(0.008 * 5120 / 2 * 0.1, rel=0.01)
    assert not of("T1", "Cautious AdamW", "2.7 B").is_interior, "0.002 nats are equal there"
    assert not of("T1", "AdamW", "520M").is_interior, "λ = 0.2 is the largest, and λ = 0 diverged"
    assert not of("T2", "AdamW", "60M").is_interior
    assert of("T2", "Adam with L2", "60M").decay_sum is None, "Adam divides it by √v"


def test_the_gain_grows_with_the_horizon() -> None:
    """Breaks if gains are not λ = 0 minus the best in nats, or that of T1's 130M does not grow from horizon to horizon."""
    gains = [of("T1", "AdamW", f"130M, {tokens} B").case.gain for tokens in ("2.7", "5.4", "10.7", "21.5")]
    assert gains == pytest.approx([0.016, 0.027, 0.037, 0.048])
    assert of("T2", "AdamW", "60M").case.gain == pytest.approx(math.log(32.73 / 31.95))
    assert of("T1", "AdamW", "520M").case.gain is None, "λ = 0 diverged"


def _setting(config: RunConfig) -> str:
    """A configuration without what no case says: λ, seeds, name, and what is observed or where."""
    given = config.model_dump(mode="json")
    optim = {name: value for name, value in given["optim"].items() if name != "weight_decay"}
    return json.dumps([given["model"], optim, given["schedule"], given["batch"]["tokens_per_step"]], sort_keys=True)


@pytest.mark.parametrize("sweep", ["outside_t1", "outside_t1_rules", "outside_t2", "outside_t3"])
def test_shipped_sweeps_have_the_settings(sweep: str) -> None:
    """Breaks if a shipped sweep trains another model, η, λ, schedule or batch than the table that it is for, or leaves a λ out."""
    wanted: dict[str, set[float]] = {}
    for place in places():
        if (config := place.config) is not None and place.case.algorithm is not None:
            wanted.setdefault(_setting(config), set()).update(row.weight_decay for row in place.case.rows)
    found: dict[str, set[float]] = {}
    for cell in cells(ROOT / "configs" / "sweeps" / f"{sweep}.json"):
        if cell.config.optim.decay_rule != "cautious":  # ours: T1 has a cautious step, and no cautious decay
            found.setdefault(_setting(cell.config), set()).add(cell.config.optim.weight_decay)
    assert found.keys() <= wanted.keys()
    # λ = 0 of T3 is ours
    assert all(wanted[setting] in (decays, decays - {0.0}) for setting, decays in found.items())
    assert len(found) == {"outside_t1": 6, "outside_t1_rules": 1, "outside_t2": 4, "outside_t3": 7}[sweep]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda text: text[: len(text) // 2], "cannot be read"),
        (lambda text: text.replace('"value": 3.643', '"value": null'), "a row has a value, or null and diverged"),
        (lambda text: text.replace('"weight_decay": 0.337', '"weight_decay": 0.05'), "rows must rise"),
        (lambda text: text.replace('"weight_decay": 0.1,', '"weight_decay": -0.1,'), "weight_decay"),
        (lambda text: text.replace('"laid": false', '"laid": true'), "there is no recipe"),
        (lambda text: text.replace('"how":', '"read":'), "how"),
    ],
    ids=["cut", "no value", "order", "below zero", "laid", "key"],
)
def test_damaged_tables_are_refused(damage: object, words: str, tmp_path: Path) -> None:
    """Breaks if a damaged table is read as another one, or its error does not name the file."""
    path = tmp_path / "t5.json"
    path.write_text(damage((FOLDER / "t5_constant_rate.json").read_text()))  # type: ignore[operator]
    with pytest.raises(InputError, match=words) as error:
        read_table(path)
    assert str(path) in str(error.value)


def test_advice_of_damaged_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks if a command that needs the tables ends in a traceback where one is damaged, or where there are none."""
    for content in ("{", None):
        folder = tmp_path / str(content)
        folder.mkdir()
        if content:
            (folder / "t1.json").write_text(content)
        monkeypatch.setattr("analysis.outside_tables.FOLDER", folder)
        assert main(["advise", "configs/gpt124m_wd0.1.json"]) == 2
        error = capsys.readouterr().err
        assert str(folder) in error
        assert error.startswith("error: ")
        assert "Traceback" not in error
