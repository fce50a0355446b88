"""Untrusted input: configurations, run logs and manifests are data. Whatever they hold, the answer is a value or a ValueError."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from configs.load import load_config, parse_override
from configs.plan import make_plan
from data.manifest import read_manifest
from record.metrics import MetricsLog, read_metrics

pytestmark = pytest.mark.slow  # by its length alone: `make check` takes a minute

CONFIG = json.loads((Path(__file__).parent.parent / "configs" / "quickstart.json").read_text())
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)
PATHS = [(section, field) for section, fields in CONFIG.items() if isinstance(fields, dict) for field in fields]
shared_folder = settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@pytest.mark.slow
@shared_folder
@given(place=st.sampled_from(PATHS), value=JSON)
@example(place=("optim", "lr"), value=7)
def test_a_configuration_with_one_strange_value(tmp_path: Path, place: tuple[str, str], value: object) -> None:
    """Breaks if a value of any type or size is a traceback instead of an error, or plans nonsense."""
    config = json.loads(json.dumps(CONFIG))
    config[place[0]][place[1]] = value
    problem = _load(tmp_path, json.dumps(config))
    assert problem is None or "config.json" in problem


@shared_folder
@given(value=JSON)
def test_any_json_as_configuration(tmp_path: Path, value: object) -> None:
    """Breaks if JSON that is no configuration is a traceback."""
    problem = _load(tmp_path, json.dumps(value))
    assert problem is not None
    assert "config.json" in problem


@pytest.mark.slow
@shared_folder
@given(text=st.text(max_size=200) | st.binary(max_size=200))
def test_any_bytes_as_configuration(tmp_path: Path, text: str | bytes) -> None:
    """Breaks if a file that is not JSON, or not UTF-8, is a traceback."""
    problem = _load(tmp_path, text)
    assert problem is not None
    assert "config.json" in problem


def _load(folder: Path, text: str | bytes) -> str | None:
    """What is wrong with a configuration, in the words the user gets; None where it is one, whose plan then adds up."""
    path = folder / "config.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", errors="surrogatepass"))
    try:
        config, _ = load_config(path)
    except ValueError as error:
        return str(error)
    try:
        plan = make_plan(config, 1, None)
    except ValueError as error:  # the one thing that only a plan knows
        if "would not stay above zero" not in str(error) or config.optim.lr * config.optim.weight_decay < 1:
            raise
        return None
    assert plan.micro_steps * plan.micro_batch * config.model.seq_len == config.batch.tokens_per_step
    return None


@given(st.text(max_size=60))
def test_any_override(text: str) -> None:
    """Breaks if a malformed --set is a traceback."""
    with suppress(ValueError):
        assert isinstance(parse_override(text), dict)


ROWS = st.lists(
    st.dictionaries(st.sampled_from(["train/loss", "val/loss", "optim/lr"]), st.floats(), min_size=1),
    min_size=1,
    max_size=8,
)


@shared_folder
@given(rows=ROWS, cut=st.integers(0, 400))
def test_a_log_torn_anywhere(tmp_path: Path, rows: list[dict[str, float]], cut: int) -> None:
    """Breaks if a log cut at any byte loses more than the row that was cut, or reports a torn end as damage."""
    path = tmp_path / "metrics.jsonl"
    path.unlink(missing_ok=True)
    log = MetricsLog(path)
    log.write([{"step": step, "tokens": step, **row} for step, row in enumerate(rows)])
    log.close()
    data = path.read_bytes()
    path.write_bytes(data[: max(0, len(data) - cut)])
    found, problems = read_metrics(path)
    assert problems == []
    assert len(found) >= path.read_bytes().count(b"\n")
    log = MetricsLog(path)
    log.write([{"step": 99, "tokens": 99}])
    log.close()
    found, problems = read_metrics(path)
    assert found[-1]["step"] == 99
    assert "no row: " in problems[-1]
    assert len(problems) <= 2


@shared_folder
@given(middle=st.binary(max_size=100))
def test_damage_in_the_middle_of_a_log(tmp_path: Path, middle: bytes) -> None:
    """Breaks if damage between two rows costs either, or crashes the reader."""
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "tokens": 1}\n' + middle + b'\n{"step": 1000000, "tokens": 2}\n')
    found, _ = read_metrics(path)
    assert {row["step"] for row in found} >= ({1, 1000000} if b"resume" not in middle else set())


@shared_folder
@given(data=st.binary(max_size=300) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_as_manifest(tmp_path: Path, data: bytes) -> None:
    """Breaks if a manifest that is none passes, or is a traceback."""
    (tmp_path / "manifest.json").write_bytes(data)
    with pytest.raises(ValueError, match=r"manifest\.json"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("name", ["/etc/passwd", "../train_00000.bin", "..", "", "a/b", "a\\b"])
@pytest.mark.parametrize("place", ["shard", "documents"])
def test_a_manifest_that_names_files_elsewhere(tmp_path: Path, name: str, place: str) -> None:
    """Breaks if prepared data of others can make training read a file outside its folder."""
    shard = {"file": name if place == "shard" else "train_00000.bin", "tokens": 1, "sha256": ""}
    split = {"tokens": 1, "documents": 1, "shards": [shard], "docs_sha256": ""}
    split["docs_file"] = name if place == "documents" else "train_docs.bin"
    given = {"source": {}, "options": {}, "tokenizer": {}, "vocab_size": 1, "eot": None, "dtype": "uint16"}
    (tmp_path / "manifest.json").write_text(json.dumps(given | {"train": split, "val": split}))
    with pytest.raises(ValueError, match="not the plain name of a file"):
        read_manifest(tmp_path)


@pytest.mark.timeout(20)
def test_a_manifest_that_is_no_file(tmp_path: Path) -> None:
    """Breaks if a named pipe for a manifest is waited for."""
    os.mkfifo(tmp_path / "manifest.json")
    with pytest.raises(ValueError, match="is a named pipe, not a file"):
        read_manifest(tmp_path)
