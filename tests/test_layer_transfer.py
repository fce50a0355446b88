"""A follower that takes its leader's layer norms (schedule.match.take norms; P2, mechanism 1)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.errors import InputError
from configs.load import read_json, validate
from configs.origin import Leader
from configs.plan import make_plan
from configs.schema import RunConfig
from configs.tensors import tensor_table
from configs.transfer import is_transferred, transferred
from data.image_manifest import ImageManifest
from engine import checkpoint
from engine.launch import World, start_world
from engine.layer_norms import take_norms
from engine.supply import open_data
from engine.training import Training, begin
from record.lineage import find_leader
from record.progress import Progress
from record.recorder import Recorder
from record.run import RunFolder
from tests.live import train_steps
from tests.processes import finish, rows_of, start
from tests.ranks import run_ranks

Make = Callable[..., RunConfig]
NETWORK: dict[str, Any] = {
    "model": {"kind": "vgg16", "batchnorm": "plain"},
    "averages": {"ema": []},
    "seeds": {"init": 4},
    "log": {"every": 1, "tensor_norms": True},
}
FOLLOWER: dict[str, Any] = {
    "optim": {"weight_decay": 0.0},
    "schedule": {"match": {"reference": "leader", "take": "norms"}},
}


def led(config: RunConfig, manifest: ImageManifest, world: World, target: float) -> Training:
    """A training whose leader has every layer at norm `target` + its place among them, after each update."""
    assert config.schedule.match is not None
    norms = {n: [target + i] * 12 for i, n in enumerate(transferred(config, config.schedule.match))}
    plan = make_plan(config, world.ranks, manifest.summary(), leader=Leader("d", norms, None))
    data = open_data(config, manifest, plan, world)
    return begin(config, plan, RunFolder("none"), world, data, Recorder(None, None, config.units_per_step))


def followed(configs: list[RunConfig], manifest: ImageManifest, folder: str) -> list[Any]:
    """Per configuration: norms after update 1 (not due) and 2 (due), weights and buffers after 5, the same resumed from 2, the loss
    before and after a scaling."""
    world, found = start_world("transfer", 120, None), []
    for number, config in enumerate(configs):
        training = led(config, manifest, world, 5.0)
        train_steps(training, range(1))
        one = training.engine.weight_norms()
        train_steps(training, range(1, 2))
        two, fragments = training.engine.weight_norms(), training.engine.fragments
        path = checkpoint.save(Path(folder) / str(number), 2, fragments, training.progress.counters(), {})
        train_steps(training, range(2, 5))
        ends = {kind: fragments.gather(kind, 0) for kind in fragments.kinds}
        before = training.engine.evaluate(training.data.validation)
        take_norms(training, 6)
        after, norms = training.engine.evaluate(training.data.validation), training.engine.weight_norms()
        again = led(config, manifest, world, 5.0)
        again.progress = Progress.of(checkpoint.load(path, again.engine.fragments), config.numerics)
        train_steps(again, range(2, 5))
        resumed = {kind: again.engine.fragments.gather(kind, 0) for kind in again.engine.fragments.kinds}
        found.append((one, two, norms, ends, resumed, before, after))
    return found


@pytest.mark.engine
@pytest.mark.parametrize("ranks", [1, 2])
def test_norms_at_every_stage(
    tiny_images: tuple[Path, ImageManifest], make_images: Make, tmp_path: Path, ranks: int
) -> None:
    """Breaks if at some ZeRO stage or number of ranks a layer is not brought to its leader's norm, or is when it is not due,
    another tensor is scaled, the evaluation changes because the running statistics stay, or a stop between changes a bit."""
    torch.set_num_threads(1)
    every = {"schedule": {"match": {"every": 2}}}
    stages = (0, 1) if ranks == 1 else (0, 2, 3)
    configs = [make_images(NETWORK, FOLLOWER, every, {"parallel": {"zero_stage": stage}}) for stage in stages]
    layers = list(transferred(configs[0], configs[0].schedule.match))  # type: ignore[arg-type]
    assert len(layers) == 13
    answers = run_ranks(ranks, followed, configs, tiny_images[1], str(tmp_path))[0]
    for stage, (one, two, norms, ends, resumed, before, after) in zip(stages, answers, strict=True):
        for place, name in enumerate(layers):
            assert two[name] == pytest.approx(5.0 + place, rel=1e-6), (stage, name)
            assert norms[name] == pytest.approx(5.0 + place, rel=1e-6), (stage, name)
            assert one[name] != pytest.approx(5.0 + place, rel=1e-2), (stage, name)
        assert one["head.weight"] == pytest.approx(two["head.weight"], rel=0.2), "the head is nobody's layer to scale"
        for kind, tensors in ends.items():
            assert all(torch.equal(tensor, resumed[kind][name]) for name, tensor in tensors.items()), (stage, kind)
            for name, tensor in tensors.items():
                off = (tensor - answers[0][3][kind][name]).norm()
                assert off <= 1e-3 * tensor.norm() + 1e-4, (stage, kind, name)
        assert after["loss"] == pytest.approx(before["loss"], rel=1e-4), stage
        assert after["error"] == before["error"], stage


@pytest.mark.engine
def test_a_follower_and_what_is_refused(make_images: Make, tmp_path: Path) -> None:
    """Breaks if a run does not take the norms that another recorded, at each epoch's end, or following oneself changes a bit; or a
    leader without norms, of another network, of fewer steps, of another rate, or whose record ends early is followed."""
    torch.set_num_threads(1)
    strong = {"optim": {"weight_decay": 1.0, "decay_rule": "decoupled"}}
    leader, plain = make_images(NETWORK, strong), {"schedule": {"match": {"reference": str(tmp_path / "leader")}}}
    zero = {"optim": {"weight_decay": 0.0}}
    configs = {
        "leader": leader,
        "itself": make_images(NETWORK, FOLLOWER, plain, strong),
        "follower": make_images(NETWORK, FOLLOWER, plain, strong, zero),
    }
    rows = {}
    for name, config in configs.items():
        (tmp_path / f"{name}.json").write_text(config.model_dump_json())
        finish(start(tmp_path / f"{name}.json", tmp_path / name))
        rows[name] = rows_of(tmp_path / name)
    layers = [name for name, tensor in tensor_table(leader.model).items() if tensor.followed_by]
    for step in range(1, 13):
        same = ("train/loss", "weights/norm", *(f"norm/{name}" for name in layers))
        assert all(rows["itself"][step][key] == rows["leader"][step][key] for key in same), step
        for name in layers:
            ratio = rows["follower"][step][f"norm/{name}"] / rows["leader"][step][f"norm/{name}"]
            assert (ratio == pytest.approx(1, rel=1e-6)) == (step in (6, 12)), (step, name)
    assert rows["follower"][12]["optim/lr"] == rows["leader"][12]["optim/lr"], "η stays"
    ids = [
        read_json(tmp_path / name / "experiment.json")["schedule"]["match"]["digest"] for name in ("itself", "follower")
    ]
    assert ids[0] == ids[1]

    follower = configs["follower"].model_dump(mode="json")
    refused: list[tuple[dict[str, Any], str]] = [
        ({"schedule": {"steps": 13}}, "is a run of 12 steps, this one has 13.*set schedule.steps to 12 or less"),
        ({"model": {"width": 3}}, "of another model"),
        ({"model": {"kind": "resnet32"}}, "of another model"),
        ({"optim": {"lr": 0.06}}, "its leader's schedule"),
        ({"batch": {"images_per_step": 8}}, "of another model or batch"),
    ]
    for change, words in refused:
        given = {section: {**follower[section], **change.get(section, {})} for section in follower if section in change}
        with pytest.raises(InputError, match=words):
            find_leader(validate({**follower, **given}, "test"), None)
    shorter = validate({**follower, "schedule": {**follower["schedule"], "steps": 6}}, "test")
    assert find_leader(shorter, None) is not None, "a longer leader has the norms of each step"
    log = tmp_path / "leader" / "metrics.jsonl"
    log.write_text("\n".join(log.read_text().splitlines()[:-3]) + "\n")
    with pytest.raises(InputError, match=r"has no norm/body.* \(\d of 12 are missing\); let it finish first"):
        find_leader(configs["follower"], None)
    config_file = tmp_path / "leader" / "config.json"
    config_file.write_text(config_file.read_text().replace('"tensor_norms": true', '"tensor_norms": false'))
    with pytest.raises(InputError, match=r"no norms of single tensors; record it with log\.tensor_norms true"):
        find_leader(configs["follower"], None)


def test_what_cannot_be_taken(make_images: Make, tiny_config: Make) -> None:
    """Breaks if layer norms are taken where the model has no such layer, where something else sets them, where they would round
    away, or with a field that does nothing."""

    def match(**fields: Any) -> dict[str, Any]:
        return {"schedule": {"match": {"reference": "leader", "take": "norms", **fields}}}

    for overrides, words in (
        ([match(scope="tensor")], "scope does nothing with take norms"),
        ([match(own="run")], "own does nothing with take norms"),
        ([match(take="rate", every=2)], "every does nothing with take rate"),
        ([match(take="rate")], "sgd's is η/‖w‖²; schedule.match.take norms takes the leader's layer norms"),
        *(
            (
                [match(), {"optim": {"decay_rule": rule, "weight_decay": 0.0, "decay_mask": "matrices"}}],
                "both say what norms weights have",
            )
            for rule in ("norm_projection", "hyperball", "sphere")
        ),
    ):
        with pytest.raises(InputError, match=words):
            make_images(NETWORK, *overrides)
    rotational = {"optim": {"algorithm": "adam", "momentum": 0.9, "decay_rule": "rotational", "decay_mask": "matrices"}}
    with pytest.raises(
        InputError, match=r"optim\.decay_rule rotational: both say.*use a rule of λ, for example decoupled with"
    ):
        make_images(NETWORK, match(), rotational)
    with pytest.raises(InputError, match="a run on tokens has none; set it to a number of updates"):
        tiny_config(match(layers="normalised"))
    for precision in ("bf16-true", "bf16-stochastic"):
        low = {"precision": precision, "parallel": {"zero_stage": 1}}
        with pytest.raises(
            InputError, match=f"take norms under precision {precision}: a bfloat16 weight is rounded back"
        ):
            tiny_config(match(layers="normalised", every=2), low)
    bare = make_images(NETWORK, match(), {"model": {"batchnorm": "none"}})
    with pytest.raises(InputError, match=r"layers followed: no layer's outputs.*use a model with normalisation"):
        make_plan(bare, 1, None)
    counts = {
        layers: len(transferred(c, c.schedule.match))  # type: ignore[arg-type]
        for layers in ("followed", "normalised", "matrices")
        for c in [make_images(match(layers=layers))]
    }
    assert counts == {"followed": 8, "normalised": 20, "matrices": 21}, (
        "resnet18: conv1; all convolutions; and the head"
    )


def test_when_it_is_due(make_images: Make) -> None:
    """Breaks if every n-th update or each epoch's end is another, or a run that follows a rate has its layers scaled."""
    epoch, third = make_images(NETWORK, FOLLOWER), make_images(NETWORK, FOLLOWER, {"schedule": {"match": {"every": 3}}})
    assert [s for s in range(1, 13) if is_transferred(epoch.schedule.match, s, 6)] == [6, 12]
    assert [s for s in range(1, 13) if is_transferred(third.schedule.match, s, 6)] == [3, 6, 9, 12]
    assert not any(is_transferred(None, s, 6) for s in range(1, 13))
