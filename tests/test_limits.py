"""What is too large, too deep, endless or no configuration at all is answered at once, in one short message."""

from __future__ import annotations

import copy
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.load import BYTES, load_config, merge, nest, parse_override, validate
from configs.plan import make_plan
from configs.render import render_plan
from configs.schedule import decay_at, decay_sum, lr_at, lr_of_updates, lr_sum
from configs.schema import RunConfig
from configs.sweep import expand

pytestmark = pytest.mark.slow  # by its length alone: `make check` takes a minute

QUICKSTART = json.loads((Path(__file__).parent.parent / "configs" / "quickstart.json").read_text())
QUICKSTART.pop("$schema")
# Of any answer. Machines differ threefold and other work shares them: so it is processor time, ten times what the longest answer
# takes, and still less than what grows with the square of its input.
CPU_S, LETTERS = 20.0, 1200


def put(field: str, value: Any) -> dict[str, Any]:
    """The quickstart with one other value."""
    return merge(copy.deepcopy(QUICKSTART), nest(field, value))


def answer(path: Path) -> str:
    """What a user is told of a configuration file: the plan, or what is wrong."""
    start = time.process_time()
    try:
        config, _ = load_config(path)
        text = render_plan(config, make_plan(config, 1, None))
    except ValueError as error:
        text = str(error)
    assert time.process_time() - start < CPU_S
    return text


def nested(depth: int, opening: str = "[", closing: str = "]") -> str:
    return json.dumps(put("optim.lr", None)).replace("null", opening * depth + "1" + closing * depth)


LARGE = {
    "deep list": (nested(900), "nested too deep"),
    "deeper list": (nested(100_000), "nested too deep"),
    "deep object": (nested(400, '{"a":', "}"), "nested too deep"),
    "digits": (nested(0).replace(": 1,", ": " + "9" * 100_000 + ",", 1), "is beyond ±2^63"),
    "many keys": ("{" + ",".join(f'"k{i}": 1' for i in range(100_000)) + "}", "more problems"),
    "many wrong values": (json.dumps(put("checkpoint.at", ["x"] * 200_000)), "more problems"),
    "long string": (
        json.dumps(put("optim.lr", "x" * 1_900_000)),
        "(1,900,002 letters): Input should be a valid number",
    ),
    "long list": (json.dumps(put("optim.lr", [1] * 600_000)), "letters): Input should be a valid number"),
    "long key": ('{"' + "x" * 1_900_000 + '": 1}', "(1,900,000 letters)"),
    "long name of data": (json.dumps(put("data.path", "x" * 100_000)), "at most 4096 characters"),
    "zero in a name": (json.dumps(put("data.path", "a\0b")), "zero character"),
    "half a character": (json.dumps(put("data.path", "a\ud800b")), "half a character"),
    "milestones": (json.dumps(put("checkpoint.at", [5] * 10_000)), "checkpoint(s)"),
    "too many milestones": (json.dumps(put("checkpoint.at", [5] * 10_001)), "at most 10000 items"),
    "skipped steps": (json.dumps(put("data.skip_steps", [[i, i] for i in range(1, 50_000, 2)])), "steps "),
    "size": (" " * (BYTES + 1), "more than 2 MiB"),
}


@pytest.mark.parametrize("name", LARGE)
def test_a_large_file_has_a_short_answer(tmp_path: Path, name: str) -> None:
    """Breaks if depth, digits, length or number of a file's values end in a traceback, in minutes, or in a copy of the file."""
    path = tmp_path / "c.json"
    path.write_text(LARGE[name][0])
    text = answer(path)
    assert LARGE[name][1] in text
    assert len(text) < LETTERS + len(str(path))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("schedule.steps", 10**100, "is beyond ±2^63"),
        ("schedule.steps", 10**9, "less than or equal to 10000000 (a plan goes through every update"),
        ("schedule.horizon", 10**18, "Ση"),
        ("model.n_layer", 10**9, "less than or equal to 1000 (a plan lists every tensor)"),
        ("model.n_embd", 4 * 10**17, "memory per device"),
        ("batch.tokens_per_step", 64 * 10**15, "less than or equal to 1073741824 (every divisor is a possible"),
        ("batch.tokens_per_step", 735_134_400, "tokens per step"),
        ("checkpoint.log_spaced", 10**6, "less than or equal to 1000 (from there on every step is saved"),
        ("checkpoint.every", 10**18, "1 checkpoint(s)"),
        ("parallel.timeout_s", 1e300, "less than or equal to"),
        ("seeds.init", 1 << 63, "less than 9223372036854775808"),
    ],
)
def test_a_large_number_has_an_answer(tmp_path: Path, field: str, value: float, message: str) -> None:
    """Breaks if a number can make a plan hang or overflow, or a bound does not say why it is there."""
    path = tmp_path / "c.json"
    path.write_text(json.dumps(put(field, value)))
    assert message in answer(path)


