"""One pass, provably: every window once, the same for every way of sharing the batch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from configs.plan import make_plan
from configs.prepared import FEWEST_DOCUMENTS
from configs.schema import RunConfig
from configs.windows import train_windows, windows_in
from data.loader import IGNORED, Prefetcher, TrainData, eval_batches, probe_batch, step_batches
from data.manifest import Manifest
from data.order import Permutation, WindowOrder, shuffled
from data.shards import TokenStream


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 16, 17, 1000, 65_536, 65_537])
def test_permutation_is_a_bijection(n: int) -> None:
    """Breaks if a window could be read twice, or never."""
    images = Permutation(n, "key")(np.arange(n))
    assert np.array_equal(np.sort(images), np.arange(n))


def test_permutation_of_ten_billion_in_constant_memory() -> None:
    """Breaks if the order is stored, or leaves its range, at the size of a real corpus; images are spread evenly."""
    n = 10**10
    images = Permutation(n, "key")(np.arange(100_000))
    assert len(np.unique(images)) == 100_000
    assert 0 <= images.min() <= images.max() < n
    counts = np.histogram(images, bins=100, range=(0, n))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 150  # χ² with 99 degrees of freedom: 150 has p < 0.001


@pytest.mark.slow
def test_orders_look_random_over_keys() -> None:
    """Breaks if some window is favoured at some place, or neighbours stay neighbours, over many seeds."""
    n, keys = 50, 4000
    images = np.stack([Permutation(n, f"windows/{seed}/0")(np.arange(n)) for seed in range(keys)])  # (keys, n)
    for place in (0, 1, 24, 49):
        counts = np.bincount(images[:, place], minlength=n)
        assert ((counts - keys / n) ** 2 / (keys / n)).sum() < 95  # χ² with 49 degrees of freedom: 95 has p < 1e-4
    steps = (images[:, 1:] - images[:, :-1]) % n
    counts = np.bincount(steps.ravel(), minlength=n)[1:]
    expected = steps.size / (n - 1)
    assert ((counts - expected) ** 2 / expected).sum() < 95
    documents = np.stack([shuffled(n, f"documents/{seed}/0") for seed in range(keys)])
    assert (np.sort(documents, axis=1) == np.arange(n)).all()
    counts = np.bincount(documents[:, 0], minlength=n)
    assert ((counts - keys / n) ** 2 / (keys / n)).sum() < 95


def test_permutation_depends_on_its_key() -> None:
    """Breaks if two seeds, or two epochs, share an order."""
    orders = [tuple(Permutation(1000, key)(np.arange(1000))) for key in ("windows/0/0", "windows/0/1", "windows/1/0")]
    assert len(set(orders)) == 3
    assert all(0.5 < np.mean(np.abs(np.array(o) - np.arange(1000))) / (1000 / 3) < 1.5 for o in orders)


def test_every_window_once_per_epoch() -> None:
    """Breaks if an epoch repeats or skips a window, also where a batch spans two epochs."""
    order = WindowOrder(windows=37, epochs=3, seed=5, permuted=True)
    seen = [pair for t in range(11) for pair in zip(*order.step_windows(t, 10), strict=True)]
    assert len(seen) == 110
    assert len(set(seen)) == 110
    for epoch in (0, 1):
        assert sorted(w for e, w in seen if e == epoch) == list(range(37))
    with pytest.raises(ValueError, match="the run has 111"):
        order.step_windows(11, 10)


@pytest.mark.parametrize("batch", [7, 1500])
@pytest.mark.parametrize("permuted", [True, False])
def test_updates_in_any_sequence(batch: int, permuted: bool) -> None:
    """Breaks if what an update reads depends on which was asked before: places are computed for many updates at once."""
    asked = WindowOrder(windows=2000, epochs=3, seed=5, permuted=permuted, first=11)
    updates = [*range(3), 2, 0, (6000 - 11) // batch - 1, 1]
    for t in updates:
        fresh = WindowOrder(windows=2000, epochs=3, seed=5, permuted=permuted, first=11)
        for one, other in zip(asked.step_windows(t, batch), fresh.step_windows(t, batch), strict=True):
            assert len(one) == batch, t
            assert np.array_equal(one, other), t


@pytest.mark.slow
def test_every_target_is_predicted_once(
    tiny_data: tuple[Path, Manifest], tiny_config: Callable[..., RunConfig]
) -> None:
    """Breaks if the grid overlaps, leaves gaps, or drops more than the tail: the whole split is read, and compared."""
    folder, manifest = tiny_data
    windows = windows_in(manifest.train.tokens, 16)
    config = tiny_config({"batch": {"tokens_per_step": 16}, "schedule": {"steps": windows}})
    stream = np.concatenate([np.fromfile(folder / shard.file, dtype="<u2") for shard in manifest.train.shards])
    data = TrainData(folder, manifest, config)
    assert data.order.total == windows == (len(stream) - 1) // 16
    seen = np.zeros(windows, bool)
    for t in range(windows):
        (identity,) = data.step_ids(t)
        assert not seen[identity]
        seen[identity] = True
    rows = np.empty((windows, 17), np.int64)
    data.read(np.arange(windows), rows)
    assert np.array_equal(rows, np.lib.stride_tricks.sliding_window_view(stream, 17)[::16])


@pytest.mark.parametrize("order", ["windows", "documents"])
def test_same_batches_for_any_ranks(
    order: str, tiny_data: tuple[Path, Manifest], tiny_config: Callable[..., RunConfig]
) -> None:
    """Breaks if world size, micro-batch or accumulation changes which tokens an update reads."""
    folder, manifest = tiny_data
    config = tiny_config({"data": {"order": order}})
    data = TrainData(folder, manifest, config)
    reference = list(step_batches(data, 0, None, 8, 0, 1))
    for ranks, micro_batch in ((1, 2), (2, 1), (2, 4), (4, 2), (4, 1)):
        parts = [list(step_batches(data, 0, None, micro_batch, rank, ranks)) for rank in range(ranks)]
        for t, whole in enumerate(reference):
            # micro-step m of rank r holds the (m·ranks + r)-th slice
            for half in ("inputs", "targets"):
                pieces = [getattr(parts[r][t], half)[m] for m in range(8 // ranks // micro_batch) for r in range(ranks)]
                assert np.array_equal(np.concatenate(pieces), getattr(whole, half)[0]), (ranks, micro_batch, t)
            assert {parts[r][t].digest for r in range(ranks)} == {whole.digest}


def test_resumed_order_and_digest(tiny_data: tuple[Path, Manifest], tiny_config: Callable[..., RunConfig]) -> None:
    """Breaks if starting at update 4 reads other windows than passing through it, or breaks the digest's chain."""
    data = TrainData(*tiny_data, tiny_config())
    straight = list(step_batches(data, 0, None, 8, 0, 1))
    resumed = list(step_batches(data, 4, straight[3].digest, 8, 0, 1))
    assert [b.digest for b in resumed] == [b.digest for b in straight[4:]]
    ids = data.step_ids(0).astype("<i8").tobytes()
    assert straight[0].digest == hashlib.sha256(bytes.fromhex(data.start_digest) + ids).hexdigest()
    others = [{"seeds": {"data": 1}}, {"data": {"order": "documents"}}]
    assert len({data.start_digest, *(TrainData(*tiny_data, tiny_config(other)).start_digest for other in others)}) == 3


