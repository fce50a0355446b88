"""Probes of what λ does to stability: parts of the change of ‖w‖², changed weights, singular values, attention's logits."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import engine.attention_logits
import engine.spectral
from configs import cost
from configs.precision import TABLE
from configs.schedule import lr_at
from configs.schema import RunConfig
from data.loader import probe_batch
from data.manifest import Manifest
from engine.attention_logits import AttentionLogits, largest_score
from engine.launch import start_world
from engine.spectral import spectral_norms
from engine.zero import Fragment
from model.attention import Attention
from model.gpt import GPT
from optim.rules import RULES, Rule
from tests.live import make_training, probed_step, train_steps
from tests.ranks import run_ranks
from tests.test_llama_engine import SHAPE

PARTS = ("alignment", "injection", "decay")
ONE_MATRIX = "blocks.1.mlp.fc.weight"


def two_steps(configs: list[RunConfig], manifest: Manifest) -> list[dict[str, Any]]:
    """Two updates, the second probed: its row, and the whole tensors around it."""
    world, found = start_world("probed", 120, None), []
    for config in configs:
        training = make_training(config, manifest, world)
        train_steps(training, range(1))
        fragments = training.engine.fragments
        run: dict[str, Any] = {"before": fragments.gather("weights", 0)}
        run["first"] = dict(training.progress.numbers.get("first_norm", {}))
        run["row"] = probed_step(training, 1)
        run["after"] = fragments.gather("weights", 0)
        moment = {"adam": "exp_avg"}.get(config.optim.algorithm)
        run["moment"] = fragments.gather(moment, 0) if moment else None
        found.append(run)
    return found


def difference(run: dict[str, Any], name: str) -> float:
    """‖w′‖² − ‖w‖² without the loss of digits."""
    after, before = run["after"][name].double(), run["before"][name].double()
    return ((after - before) * (after + before)).sum().item()


@pytest.mark.engine
@pytest.mark.parametrize("ranks", [1, 2])
def test_parts_sum_to_the_change(
    ranks: int, tiny_data: tuple[Path, Manifest], tiny_config: Callable[..., RunConfig]
) -> None:
    """Breaks if under some rule, precision or stage alignment + injection − decay is not what ‖w‖² changed by."""
    rules: list[dict[str, Any]] = [
        {"decay_rule": name, "weight_decay": 0.5 if Rule(RULES[name]).uses_decay else 0.0} for name in RULES
    ]
    if ranks == 1:
        cases: list[tuple[dict[str, Any], int]] = [
            ({"optim": rule}, 3) for rule in rules if "cautious" in rule["decay_rule"]
        ]
    else:
        cases = [({"optim": rule}, stage) for rule in rules for stage in (0, 3)]
        precisions = (("bf16-mixed", 2), ("bf16-true", 1), ("bf16-stochastic", 3))
        cases += [({"precision": precision}, stage) for precision, stage in precisions]
        cases += [({"optim": {"algorithm": name, "lr": 1e-3}}, 2) for name in ("lion", "muon", "sgd")]
        cases += [({"optim": {"algorithm": "torch.optim.NAdam"}}, 0)]
    configs = [tiny_config({"log": {"probe_every": 1}}, {"parallel": {"zero_stage": s}}, more) for more, s in cases]
    for (more, stage), config, run in zip(
        cases, configs, run_ranks(ranks, two_steps, configs, tiny_data[1])[0], strict=True
    ):
        row, where, decays = run["row"], f"{more}, stage {stage}", Rule(RULES[config.optim.decay_rule])
        total = {part: math.fsum(row[f"probe/norm2_{part}/{n}"] for n in run["after"]) for part in PARTS}
        for part, value in total.items():
            assert row[f"probe/norm2_{part}"] == pytest.approx(value, rel=1e-12), where
        for name, after in run["after"].items():
            alignment, injection, decay = (row[f"probe/norm2_{part}/{name}"] for part in PARTS)
            square = after.double().square().sum().item()
            assert alignment + injection - decay == pytest.approx(
                difference(run, name), rel=1e-9, abs=1e-13 * square
            ), where
            if after.dim() == 1 and config.optim.decay_rule != "sphere":
                assert decay == 0, f"{where}: {name} does not decay"
        if config.optim.decay_rule == "selective_projection":
            continue  # acts only on a tensor that grew against its gradient
        # What is in the gradient is in the step; all others take something from the matrices, or add to them.
        in_step = decays.inside == "coupled" or config.optim.decay_rule == "l2_loss"
        assert (row[f"probe/norm2_decay/{ONE_MATRIX}"] == 0) == in_step, where


@pytest.mark.engine
def test_parts_by_formula(tiny_data: tuple[Path, Manifest], tiny_config: Callable[..., RunConfig]) -> None:
    """Breaks if a part is not what its formula says, though the three sum up."""
    base: dict[str, Any] = {"log": {"probe_every": 1}}
    sgd = {"algorithm": "sgd", "momentum": 0.0, "lr": 0.5, "grad_clip": 0.0, "weight_decay": 0.1}
    hyperball = {"decay_rule": "hyperball", "weight_decay": 0.0}
    optims: list[dict[str, Any]] = [{}, {"decay_rule": "cautious"}, sgd, hyperball]
    configs = [tiny_config(base, {"optim": o, "parallel": {"zero_stage": s}}) for o in optims for s in (0, 3)]
    runs = run_ranks(2, two_steps, configs, tiny_data[1])[0]
    for config, run in zip(configs, runs, strict=True):
        lr, optim, row = lr_at(config, 1), config.optim, run["row"]
        for name, before in run["before"].items():
            if before.dim() == 1:
                continue
            w, after = before.double(), run["after"][name].double()
            measured = [row[f"probe/norm2_{part}/{name}"] for part in PARTS]
            keep: Any = 1 - lr * optim.weight_decay
            if optim.decay_rule == "cautious":  # decays where the step, of the sign of its moment, shrinks a weight
                keep = torch.where(run["moment"][name] * before >= 0, keep, 1.0)
            if optim.decay_rule == "hyperball":  # back on the sphere of the first norm, by a step of its own size
                assert measured[1] == pytest.approx((lr * run["first"][name]) ** 2, rel=1e-5)
                continue
            step = after - keep * w
            expected = [2 * (keep * w * step).sum(), step.square().sum(), ((1 - keep**2) * w.square()).sum()]
            if optim.algorithm == "sgd":  # u is the gradient: by the probe's own cosine and norms
                norm, u = w.norm().item(), row[f"probe/grad_norm/{name}"]
                product = row[f"probe/cosine/{name}"] * norm * u
                expected = [-2 * lr * keep * product, (lr * u) ** 2, (1 - keep**2) * norm**2]
            rounded = 2.0**-23 * w.square().sum().item()  # of the weights, which is the step's
            bounds = [pytest.approx(float(one), rel=1e-5, abs=rounded) for one in expected]
            assert measured == bounds, (optim.decay_rule, name)
            assert measured[2] > 0


@pytest.mark.engine
def test_changed_and_singular_values(tiny_data: tuple[Path, Manifest], tiny_config: Callable[..., RunConfig]) -> None:
    """Breaks if the share of changed weights or the largest singular value is not the whole tensor's at every stage."""
    cases: list[tuple[str, int]] = [("fp32", 0), ("fp32", 1), ("fp32", 3), ("bf16-master", 2), ("bf16-true", 3)]
    small = {"lr": 1e-4}  # so that bfloat16 weights stay where they are
    configs = [
        tiny_config({"log": {"probe_every": 1}, "precision": p, "parallel": {"zero_stage": s}, "optim": small})
        for p, s in cases
    ]
    for (precision, stage), run in zip(cases, run_ranks(2, two_steps, configs, tiny_data[1])[0], strict=True):
        row, dtypes, where = run["row"], TABLE[precision], f"{precision}, stage {stage}"
        pairs = {name: (after, run["before"][name]) for name, after in run["after"].items()}
        shares = {name: (a != b).double().mean().item() for name, (a, b) in pairs.items()}
        whole = sum(share * pairs[name][0].numel() for name, share in shares.items())
        size = sum(a.numel() for a, _ in pairs.values())
        assert row["probe/changed"] == pytest.approx(whole / size), where
        assert ("probe/changed_weights" in row) == (dtypes.weights != dtypes.masters), where
        for name, (after, before) in pairs.items():
            assert row[f"probe/changed/{name}"] == pytest.approx(shares[name]), (where, name)
            if dtypes.weights != dtypes.masters:
                share = (after.bfloat16() != before.bfloat16()).double().mean().item()
                assert row[f"probe/changed_weights/{name}"] == pytest.approx(share), (where, name)
            key = f"probe/spectral_norm/{name}"
            assert (key in row) == (after.dim() > 1)
            if after.dim() > 1:
                assert row[key] == pytest.approx(torch.linalg.matrix_norm(after.double(), 2).item(), rel=1e-3), where
        assert row["probe/spectral_norm/kind:mlp.fc"] == max(
            row[f"probe/spectral_norm/blocks.{i}.mlp.fc.weight"] for i in (0, 1)
        )
        key = "changed_weights" if precision == "bf16-master" else "changed"
        assert precision == "fp32" or row[f"probe/{key}/{ONE_MATRIX}"] < 0.5, "the case shows nothing"


