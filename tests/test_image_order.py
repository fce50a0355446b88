"""Which images an update reads, and how they look: one order and one appearance for any ranks, batching and resumption."""

from __future__ import annotations

import hashlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from configs.errors import InputError
from data.augment import Augment
from data.image_loader import ImageStream, TrainImages, eval_batches, step_batches
from data.image_manifest import ImageManifest
from data.image_order import ImageOrder
from data.loader import IGNORED, Prefetcher
from data.order import BLOCK, Permutation
from tests.pictures import arrays, prepared_pictures

N, SHAPE = 53, (3, 6, 5)  # of the training split below


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ImageManifest]:
    """53 training and 13 validation images of 3 classes, all different, higher than wide; 11 labels are wrong on purpose."""
    return prepared_pictures(tmp_path_factory.mktemp("pictures"), SHAPE, [26, 21, 19], label_noise=0.2)


@pytest.mark.parametrize(("images", "batch"), [(53, 8), (53, 53), (53, 1), (56, 8), (3000, 7), (3000, 1500)])
def test_each_epoch_reads_each_image_once(images: int, batch: int) -> None:
    """Breaks if an image is read twice in an epoch, a batch spans two epochs, or more is dropped than the remainder."""
    order = ImageOrder(images, batch, epochs=3, seed=4)
    assert order.steps == 3 * (images // batch)
    assert order.dropped == images - images // batch * batch
    for epoch in range(3):
        steps = range(epoch * order.per_epoch, (epoch + 1) * order.per_epoch)
        read = [order.step_images(t) for t in steps]
        assert {e for e, _ in read} == {epoch}
        ids = np.concatenate([i for _, i in read])
        assert len(ids) == images - order.dropped == len(np.unique(ids))
        assert np.array_equal(ids, Permutation(images, f"images/4/{epoch}")(np.arange(len(ids))))
        assert np.array_equal(order.step_ids(steps[0]) % images, read[0][1])
        assert (order.step_ids(steps[0]) // images == epoch).all()


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    """Breaks if epochs repeat one order, or the seed does not enter: then all runs of a comparison share their noise."""
    ids = [ImageOrder(500, 500, 2, seed).step_images(t)[1].tolist() for seed in (0, 1) for t in (0, 1)]
    assert len({tuple(one) for one in ids}) == 4


def test_updates_in_any_sequence() -> None:
    """Breaks if what an update reads depends on which was asked before: places are computed for many updates at once."""
    asked = ImageOrder(2 * BLOCK + 100, 300, epochs=4, seed=1)
    assert asked.per_epoch == 7
    for t in [0, 1, 2, 3, 4, 5, 6, 7, 6, 13, 27, 3, 4, 0, 7, 0]:
        fresh = ImageOrder(2 * BLOCK + 100, 300, epochs=4, seed=1).step_images(t)
        assert asked.step_images(t)[0] == fresh[0] == t // 7
        assert np.array_equal(asked.step_images(t)[1], fresh[1]), t


@pytest.mark.parametrize("start", [0, 1, 5, 6, 11, 12, 17])
def test_a_branch_reads_on(start: int) -> None:
    """Breaks if a branch that begins at an update of its trunk reads an image again, or other images than the trunk would."""
    trunk = ImageOrder(53, 8, epochs=3, seed=2)
    branch = ImageOrder(53, 8, epochs=3, seed=2, first=trunk.position(start))
    assert branch.steps == trunk.steps - start
    for t in range(branch.steps):
        assert np.array_equal(branch.step_ids(t), trunk.step_ids(start + t)), t
        assert branch.position(t) == trunk.position(start + t)


def test_a_branch_with_another_batch_repeats_no_image() -> None:
    """Breaks if a branch of larger batches takes images of the epoch that the trunk has read."""
    trunk = ImageOrder(53, 8, epochs=2, seed=2)
    branch = ImageOrder(53, 10, epochs=2, seed=2, first=trunk.position(3))
    assert branch.steps == (53 - 24) // 10 + 5
    ids = [trunk.step_ids(t) for t in range(3)] + [branch.step_ids(t) for t in range(branch.steps)]
    flat = np.concatenate(ids)
    assert len(np.unique(flat)) == len(flat)


def test_refused_orders() -> None:
    """Breaks if a batch larger than the data, or an update past the last, reads something all the same."""
    with pytest.raises(InputError, match="a batch of 54 images, and the training split has 53; at most 53"):
        ImageOrder(53, 54, 1, 0)
    with pytest.raises(InputError, match="a batch of 0 images"):
        ImageOrder(53, 0, 1, 0)
    order = ImageOrder(53, 8, 2, 0)
    with pytest.raises(InputError, match=r"update 12 of a run of 2 epochs, which has 12 updates of 8 images \(5 of 53"):
        order.step_images(12)
    with pytest.raises(InputError, match="update -1"):
        order.step_images(-1)
    assert ImageOrder(53, 8, 2, 0, first=2 * 53).steps == 0


@pytest.mark.parametrize("augment", [None, Augment(crop=2, flip=True, cutout=2)])
def test_same_batches_for_any_ranks(pictures: tuple[Path, ImageManifest], augment: Augment | None) -> None:
    """Breaks if ranks, micro-batch, accumulation or a resumption changes which images an update reads, or how they look."""
    folder, manifest = pictures
    images, labels = arrays(*pictures, "train")
    data = TrainImages(folder, manifest, 8, seed=3, epochs=2, augment=augment)
    reference = list(step_batches(data, 0, None, 8, 0, 1))
    assert [batch.step for batch in reference] == list(range(12))
    digest = hashlib.sha256(b"images/3").hexdigest()
    for batch in reference:
        assert batch.inputs.shape == (1, 8, *SHAPE)
        assert batch.inputs.dtype == np.uint8
        assert batch.targets.dtype == np.int64
        digest = hashlib.sha256(bytes.fromhex(digest) + batch.ids.astype("<i8").tobytes()).hexdigest()
        assert batch.digest == digest
        assert np.array_equal(batch.targets[0], labels[batch.ids % N])
        assert np.array_equal(batch.inputs[0], images[batch.ids % N]) == (augment is None)
    for ranks, micro_batch, start in ((1, 2, 0), (2, 1, 0), (2, 4, 5), (4, 2, 6), (4, 1, 11)):
        before = reference[start - 1].digest if start else None
        shares = []
        for rank in range(ranks):
            mine = TrainImages(folder, manifest, 8, seed=3, epochs=2, augment=augment)
            shares.append(list(step_batches(mine, start, before, micro_batch, rank, ranks)))
        for t, batches in enumerate(zip(*shares, strict=True), start):
            whole = reference[t]
            assert {batch.digest for batch in batches} == {whole.digest}
            for what in ("inputs", "targets"):  # (M, ranks, b, …) → the global batch, in its order
                joined = np.stack([getattr(batch, what) for batch in batches], axis=1)
                assert np.array_equal(joined.reshape(getattr(whole, what)[0].shape), getattr(whole, what)[0])
    assert len(list(step_batches(data, 4, reference[3].digest, 8, 0, 1, steps=7))) == 3


def test_batches_go_through_the_prefetcher(pictures: tuple[Path, ImageManifest]) -> None:
    """Breaks if images cannot be read ahead by the same thread as tokens, or its end or its errors get lost."""
    folder, manifest = pictures
    data = TrainImages(folder, manifest, 8, seed=3)
    prefetcher = Prefetcher(step_batches(data, 0, None, 4, 1, 2, steps=7))
    assert [next(prefetcher).step for _ in range(6)] == list(range(6))
    assert "update 6 of a run of 1 epochs" in prefetcher.problem()
    prefetcher.close()


@pytest.mark.parametrize(("micro_batch", "ranks"), [(4, 1), (4, 2), (5, 3), (13, 1), (20, 1), (1, 4)])
def test_validation_counts_each_image_once(pictures: tuple[Path, ImageManifest], micro_batch: int, ranks: int) -> None:
    """Breaks if an image is left out or counted twice, a filled-up row counts, or ranks have unequally many batches."""
    folder, manifest = pictures
    images, labels = arrays(*pictures, "val")
    shares = [list(eval_batches(folder, manifest, micro_batch, rank, ranks)) for rank in range(ranks)]
    assert len({len(share) for share in shares}) == 1
    seen = []
    for batches in zip(*shares, strict=True):
        for batch in batches:
            assert batch.inputs.shape == (micro_batch, *SHAPE)
            places = np.array(batch.places, dtype=int)
            assert batch.counted == len(places) == (batch.targets != IGNORED).sum()
            assert np.array_equal(batch.targets[: len(places)], labels[places])
            assert np.array_equal(batch.inputs[: len(places)], images[places])
            assert not batch.inputs[len(places) :].any()
            seen += places.tolist()
    assert sorted(seen) == list(range(13)) == list(range(manifest.val.images))


def test_a_part_is_spread_evenly(pictures: tuple[Path, ImageManifest]) -> None:
    """Breaks if a part of a split is its beginning: files are sorted by class, so that it would be one class alone."""
    folder, manifest = pictures
    images, _ = arrays(*pictures, "train")
    batches = list(eval_batches(folder, manifest, 4, 0, 1, count=10, split="train"))
    read = np.concatenate([batch.inputs[: batch.counted] for batch in batches])
    chosen = [int(np.flatnonzero((images == one).all(axis=(1, 2, 3)))[0]) for one in read]
    assert chosen == [0, 5, 10, 15, 21, 26, 31, 37, 42, 47]
    assert {b - a for a, b in pairwise(chosen)} == {5, 6}
    for count in (0, 54):
        with pytest.raises(InputError, match=f"{count} images of the 53 in the split train"):
            next(eval_batches(folder, manifest, 4, 0, 1, count=count, split="train"))


def test_true_labels_are_read_where_asked(pictures: tuple[Path, ImageManifest]) -> None:
    """Breaks if training reads the true labels of noisy data, or evaluation cannot."""
    folder, manifest = pictures
    ids = np.arange(N)
    wrong, true = (ImageStream(folder, manifest, "train", true_labels=true).labels(ids) for true in (False, True))
    assert (wrong != true).sum() == manifest.wrong_labels == 11
    assert np.array_equal(TrainImages(folder, manifest, 8, 0).labels(ids), wrong)
    val = [ImageStream(folder, manifest, "val", true_labels=true).labels(np.arange(13)) for true in (False, True)]
    assert np.array_equal(*val)  # validation labels are never made wrong


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    """Breaks if a file that was cut off, removed, or overwritten with a label beyond the classes is read as if it were whole."""
    folder, manifest = prepared_pictures(tmp_path, (1, 4, 4), [10, 10])
    labels = folder / "train_labels.u16"
    raw = labels.read_bytes()
    labels.write_bytes(raw[:6] + b"\x02\x00" + raw[8:])
    with pytest.raises(
        InputError, match=r"train_labels\.u16 has the label 2 for image 3, and the classes of the data are 0 to 1"
    ):
        list(step_batches(TrainImages(folder, manifest, 4, 0), 0, None, 4, 0, 1))
    labels.write_bytes(raw[:-2])
    with pytest.raises(InputError, match=r"train_labels\.u16 has 30 bytes; the manifest says 32 bytes"):
        TrainImages(folder, manifest, 4, 0)
    labels.write_bytes(raw)
    (folder / "val_images.u8").unlink()
    TrainImages(folder, manifest, 4, 0)
    with pytest.raises(InputError, match=r"val_images\.u8 is missing"):
        next(eval_batches(folder, manifest, 4, 0, 1))


def looks(
    images: np.ndarray, augment: Augment, epoch: int = 0, seed: int = 0, ids: np.ndarray | None = None
) -> np.ndarray:
    ids = np.arange(len(images)) if ids is None else ids
    fill = np.full(images.shape[1], 77, np.uint8)
    return augment.apply(images, np.full(len(ids), epoch), ids, seed, fill)


def numbered(n: int, height: int = 7, width: int = 9) -> np.ndarray:
    """Images whose pixels are all different and not black: (n, 2, H, W)."""
    one = np.arange(1, 2 * height * width + 1, dtype=np.uint8).reshape(2, height, width)
    return np.repeat(one[None], n, axis=0)


def test_crops_are_windows_of_the_padded_image() -> None:
    """Breaks if a crop shifts channels apart, wraps around, leaves the padded image, or cannot reach each of its places."""
    images, pad = numbered(2000), 3
    cropped = looks(images, Augment(crop=pad))
    assert cropped.dtype == np.uint8
    padded = np.pad(images[0], ((0, 0), (pad, pad), (pad, pad)))
    windows = {
        padded[:, y : y + 7, x : x + 9].tobytes(): (y, x) for y in range(2 * pad + 1) for x in range(2 * pad + 1)
    }
    places = np.array([windows[one.tobytes()] for one in cropped])
    counts = np.bincount(places[:, 0] * 7 + places[:, 1], minlength=49)
    assert counts.min() > 0
    assert ((counts - 2000 / 49) ** 2 / (2000 / 49)).sum() < 94  # χ² with 48 degrees of freedom: 94 has p < 1e-4


def test_flips_exchange_left_and_right_in_half() -> None:
    """Breaks if a flip turns an image upside down, or all images are flipped together."""
    images = numbered(2000)
    flipped = looks(images, Augment(flip=True))
    turned = (flipped == images[..., ::-1]).all(axis=(1, 2, 3))
    assert (turned | (flipped == images).all(axis=(1, 2, 3))).all()
    assert 900 < turned.sum() < 1100


def test_cutout_paints_one_square_of_the_mean() -> None:
    """Breaks if the square is of another size, always inside, differs between channels, or is not the mean's colour."""
    images = numbered(3000) + 100
    painted = looks(images, Augment(cutout=4)) == 77
    assert (painted[:, 0] == painted[:, 1]).all()
    rows, columns = painted[:, 0].any(axis=2).sum(axis=1), painted[:, 0].any(axis=1).sum(axis=1)
    assert (painted[:, 0].sum(axis=(1, 2)) == rows * columns).all()  # a rectangle
    # The centre is anywhere in 7 × 9 pixels: the square's first row is −2 … 4, so that 2 to 4 of its rows lie inside.
    assert set(rows) == set(columns) == {2, 3, 4}
    assert abs((rows == 4).mean() - 4 / 7) < 0.04  # the first row is 0, 1, 2 or 3
    assert abs((columns == 4).mean() - 6 / 9) < 0.04
    assert (looks(images, Augment(cutout=40)) == 77).all()
    corner = painted[:, 0, 0, 0].mean()
    assert abs(corner - 9 / 63) < 0.03  # centres (0 … 2, 0 … 2) hide the first pixel


def test_appearance_is_of_seed_epoch_and_image_alone() -> None:
    """Breaks if an image looks otherwise in another batch, or the same in another epoch, or as its neighbour did before."""
    augment = Augment(crop=4, flip=True, cutout=5)
    images = np.random.default_rng(0).integers(1, 256, (300, 3, 32, 32), dtype=np.uint8)
    whole = looks(images, augment)
    chosen = np.random.default_rng(1).permutation(300)[:37]
    assert np.array_equal(looks(images[chosen], augment, ids=chosen), whole[chosen])
    assert np.array_equal(images, np.random.default_rng(0).integers(1, 256, (300, 3, 32, 32), dtype=np.uint8))
    same = np.repeat(images[:1], 300, axis=0)
    first, second, other = (looks(same, augment, epoch, seed) for epoch, seed in ((0, 0), (1, 0), (0, 1)))
    for one in (second, other):
        assert (first == one).all(axis=(1, 2, 3)).mean() < 0.05
        assert (first[1:] == one[:-1]).all(axis=(1, 2, 3)).mean() < 0.05
        assert (first[:-1] == one[1:]).all(axis=(1, 2, 3)).mean() < 0.05
    mixed = augment.apply(same, np.arange(300) % 2, np.arange(300), 0, np.full(3, 77, np.uint8))
    assert np.array_equal(mixed[::2], first[::2])
    assert np.array_equal(mixed[1::2], second[1::2])


def test_kinds_are_drawn_apart() -> None:
    """Breaks if one draw decides two things, or a step undoes another: nine windows and two directions give 18 looks."""
    images = numbered(4000)
    seen = looks(images, Augment(crop=1, flip=True))
    assert len({one.tobytes() for one in seen}) == 9 * 2


def test_no_augmentation_is_the_default(pictures: tuple[Path, ImageManifest]) -> None:
    """Breaks if images are changed where nobody asked for it, or a negative number of pixels is taken."""
    assert not Augment().any
    assert np.array_equal(looks(numbered(9), Augment()), numbered(9))
    with pytest.raises(InputError, match="crop -1 and cutout 0 are pixels"):
        Augment(crop=-1)