def test_documents_are_read_through(tiny_data: tuple[Path, Manifest], tiny_config: Callable[..., RunConfig]) -> None:
    """Breaks if the stream under `documents` is not the documents, each whole and once, in a shuffled order."""
    folder, manifest = tiny_data
    config = tiny_config({"data": {"order": "documents"}})
    data = TrainData(folder, manifest, config)
    rows = np.empty((data.order.windows, 17), np.int64)
    data.read(np.arange(data.order.windows), rows)
    stream = np.append(rows[:, :16].reshape(-1), rows[-1, 16])
    prepared = np.concatenate([np.fromfile(folder / shard.file, dtype="<u2") for shard in manifest.train.shards])
    ends = np.fromfile(folder / manifest.train.docs_file, dtype="<u8").astype(int)
    documents = {tuple(prepared[a:b]) for a, b in zip([0, *ends[:-1]], ends, strict=True)}
    cuts = np.flatnonzero(stream == manifest.eot) + 1
    found = [tuple(stream[a:b]) for a, b in zip([0, *cuts[:-1]], cuts, strict=True)]
    assert len(found) >= manifest.train.documents - 1  # the dropped tail may cut the last one
    assert set(found) <= documents
    assert len(set(found)) == len(found)
    assert found != [tuple(prepared[a:b]) for a, b in zip([0, *ends[:-1]], ends, strict=True)][: len(found)]


