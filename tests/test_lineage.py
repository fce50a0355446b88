"""What a run starts from and follows, read from the folders of kept runs: no engine, no torch."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from configs.errors import InputError
from configs.load import merge, read_json, validate
from configs.origin import Leader, Origin, planned_origin
from configs.plan import make_plan
from configs.prepared import DataSummary
from configs.schema import RunConfig
from configs.tensors import tensor_table
from configs.windows import windows_read
from record.checkpoints import parse_address, split_address
from record.lineage import find_leader, find_origin
from record.run import RunFolder

RUNS = Path(__file__).parent / "kept" / "runs"
TRUNK, TWIN = RUNS / "weight_decay0.3-seeds0-6c8b58af85", RUNS / "weight_decay0-seeds0-2f824ab714"
BRANCH = RUNS / "weight_decay0.3-seeds0-tiny00020-f2d20d30dc"


def config_of(run: Path, *overrides: dict[str, object]) -> RunConfig:
    given = read_json(run / "config.json")
    for override in overrides:
        given = merge(given, override)
    return validate(given, str(run))


def test_origin(tmp_path: Path) -> None:
    """Breaks if a branch's origin is not what an older version wrote down of it, from the trunk or from its own folder, or
    if a branch that has not begun does without its trunk."""
    plan = json.loads((BRANCH / "plan.json").read_text())
    trunk = find_origin(config_of(BRANCH, {"branch": {"origin": f"{TRUNK}@20"}}), None)
    assert trunk is not None
    assert trunk.as_dict() == {**plan["origin"], "reference": f"{TRUNK}@20", "data_path": trunk.data_path}
    plan["origin"]["reference"] = f"{tmp_path}/gone@20"
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    config = config_of(BRANCH, {"branch": {"origin": f"{tmp_path}/gone@20"}})
    recorded = find_origin(config, tmp_path)
    assert recorded is not None
    assert recorded.as_dict() == plan["origin"]
    with pytest.raises(InputError, match="no complete checkpoint"):
        find_origin(config, None)
    with pytest.raises(InputError, match="no complete checkpoint"):
        find_origin(config_of(BRANCH, {"branch": {"origin": f"{TWIN}@20"}}), tmp_path)
    assert find_origin(config, None, required=False) is None
    assert find_origin(config_of(TRUNK), TRUNK) is None


def test_leader(tmp_path: Path) -> None:
    """Breaks if a matched run does not find its leader's norms, takes those of an unfit leader, or, once it has begun, not
    those of its own folder, under the names that older folders have."""
    leader = tmp_path / "leader"
    shutil.copytree(TWIN, leader)
    config = config_of(TRUNK, {"schedule": {"match": {"reference": str(leader)}}})
    norms = find_leader(config, None)
    assert norms is not None
    assert len(norms.norms[""]) == config.schedule.steps
    assert norms.factor(3, {"": norms.norms[""][3] * 2}) == 2
    assert config.schedule.match is not None
    # an update that was left out has moved no weights: after it their norm is what it was before
    log = leader / "metrics.jsonl"
    rows = log.read_text().splitlines()
    (place,) = (i for i, row in enumerate(rows) if json.loads(row)["step"] == 3)
    skipped = json.dumps({"step": 3, "tokens": 0, "event": "nonfinite", "nonfinite/skipped": 1})
    log.write_text("\n".join([*rows[:place], skipped, *rows[place + 1 :], ""]))
    left_out = find_leader(config, None)
    assert left_out is not None
    assert left_out.norms[""] == [*norms.norms[""][:3], norms.norms[""][2], *norms.norms[""][4:]]
    log.write_text("\n".join([*rows, ""]))
    (tmp_path / "run").mkdir()
    folder = RunFolder(tmp_path / "run")
    folder.write_norms({"match": config.schedule.match.model_dump(mode="json"), **norms.as_dict()})
    assert sorted(json.loads(folder.norms.read_text())) == ["digest", "match", "own", "reference"]
    other = config_of(TRUNK, {"schedule": {"match": {"reference": str(leader)}, "final_lr_fraction": 0.5}})
    with pytest.raises(InputError, match="its leader's schedule"):
        find_leader(other, None)
    shutil.rmtree(leader)
    assert find_leader(config, folder.path) == norms
    with pytest.raises(InputError, match="no run folder to match"):
        find_leader(config, None)
    assert find_leader(config, None, required=False) is None
    folder.norms.write_text(folder.norms.read_text().replace('"reference": {', '"norms": {'))
    with pytest.raises(InputError, match="no run folder to match"):
        find_leader(config, folder.path)


def test_decay_of_a_matched_run() -> None:
    """Breaks if a plan judges the decay of a matched run, or of a branch with a factor on its η, by η where the run will decay by
    η′; or judges tensors with rates of their own by their mean, or by another tensor's λ."""
    strong, match = {"optim": {"weight_decay": 5.0}}, {"reference": "leader", "own": "own"}
    by_model = config_of(TRUNK, strong, {"schedule": {"match": match}})
    by_tensor = config_of(TRUNK, strong, {"schedule": {"match": {**match, "scope": "tensor"}}})
    n, matrix, gain = by_model.schedule.steps, "blocks.0.mlp.fc.weight", "blocks.0.ln_1.weight"
    ones = {name: [1.0] * n for name in tensor_table(by_model.model)}
    for decay, refused in ((0.9, False), (1.1, True)):
        factors = [decay / (by_model.optim.lr * 5.0)] * n
        for config, leader in (
            (by_model, Leader("d", {"": [1.0] * n}, {"": factors})),
            (by_tensor, Leader("d", ones, {**ones, matrix: factors})),
        ):
            if refused:
                with pytest.raises(InputError, match=r"with the factor on it.*would not stay above zero"):
                    make_plan(config, 1, None, leader=leader)
            else:
                make_plan(config, 1, None, leader=leader)
        make_plan(by_tensor, 1, None, leader=Leader("d", ones, {**ones, gain: factors}))  # gains do not decay
    # in closed loop the norms are not known before: a plan can judge η alone
    assert make_plan(by_model, 1, None, leader=Leader("d", {"": [1e-9] * n}, None)).decay_sum is None
    branch = config_of(BRANCH, strong, {"branch": {"origin": f"{TRUNK}@20"}})
    origin = find_origin(branch, None)
    assert origin is not None
    make_plan(branch, 1, None, origin)
    scaled = config_of(BRANCH, strong, {"branch": {"origin": f"{TRUNK}@20", "lr_by_norm_of": "run"}})
    with pytest.raises(InputError, match="with the factor on it"):
        make_plan(scaled, 1, None, replace(origin, norms=(1.0, branch.optim.lr), norms_of="run"))


