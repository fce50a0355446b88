"""Data that is not what its manifest says: found beside training, by all ranks together."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from configs.errors import InputError
from configs.schema import RunConfig
from data.loader import TrainData, eval_batches
from data.manifest import Manifest
from data.shards import Shard
from data.verify import Hashing
from tests.processes import LONG, ConfigFile, finish, finish_all, finish_ranks, start, start_ranks, status, wait

TinyData = tuple[Path, Manifest]
VOCABULARY = 512


@pytest.fixture
def data(tiny_data: TinyData, tmp_path: Path) -> Path:
    """A copy of the tiny data, to be damaged."""
    return Path(shutil.copytree(tiny_data[0], tmp_path / "data"))


def flip(shard: Path) -> None:
    """Change one bit of a token, and not the file's size."""
    with open(shard, "r+b") as handle:
        handle.seek(100)
        byte = handle.read(1)[0]
        handle.seek(100)
        handle.write(bytes([byte ^ 1]))


def zero(shard: Path) -> None:
    shard.write_bytes(bytes(shard.stat().st_size))


def append_sparse(folder: Path, manifest: Manifest, gib: int) -> None:
    """Add a training shard of zeros that takes seconds to hash and no room on disk, under a hash that is not its own."""
    with open(folder / "train_99999.bin", "wb") as handle:
        handle.truncate(gib << 30)
    shard = Shard("train_99999.bin", (gib << 30) // 2, "0" * 64)
    split = manifest.train.model_copy(
        update={"shards": [*manifest.train.shards, shard], "tokens": manifest.train.tokens + shard.tokens}
    )
    longer = manifest.model_copy(update={"train": split}).with_digest()
    (folder / "manifest.json").write_text(longer.model_dump_json())


def checkpoints(run: Path) -> list[int]:
    return sorted(int(path.parent.name.removeprefix("step_")) for path in run.glob("checkpoints/step_*/manifest.json"))


def test_sound_data_has_no_problem(tiny_data: TinyData) -> None:
    """Breaks if sound data is called damaged, or the thread cannot be stopped."""
    hashing = Hashing(*tiny_data)
    hashing.start()
    assert hashing.wait(30)
    assert hashing.problem == ""
    stopped = Hashing(*tiny_data)
    stopped.start()
    stopped.stop()
    assert stopped.problem == ""


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda folder: flip(folder / "train_00001.bin"), "train_00001.bin differs from its hash"),
        (lambda folder: zero(folder / "val_00000.bin"), "val_00000.bin differs from its hash"),
        (lambda folder: flip(folder / "train_docs.bin"), "train_docs.bin differs from its hash"),
        (lambda folder: (folder / "train_00001.bin").unlink(), "cannot be compared with its hashes: [Errno 2]"),
    ],
)
def test_damage_is_a_problem(harm: Callable[[Path], None], words: str, data: Path, tiny_data: TinyData) -> None:
    """Breaks if a damaged file of either split, or one that cannot be read, goes by without a word."""
    harm(data)
    hashing = Hashing(data, tiny_data[1])
    hashing.start()
    assert hashing.wait(30)
    assert words in hashing.problem


def test_the_thread_never_dies_silently(data: Path, tiny_data: TinyData) -> None:
    """Breaks if a mistake in the thread ends it, and the run takes its data for compared."""
    split = tiny_data[1].val.model_copy(update={"docs_file": "a\0b"})  # no name that open takes
    hashing = Hashing(data, tiny_data[1].model_copy(update={"val": split}))
    hashing.start()
    assert hashing.wait(30)
    assert "broke: ValueError: embedded null byte" in hashing.problem


@pytest.mark.engine
@pytest.mark.parametrize("ranks", [1, 2])
def test_flipped_bit_ends_the_run(ranks: int, config_file: ConfigFile, tmp_path: Path, data: Path) -> None:
    """Breaks if damaged data is trained on to the end, is checkpointed once it is known, or leaves a rank waiting."""
    flip(data / "train_00001.bin")
    run = tmp_path / "run"
    config = config_file(LONG, {"data": {"path": str(data)}, "checkpoint": {"every": 1000}})
    output = finish_ranks(ranks, config, run, code=1)
    assert "Traceback" not in output
    assert status(run)["state"] == "failed"
    assert "train_00001.bin differs from its hash" in status(run)["reason"]
    assert "this start has written no checkpoint" in status(run)["reason"]
    assert checkpoints(run) == []
    if ranks == 1:
        before = config_file({"data": {"path": str(data), "verify": "before"}})
        assert "train_00001.bin differs from its hash" in finish(start(before, tmp_path / "before"), 2)
        assert not (tmp_path / "before").exists()