def cut(tensors: dict[str, torch.Tensor], places: list[int]) -> Any:
    """Fragments of one rank that has each tensor in several pieces, cut at these elements."""
    local = []
    for name, tensor in tensors.items():
        flat, ends = tensor.reshape(-1), [*(p for p in places if p < tensor.numel()), tensor.numel()]
        for start, end in zip([0, *ends], ends, strict=False):
            local.append(Fragment(name, tensor.shape, start, flat[start:end], flat, start, flat.clone))
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    return SimpleNamespace(local=local, shapes=shapes, sharded=False, ds=SimpleNamespace(device=torch.device("cpu")))


def test_singular_values_of_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if a piece that begins or ends within a row is multiplied wrongly, or an odd matrix breaks the iteration."""
    monkeypatch.setattr(engine.spectral, "AT_ONCE", 150)
    torch.manual_seed(0)
    a, b = torch.randn(70, 1), torch.randn(1, 40)
    tensors = {
        "tall": torch.randn(60, 37),
        "wide": torch.randn(11, 90).bfloat16(),
        "conv": torch.randn(8, 3, 3, 3),
        "rank one": a @ b,
        "nothing": torch.zeros(20, 30),
        "number": torch.full((1, 1), -3.0),
        "far": 1e-18 * torch.randn(30, 30),
        "vector": torch.ones(50),
    }
    exact = {n: torch.linalg.matrix_norm(t.double().flatten(1), 2).item() for n, t in tensors.items() if t.dim() > 1}
    for places in ([], [1, 36, 37, 38, 300, 555], [2, 3, 700]):
        assert spectral_norms(cut(tensors, places)) == pytest.approx(exact, rel=1e-4)
    state = torch.get_rng_state()
    large = {"large": torch.randn(300, 600, generator=torch.Generator().manual_seed(1))}  # no value stands out
    found = spectral_norms(cut(large, []))["large"] / torch.linalg.matrix_norm(large["large"].double(), 2).item()
    assert 0.99 < found < 1 + 1e-6
    assert torch.equal(torch.get_rng_state(), state), "a probe draws nothing"
    assert math.isnan(spectral_norms(cut({"broken": torch.full((4, 4), math.nan)}, []))["broken"])


def test_largest_score(monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if a score that nobody may see counts, a head of keys is read by the wrong queries, or a slice is left out."""
    torch.manual_seed(0)
    q, k = (
        torch.randn(40, 4, 10, 8),
        torch.randn(40, 2, 10, 8),
    )  # so many that in some the largest lies just out of sight
    earlier = torch.ones(10, 10, dtype=torch.bool).tril()
    apart = earlier & (torch.arange(10)[:, None] // 4 == torch.arange(10) // 4)
    scores = q @ k.repeat_interleave(2, 1).transpose(-2, -1) / math.sqrt(8)
    for at_once in (1, 120, 1 << 20):
        monkeypatch.setattr(engine.attention_logits, "AT_ONCE", at_once)
        for mask, seen in ((None, earlier), (apart.expand(40, 1, 10, 10), apart)):
            expected = scores.masked_fill(~seen, -math.inf)
            for b in range(40):
                one = slice(b, b + 1)
                found = largest_score(q[one], k[one], None if mask is None else mask[one])
                assert found.item() == pytest.approx(expected[b].max().item(), rel=1e-6)
    assert largest_score(q[:0], k[:0], None).item() == -math.inf


@pytest.mark.engine
def test_attention_logits(tiny_data: tuple[Path, Manifest], tiny_config: Callable[..., RunConfig]) -> None:
    """Breaks if the largest logit of a layer is not that of its own queries and keys over all ranks' windows."""
    apart = {"data": {"cross_document_attention": False}}
    cases: list[dict[str, Any]] = [
        {},
        apart,
        {"model": SHAPE, "parallel": {"zero_stage": 3}},
        {"model": {**SHAPE, "attention": "stable"}, "parallel": {"zero_stage": 2}, **apart},
        {"model": {"attention": "math"}, "parallel": {"zero_stage": 1}},
        {"parallel": {"compile": True}},
        {"parallel": {"compile": True, "zero_stage": 3}, "model": SHAPE},
    ]
    configs = [tiny_config({"log": {"probe_every": 1}, "model": {"init_std": 0.3}}, case) for case in cases]
    for case, config, run in zip(cases, configs, run_ranks(2, two_steps, configs, tiny_data[1])[0], strict=True):
        manifest = tiny_data[1]
        model = GPT(config.gpt, separate_at=None if config.data.cross_document_attention else manifest.eot)
        model.load_state_dict({name: tensor.float() for name, tensor in run["after"].items()})
        windows = torch.from_numpy(probe_batch(config.data.path, manifest, config, 4, 0, 1).inputs)
        expected: dict[str, float] = {}

        def note(name: str, expected: dict[str, float], layer: Attention, arguments: tuple[Any, ...]) -> None:
            x, mask, rotation = arguments
            q, k, _ = layer.queries_keys_values(x, rotation)
            scores = q.double() @ k.double().repeat_interleave(q.shape[1] // k.shape[1], 1).transpose(-2, -1)
            seen = torch.ones(scores.shape[-2:], dtype=torch.bool).tril() if mask is None else mask
            expected[name] = scores.masked_fill(~seen, -math.inf).max().item() / math.sqrt(q.shape[-1])

        for name, layer in model.named_modules():
            if isinstance(layer, Attention):
                layer.register_forward_pre_hook(partial(note, name, expected))
        with torch.no_grad():
            model.hidden(windows)
        row = run["row"]
        assert {key for key in row if key.startswith("probe/attention_logit/")} == {
            f"probe/attention_logit/blocks.{i}.attn" for i in (0, 1)
        }
        for name, value in expected.items():
            assert row[f"probe/attention_logit/{name}"] == pytest.approx(value, rel=1e-4), (case, name)
        assert row["probe/attention_logit"] == pytest.approx(max(expected.values()), rel=1e-4), case


def test_filling_does_not_count(tiny_config: Callable[..., RunConfig]) -> None:
    """Breaks if a row behind the probe's windows sets the largest logit, or a layer stays changed after it was looked at."""
    config = tiny_config().gpt
    torch.manual_seed(0)
    model = GPT(config)
    inputs = torch.randint(0, config.vocab_size, (4, config.seq_len))
    found = []
    for windows in (4, 2, 1):
        logits = AttentionLogits(model, windows)
        with logits.seen(), torch.no_grad():
            model.hidden(inputs)
        found.append([one.item() for one in logits.largest.values()])
    assert all(a >= b >= c for a, b, c in zip(*found, strict=True))
    assert found[0] != found[2]
    assert not any("attend" in vars(module) for module in model.modules())


def test_what_is_held_is_counted(tiny_config: Callable[..., RunConfig]) -> None:
    """Breaks if a rule that moves weights before the step is not known to the plan, whose probe holds them twice."""
    assert {name for name, module in RULES.items() if Rule(module).moves_first} == set(cost.MOVES_FIRST)

    def held(rule: str, probed: int | None) -> int:
        optim = {"decay_rule": rule, "weight_decay": 0.0}
        return cost.passing_bytes(tiny_config({"optim": optim, "log": {"probe_every": probed}}), 1)

    config = tiny_config()
    copy, embedding = 4 * cost.n_parameters(config.model), 4 * 512 * 32
    assert held("cautious", None) == 4 * embedding
    assert held("cautious", 1) == copy + max(copy, 4 * embedding)
    assert held("hyperball", 1) == 3 * copy