def test_every_epoch_has_an_order_of_documents(
    short_documents: tuple[Path, Manifest], tiny_config: Callable[..., RunConfig]
) -> None:
    """Breaks if a second epoch reads the documents in the first one's order, some of them not or twice, or other tokens where a
    resume begins in it."""
    config = tiny_config({"data": {"order": "documents", "epochs": 2}})
    data, later = (TrainData(*short_documents, config) for _ in range(2))
    windows = data.order.windows
    first, second, resumed = (np.empty((windows, 17), np.int64) for _ in range(3))
    data.read(np.arange(windows), first)
    data.read(np.arange(windows, 2 * windows), second)
    later.read(np.arange(windows, 2 * windows), resumed)
    assert np.array_equal(second, resumed)
    streams = [np.append(rows[:, :16].reshape(-1), rows[-1, 16]) for rows in (first, second)]
    orders = []
    for stream in streams:
        cuts = np.flatnonzero(stream == short_documents[1].eot) + 1
        orders.append([tuple(stream[a:b]) for a, b in zip([0, *cuts[:-1]], cuts, strict=True)])
    assert orders[0] != orders[1]
    # but for what the tail of each epoch cuts off
    most = max(len(set(order)) for order in orders)
    assert len(set(orders[0]) & set(orders[1])) >= most - 2


def test_train_tokens_limits_the_data(
    short_documents: tuple[Path, Manifest], tiny_config: Callable[..., RunConfig]
) -> None:
    """Breaks if a limited run reads past its limit, in either order."""
    folder, manifest = short_documents
    for order in ("windows", "documents"):
        config = tiny_config({"data": {"order": order, "train_tokens": 1000}, "schedule": {"steps": 7}})
        data = TrainData(folder, manifest, config)
        assert data.order.total == train_windows(config, manifest.train.tokens) == 62
        rows = np.empty((62, 17), np.int64)
        data.read(np.arange(62), rows)
        allowed = np.concatenate([np.fromfile(folder / s.file, dtype="<u2") for s in manifest.train.shards])[:1000]
        assert np.bincount(rows[:, :16].ravel(), minlength=512).sum() <= np.bincount(allowed, minlength=512).sum()
        assert (np.bincount(rows[:, :16].ravel(), minlength=512) <= np.bincount(allowed, minlength=512)).all()


def test_few_documents_are_no_shuffle(
    tiny_data: tuple[Path, Manifest], short_documents: tuple[Path, Manifest], tiny_config: Callable[..., RunConfig]
) -> None:
    """Breaks if data.order documents is accepted where it leaves the corpus's order as it is, or refused where it does not."""
    config = tiny_config({"data": {"order": "documents"}})
    few = replace(tiny_data[1].summary(), train_documents=1)
    with pytest.raises(
        ValueError, match=r"has 1 of [\d,]+ tokens on average: that is hardly a shuffle; use .* windows"
    ):
        make_plan(config, 1, few)
    make_plan(config, 1, replace(few, train_documents=FEWEST_DOCUMENTS))
    make_plan(tiny_config(), 1, few)
    limited = tiny_config({"data": {"order": "documents", "train_tokens": 1000}, "schedule": {"steps": 7}})
    with pytest.raises(ValueError, match=r"on average within data.train_tokens: that is hardly a shuffle"):
        TrainData(*tiny_data, limited)  # only the documents' ends tell how many the limit holds
    TrainData(*short_documents, limited)