def test_records() -> None:
    """Breaks if what is written of an origin or a leader is not what is read of it."""
    origin = Origin("run@20", "digest", 20, 160, {"model": {"n_layer": 2}}, "data")
    assert Origin.from_dict(json.loads(json.dumps(origin.as_dict()))) == origin
    leader = Leader("digest", {"": [1.0]}, None)
    assert Leader.from_dict(json.loads(json.dumps(leader.as_dict()))) == leader


def test_planned_origin() -> None:
    """Breaks if a branch planned before its trunk is trained would begin elsewhere in the order than the branch will."""
    trunk, config = config_of(TRUNK), config_of(BRANCH, {"branch": {"origin": f"{TRUNK}@20"}})
    digest = json.loads((TRUNK / "experiment.json").read_text())["data"]["digest"]
    data = DataSummary(digest, trunk.model.vocab_size, 60_000, 60_000)
    planned, real = planned_origin(trunk, data, 0, 20, f"{TRUNK}@20"), find_origin(config, None)
    assert real is not None
    assert (planned.step, planned.windows, planned.experiment) == (real.step, real.windows, real.experiment)
    assert planned.windows == windows_read(trunk, 20) == 20 * trunk.examples_per_step
    assert make_plan(config, 1, data, planned).first_window == make_plan(config, 1, data, real).first_window


def test_addresses() -> None:
    """Breaks if RUN@STEP is taken apart in the wrong place, or a typed step that is no number is taken for a name."""
    assert split_address("runs/a@b@20") == (Path("runs/a@b"), 20)
    assert split_address("runs/a@b") == (Path("runs/a@b"), None)
    assert parse_address(f"{TRUNK}@20") == (TRUNK, 20)
    with pytest.raises(InputError, match="expected a number after @"):
        parse_address(f"{TRUNK}@last")