@pytest.mark.engine
def test_late_discovery(config_file: ConfigFile, tmp_path: Path, data: Path, tiny_data: TinyData) -> None:
    """Breaks if checkpoints that were trained on damaged data are not called suspect, or one is written after that."""
    append_sparse(data, tiny_data[1], gib=1)
    run = tmp_path / "run"
    options = {"path": str(data), "train_tokens": tiny_data[1].train.tokens}
    finish(start(config_file(LONG, {"data": options, "checkpoint": {"every": 3}}), run), 1)
    assert status(run)["state"] == "failed"
    assert "train_99999.bin differs from its hash" in status(run)["reason"]
    assert "from step 3 on, are suspect" in status(run)["reason"]
    assert checkpoints(run)[0] == 3
    assert checkpoints(run)[-1] < LONG["schedule"]["steps"]


@pytest.mark.engine
def test_what_a_run_must_go_back_to_is_kept(
    config_file: ConfigFile, tmp_path: Path, data: Path, tiny_data: TinyData
) -> None:
    """Breaks if the checkpoint that a resume began from is deleted while the data, damaged, is still being compared."""
    append_sparse(data, tiny_data[1], gib=1)
    run, saving = tmp_path / "run", {"checkpoint": {"every": 3, "keep_last": 1}}
    options = {"path": str(data), "train_tokens": tiny_data[1].train.tokens}
    first = start(config_file(LONG, saving, {"data": options | {"verify": False}}), run)
    wait(lambda: bool(checkpoints(run)), first)
    (run / "stop").touch()
    finish(first, 75)
    (began,) = checkpoints(run)
    finish(start(config_file(LONG, saving, {"data": options}), run), 1)
    assert f"continue with --resume must --step {began}" in status(run)["reason"]
    kept = checkpoints(run)
    assert (kept[0], len(kept)) == (began, 2)


@pytest.mark.engine
def test_stop_during_the_last_wait(config_file: ConfigFile, tmp_path: Path, data: Path, tiny_data: TinyData) -> None:
    """Breaks if ranks that only wait for the hashes cannot be stopped, or call the run done before they are known."""
    append_sparse(data, tiny_data[1], gib=200)
    run = tmp_path / "run"
    options = {"path": str(data), "train_tokens": tiny_data[1].train.tokens}
    processes = start_ranks(2, config_file({"data": options}), run)
    wait(lambda: checkpoints(run) == [6], processes[0])
    time.sleep(1)
    assert status(run)["state"] == "running"
    (run / "stop").touch()
    finish_all(processes, 75, timeout_s=30)
    assert (status(run)["state"], status(run)["step"]) == ("preempted", 6)


def put(shard: Path, position: int, token: int) -> None:
    tokens = np.fromfile(shard, "<u2")
    tokens[position] = token
    tokens.tofile(shard)


def test_a_foreign_id_is_named(data: Path, tiny_data: TinyData, tiny_config: Callable[..., RunConfig]) -> None:
    """Breaks if a token beyond the vocabulary reaches the model, or the message does not say where it is."""
    manifest, config = tiny_data[1], tiny_config()
    first = manifest.train.shards[0].tokens
    window = -(-first // config.model.seq_len)  # the first that begins in the second shard
    position = window * config.model.seq_len + 3 - first
    put(data / "train_00001.bin", position, VOCABULARY)
    put(data / "val_00000.bin", 5, 60_000)
    read = TrainData(data, manifest, config)
    out = np.empty((2, config.model.seq_len + 1), np.int64)
    read.read(np.array([0, 1]), out)
    words = f"train_00001.bin holds the token 512 at position {position}, and the vocabulary of the data has 512 tokens"
    with pytest.raises(InputError, match=words):
        read.read(np.array([0, window]), out)
    with pytest.raises(InputError, match=r"val_00000\.bin holds the token 60000 at position 5"):
        eval_batches(data, manifest, config, 2, 0, 1)


@pytest.mark.engine
def test_a_foreign_id_ends_the_run(
    config_file: ConfigFile, tmp_path: Path, data: Path, tiny_data: TinyData, tiny_config: Callable[..., RunConfig]
) -> None:
    """Breaks if such a token, in the batch of one rank, ends in a traceback, in ranks that wait, or without a reason."""
    config = tiny_config(LONG)
    # In update 20: the last row of its global batch, which the last rank reads.
    window = int(TrainData(*tiny_data, config).step_ids(20)[-1])
    put_at(data, tiny_data[1], window * config.model.seq_len + 1, VOCABULARY)
    run = tmp_path / "run"
    changed = {"data": {"path": str(data), "verify": False}, "checkpoint": {"every": 1000}}
    output = finish_ranks(2, config_file(LONG, changed), run, code=1)
    assert "Traceback" not in output
    # A CPU asks between micro-steps, in the middle of update 19, and gives that up.
    assert (status(run)["state"], status(run)["step"]) == ("failed", 19)
    assert "holds the token 512 at position" in status(run)["reason"]


def put_at(folder: Path, manifest: Manifest, position: int, token: int) -> None:
    """The same at a position of the training stream."""
    for shard in manifest.train.shards:
        if position < shard.tokens:
            return put(folder / shard.file, position, token)
        position -= shard.tokens
    raise AssertionError("no such position")