def test_most_tensors_and_groups(tmp_path: Path) -> None:
    """Breaks if the largest model with the most overrides takes the plan more than its time."""
    overrides = [{"pattern": f"blocks.{i}.*attn*q*w*t", "weight_decay": 1} for i in range(256)]
    path = tmp_path / "c.json"
    path.write_text(
        json.dumps(put("model.n_layer", 1000) | {"optim": {**QUICKSTART["optim"], "decay_overrides": overrides}})
    )
    assert "blocks.255.*attn*q*w*t" in answer(path)


@pytest.mark.parametrize("kind", ["cosine", "wsd", "piecewise", "multistep"])
def test_a_million_steps(tmp_path: Path, kind: str) -> None:
    """Breaks if the plan of a long run takes more than its time, or its sums lose a bit."""
    points = [[1 + 50 * i, 0.25 + 1e-5 * i] for i in range(20_000)]
    schedule: dict[str, Any] = {"kind": kind, "steps": 10**6, "warmup_steps": 60}
    if kind == "piecewise":
        schedule = {"kind": kind, "steps": 10**6, "points": [*points[:-1], [10**6, 0.5]]}
    if kind == "multistep":
        schedule["points"] = [[60 + step, fraction] for step, fraction in points[:-1]]
    path = tmp_path / "c.json"
    path.write_text(json.dumps(QUICKSTART | {"schedule": schedule}))
    assert "Ση" in answer(path)
    if kind == "cosine":
        plan = make_plan(load_config(path)[0], 1, None)
        assert (plan.lr_sum, plan.decay_sum, plan.checkpoints) == (5499.9745, 824.996175, 1000)


SHAPES: list[dict[str, Any]] = [
    {"kind": "cosine", "warmup_steps": 7, "final_lr_fraction": 0.1},
    {"kind": "linear", "warmup_steps": 7, "horizon": 1500, "final_lr_fraction": 0.3},
    {"kind": "constant", "warmup_steps": 9},
    *({"kind": "wsd", "cooldown_shape": shape, "cooldown_fraction": 0.3} for shape in ("linear", "cosine", "one_minus_sqrt")),
    {"kind": "piecewise", "points": [[1, 0.1], [77, 1.0], [500, 0.3], [1200, 0.01]]},
    {"kind": "multistep", "warmup_steps": 7, "points": [[400, 0.3], [900, 0.01]]},
]  # fmt: skip


@pytest.mark.parametrize(
    "decay", [None, {"kind": "cosine", "start": 1.3, "end": 0.2, "first_step": 5, "last_step": 900}]
)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(map(str, list(shape.values())[:2])))
def test_sums_have_the_bits_of_single_updates(shape: dict[str, Any], decay: dict[str, Any] | None) -> None:
    """Breaks if what the plan sums differs in any bit from what the updates use, so that recorded plans no longer compare."""
    optim = {"lr": 0.0137, "weight_decay": 0.31, "decay_schedule": decay}
    config = validate(QUICKSTART | {"schedule": {"steps": 1000, **shape}, "optim": optim}, "test")
    assert list(lr_of_updates(config)) == [lr_at(config, t) for t in range(1000)]
    assert lr_sum(config) == math.fsum(lr_at(config, t) for t in range(1000))
    factors = [1 + t / 777 for t in range(1000)]
    for updates in (1, 500, 1000):
        assert decay_sum(config, updates) == math.fsum(decay_at(config, t) for t in range(updates))
        assert decay_sum(config, updates, factors, 0.7) == math.fsum(
            decay_at(config, t, 0.7) * factors[t] for t in range(updates)
        )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty, expected a JSON object"),
        (b" \n", "is empty, expected a JSON object"),
        (b"[1]", "holds a list, expected a JSON object"),
        (b"null", "holds null, expected a JSON object"),
        (b"\x89PNG\r\n\x1a\n", "is not UTF-8 text (byte 0)"),
        (b'{"base": "c.json"}', "one level is allowed"),
        (b'{"base": "/dev/zero"}', "its base: cannot read configuration /dev/zero: it is a device or a pipe"),
        (b'{"base": "."}', "Is a directory; name a file in it, for example c.json"),
        (b'{"base": 5}', "base = 5: expected the name of a file"),
        (b'{"schedule": {"points": "/dev/zero"}}', "/dev/zero: it is a device or a pipe"),
    ],
)
def test_files_that_are_no_configuration(tmp_path: Path, content: bytes, message: str) -> None:
    """Breaks if such a file is a traceback, is read without end, or the message does not say what was found."""
    path = tmp_path / "c.json"
    path.write_bytes(content)
    assert message in answer(path)