def test_shards_read_as_one_stream(tmp_path: Path) -> None:
    """Breaks if a window that spans shards loses a token, or a short shard is accepted."""
    from data.shards import Shard

    shards = []
    for index, (first, count) in enumerate([(0, 5), (5, 0), (5, 3), (8, 12)]):
        np.arange(first, first + count, dtype="<u2").tofile(tmp_path / f"{index}.bin")
        shards.append(Shard(f"{index}.bin", count, ""))
    stream, out = TokenStream(tmp_path, shards, "uint16"), np.empty(20, np.int64)
    for start in range(20):
        for stop in range(start, 21):
            stream.read(start, stop, out[: stop - start])
            assert np.array_equal(out[: stop - start], np.arange(start, stop))
    for length in (1, 2, 4, 13):
        starts = np.array([*range(21 - length), 3, 3, 0])  # in any sequence, and more than once
        rows = np.full((len(starts), length), -1, np.int64)
        stream.read_rows(starts, rows)
        assert np.array_equal(rows, starts[:, None] + np.arange(length)), length
    with pytest.raises(ValueError, match=r"0.bin has 10 bytes; the manifest says 12 bytes"):
        TokenStream(tmp_path, [Shard("0.bin", 6, "")], "uint16")


def test_validation_windows_are_fixed(tiny_data: tuple[Path, Manifest], tiny_config: Callable[..., RunConfig]) -> None:
    """Breaks if the validation set depends on ranks or micro-batch, or ranks get unequal numbers of batches."""
    folder, manifest = tiny_data
    config = tiny_config({"eval": {"tokens": 16 * 29}})
    sets = []
    for ranks, micro_batch in ((1, 1), (1, 4), (2, 4), (3, 2)):
        parts = [eval_batches(folder, manifest, config, micro_batch, rank, ranks) for rank in range(ranks)]
        assert len({len(part) for part in parts}) == 1
        windows = [
            (*inputs, targets[-1])
            for part in parts
            for batch in part
            for inputs, targets in zip(batch.inputs, batch.targets, strict=True)
            if (targets != IGNORED).all()
        ]
        assert sum(batch.counted for part in parts for batch in part) == len(windows) * config.model.seq_len
        sets.append(sorted(windows))
    assert all(found == sets[0] for found in sets)
    assert len(sets[0]) == 29


def test_a_probe_sees_the_whole_split(tiny_data: tuple[Path, Manifest], tiny_config: Callable[..., RunConfig]) -> None:
    """Breaks if a probe looks at the first windows of the validation split alone, at other ones on more ranks, or at more than
    are evaluated."""
    folder, manifest = tiny_data
    config, length = tiny_config(), 16
    stream = TokenStream(folder, manifest.val.shards, manifest.dtype)
    available = (len(stream) - 1) // length
    expected = np.empty((8, length + 1), np.int64)
    for row in range(8):
        first = row * available // 8 * length
        stream.read(first, first + length + 1, expected[row])
    for ranks in (1, 2, 4):
        shares = [probe_batch(folder, manifest, config, 8 // ranks, rank, ranks) for rank in range(ranks)]
        assert np.array_equal(np.concatenate([share.inputs for share in shares]), expected[:, :-1]), ranks
        assert np.array_equal(np.concatenate([share.targets for share in shares]), expected[:, 1:]), ranks
    few = probe_batch(folder, manifest, tiny_config({"eval": {"tokens": 3 * length}}), 8, 0, 1)
    assert few.counted == 3 * length
    assert (few.targets[3:] == IGNORED).all()


def test_prefetcher_hands_on_errors(tiny_data: tuple[Path, Manifest], tiny_config: Callable[..., RunConfig]) -> None:
    """Breaks if a failing data thread hangs the training loop, or closing one does."""
    data = TrainData(*tiny_data, tiny_config())

    def failing():
        yield from list(step_batches(data, 0, None, 8, 0, 1))[:2]
        raise OSError("disk gone")

    batches = Prefetcher(failing())
    assert [next(batches).step, next(batches).step] == [0, 1]
    with pytest.raises(OSError, match="disk gone"):
        next(batches)
    endless = Prefetcher(step_batches(data, 0, None, 8, 0, 1))
    endless.close()