def test_places_that_are_no_file(tmp_path: Path) -> None:
    """Breaks if a pipe without a writer holds the start, or a name nearly right is not recognised."""
    os.mkfifo(tmp_path / "pipe")
    assert "it is a device or a pipe" in answer(tmp_path / "pipe")
    assert "Is a directory; name a file" in answer(tmp_path)
    (tmp_path / "quickstart.json").write_text("{}")
    assert f"did you mean {tmp_path / 'quickstart.json'}?" in answer(tmp_path / "quikstart.json")
    (tmp_path / "bom.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(QUICKSTART).encode())
    assert "Ση" in answer(tmp_path / "bom.json")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lr=.1", 'optim.lr = ".1": Input should be a valid number; write 0.1'),
        ("optim.lr=5.", "; write 5"),
        ("schedule.steps=1e3", "schedule.steps = 1000.0: Input should be a valid integer; write 1000"),
        ("schedule.steps=1_000", "; write 1000"),
        ("model.bias=True", 'model.bias = "True": Input should be a valid boolean; write true'),
        ("model.bias=0", "; write false"),
        ("eval.every=None", "; write null"),
        ("parallel.zero_stage='1'", "Input should be 0, 1, 2 or 3"),
        ('parallel.zero_stage="1"', "Input should be 0, 1, 2 or 3; write 1"),
        ("data.path=5", 'write "5", quotes included'),
        ("schedule.steps=1.5", "Input should be a valid integer"),
        ("optim.lr=[" + "[" * 100_000, "nested too deep"),
        ("a." * 3000 + "b=1", "levels deep; at most 20"),
        ("schedule.steps=" + "9" * 5000, "is beyond ±2^63"),
        ("optim.lr=NaN", "NaN is not a number"),
        ("x" * 10_000, "expected section.key=value"),
        ("schedule.match.refrence=a", "unknown key 'schedule.match.refrence'; did you mean 'reference'?"),
    ],
)
def test_overrides_are_answered_with_what_would_work(override: str, message: str) -> None:
    """Breaks if a number as other languages write it is refused without the way JSON writes it, or the answer is a traceback."""
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the message is the point)
        validate(merge(copy.deepcopy(QUICKSTART), parse_override(override)), "test")
    assert message in str(error.value)
    assert len(str(error.value)) < LETTERS


@settings(max_examples=100, deadline=None)
@given(
    place=st.sampled_from([(s, f) for s, fields in QUICKSTART.items() if isinstance(fields, dict) for f in fields]),
    seed=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=5,
    ),
    times=st.integers(1, 100_000),
    how=st.sampled_from(["list", "text", "keys", "deep"]),
)
def test_any_value_many_times(
    tmp_path_factory: pytest.TempPathFactory, place: tuple[str, str], seed: Any, times: int, how: str
) -> None:
    """Breaks if size or depth of any value of any field costs time, a traceback, or a message that repeats it."""
    value: Any = seed
    if how == "deep":
        for _ in range(times % 300):
            value = [value]
    elif how == "text":
        value = json.dumps(seed) * (times // 10)
    elif how == "keys":
        value = {f"k{i}": seed for i in range(times // 10)}
    else:
        value = [seed] * times
    path = tmp_path_factory.getbasetemp() / "c.json"
    path.write_text(json.dumps(QUICKSTART | {place[0]: {**QUICKSTART[place[0]], place[1]: value}}))
    text = answer(path)
    assert "Ση" in text or len(text) < LETTERS + len(str(path))  # a plan names its data in full


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ({"axes": {f"seeds.{i}": [0, 1, 2, 3] for i in range(30)}}, "cells, at most 10,000"),
        ({"axes": {"seeds.init,seeds.data": [[0] * 50_000]}}, "letters)"),
        ({"stages": [{"name": "a", "branch_every": 1}], "set": {"checkpoint.every": 1, "schedule.steps": 10**7}}, "at most 10,000"),
        ({"axes": {"a." * 1000 + "b": [1]}}, "levels deep"),
        ({"name": "x" * 100_000}, "letters)"),
        ({"axes": {"optim.lr": ["x" * 100_000]}}, "letters)"),
        ({"base": "/dev/zero"}, "it is a device or a pipe"),
        ({"stages": [{"name": "a", "where": {"optim.lr": list(range(50_000))}}]}, "letters)"),
    ],
    ids=["product", "row", "branches", "depth", "name", "value", "base", "where"],
)  # fmt: skip
def test_a_large_sweep_has_a_short_answer(tmp_path: Path, sweep: dict[str, Any], message: str) -> None:
    """Breaks if the product of a sweep's axes is made before it is counted, or its messages repeat the file."""
    (tmp_path / "base.json").write_text(json.dumps(QUICKSTART))
    path = tmp_path / "sweep.json"
    path.write_text(json.dumps({"name": "s", "base": "base.json", **sweep}))
    start = time.process_time()
    with pytest.raises(ValueError) as error:  # noqa: PT011
        expand(path, tmp_path / "runs", lambda _: None)
    assert time.process_time() - start < CPU_S
    assert message in str(error.value)
    assert len(str(error.value)) < LETTERS + len(str(path))


def test_a_recorded_configuration_can_be_read_again(tmp_path: Path, tiny_config: Callable[..., RunConfig]) -> None:
    """Breaks if a run with as many points as are allowed writes a config.json that is too large to start it again."""
    points = [[1 + i, 0.1 + 0.12345678901234 * i / 20_000] for i in range(20_000)]
    config = tiny_config({"schedule": {"kind": "piecewise", "steps": 20_000, "warmup_steps": 0, "points": points}})
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config.model_dump(mode="json"), indent=2))
    assert load_config(path)[0] == config
