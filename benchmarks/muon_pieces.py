"""What Muon's whole matrices cost at ZeRO stages 1–3 (engine/matrices.py), beside torch's Muon on every rank, as stage 0 has it.

    python -m benchmarks.muon_pieces

`counted`: FLOPs of Newton–Schulz of the busiest rank, over those of its part of an update; and bytes, of all ranks together: what
Muon sends in an update over what ZeRO sends of float32 gradients and weights. `measured`: seconds of all the matrices' steps by
the slowest rank, the cases in turn in every round, over an update of the plain model at the configuration's batch, its tokens
shared by the ranks, extrapolated from few tokens. The ranks are processes of this machine, over gloo, with a thread each; matrices
are random numbers, cut as a stage cuts them. A CPU may be slow at the bfloat16 products that Newton–Schulz is made of.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from benchmarks.bare import update_seconds
from benchmarks.launched import free_port
from benchmarks.markdown import read_result, table
from benchmarks.outcome import RESULTS, write_result
from configs.cost import flops_per_token, n_parameters
from configs.load import load_config
from configs.noise_steps import ROUNDS
from configs.schema import RunConfig
from configs.tensors import is_hidden_matrix, tensor_table
from engine.agree import over_ranks
from engine.launch import start_world
from engine.matrices import Matrices, homes

# The last is counted alone.
MODELS = ("configs/quickstart.json", "configs/gpt_micro.json", "configs/gpt124m_wd0.1.json")
MOMENTUM = 0.95
RESULT = RESULTS / "muon_pieces.json"
CASES = {"whole": "torch's Muon on every rank (stage 0)", "flat": "stages 1–2", "each": "stage 3"}


@dataclass(frozen=True)
class Piece:
    name: str
    start: int
    weight: Tensor


class Cut:
    """Hidden matrices as a stage cuts them, in place of engine/fragments.py: `flat` cuts one row of all of them in equal parts,
    `each` cuts every matrix."""

    def __init__(self, shapes: dict[str, torch.Size], how: str, rank: int, ranks: int) -> None:
        self.shapes, self.ds = shapes, SimpleNamespace(device=torch.device("cpu"))
        self.groups_by_name = {name: {"family": "muon", "momentum": MOMENTUM} for name in shapes}
        self.owners = owners_of(shapes, how, ranks)
        self.local = [
            Piece(n, s, torch.zeros(size)) for n, own in self.owners.items() for r, s, size in own if r == rank
        ]
        self.moments = {piece.name: torch.randn_like(piece.weight) for piece in self.local}
        self.random = [torch.randn_like(piece.weight) for piece in self.local]
        self.matrices = Matrices(self)  # type: ignore[arg-type]

    def gradients(self) -> list[Tensor]:
        return self.random

    def view(self, piece: Piece, kind: str) -> Tensor:
        return self.moments[piece.name]

    def step(self) -> None:
        self.matrices.gradients_to_steps()
        for piece, gradient in zip(self.local, self.random, strict=True):
            piece.weight.mul_(0.999).add_(gradient, alpha=-1e-3)


def owners_of(shapes: dict[str, torch.Size], how: str, ranks: int) -> dict[str, list[tuple[int, int, int]]]:
    """(rank, start, length) of the pieces of every matrix."""
    owners: dict[str, list[tuple[int, int, int]]] = {}
    begun, share = 0, -(-sum(shape.numel() for shape in shapes.values()) // ranks)
    for name, shape in shapes.items():
        size = shape.numel()
        part, offset = (share, begun) if how == "flat" else (-(-size // ranks), 0)
        ends = [(r, max(r * part - offset, 0), min((r + 1) * part - offset, size)) for r in range(ranks)]
        owners[name] = [(r, first, last - first) for r, first, last in ends if first < last]
        begun += size
    return owners


def hidden(config: RunConfig) -> dict[str, torch.Size]:
    return {n: torch.Size(t.shape) for n, t in tensor_table(config.model).items() if is_hidden_matrix(t)}


def products(shape: torch.Size) -> int:
    """FLOPs of Newton–Schulz of a matrix: its Gram matrix, that squared, and that by the matrix, in every round."""
    short, long = sorted(shape)
    return ROUNDS * 2 * (2 * short * short * long + short**3)


def counted(path: str, ranks: int) -> dict[str, Any]:
    config, _ = load_config(path, [])
    shapes, parameters = hidden(config), n_parameters(config.model)
    update = flops_per_token(config.model) * config.batch.tokens_per_step / ranks
    found: dict[str, Any] = {
        "flops_over_update": {"whole": sum(map(products, shapes.values())) / update},
        "sent_over_zero": {},
    }
    # gradients reduced and weights gathered; at stage 3 weights are gathered for both passes
    for how, passes in (("flat", 2), ("each", 3)):
        owners = owners_of(shapes, how, ranks)
        at = homes(owners, shapes)
        busiest = max(sum(products(shapes[n]) for n in at if at[n] == rank) for rank in range(ranks))
        # a piece that is not at home goes there and comes back, in bfloat16
        sent = sum(4 * size for name, own in owners.items() for rank, _, size in own if rank != at[name])
        found["flops_over_update"][how] = busiest / update
        found["sent_over_zero"][how] = sent / (passes * 4 * parameters * (ranks - 1))
    return found


def whole(shapes: dict[str, torch.Size]) -> Callable[[], Any]:
    weights = [nn.Parameter(torch.zeros(shape)) for shape in shapes.values()]
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    return torch.optim.Muon(weights, lr=1e-3, momentum=MOMENTUM, adjust_lr_fn="match_rms_adamw").step


def slowest(act: Callable[[], Any]) -> float:
    """Seconds that the slowest rank takes."""
    dist.barrier()
    began = time.perf_counter()
    act()
    seconds = torch.tensor(time.perf_counter() - began)
    over_ranks(seconds, dist.ReduceOp.MAX)
    return seconds.item()


def measured(path: str, tokens: int, rounds: int) -> dict[str, Any]:
    """Of one model, in every rank; the same on all."""
    world = start_world("muon_pieces", 600, 1)
    config, _ = load_config(path, [])
    shapes = hidden(config)
    cuts = {how: Cut(shapes, how, world.rank, world.ranks) for how in ("flat", "each")}
    acts = {"whole": whole(shapes), **{how: cut.step for how, cut in cuts.items()}}
    seconds: dict[str, list[float]] = {case: [] for case in acts}
    for turn in range(rounds + 1):
        for case, act in acts.items():
            took = slowest(act)
            if turn:  # the first is slower
                seconds[case].append(took)
    median = {case: statistics.median(times) for case, times in seconds.items()}
    # The tokens of the configuration's batch that one rank reads, from fewer: their number is all that an update's time follows.
    few, _ = load_config(path, [f"batch.tokens_per_step={tokens}"])
    times: list[float] = []
    slowest(partial(_bare, few, world.device, times))
    update = statistics.median(times[1:]) * config.batch.tokens_per_step / world.ranks / tokens
    return {
        "update_seconds": update,
        "seconds": seconds,
        "share_of_update": {case: value / update for case, value in median.items()},
        "over_whole": {case: value / median["whole"] for case, value in median.items()},
    }


def _bare(config: RunConfig, device: torch.device, times: list[float]) -> None:
    times += update_seconds(config, 0, device, max(1, min(config.examples_per_step, 8)), 4)


def _rank(rank: int, ranks: int, port: int, results: Any, arguments: tuple[Any, ...]) -> None:
    places = {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port}
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "CUDA_VISIBLE_DEVICES": ""} | {k: str(v) for k, v in places.items()})
    found = measured(*arguments)
    if rank == 0:
        results.put(json.dumps(found))


def in_ranks(ranks: int, arguments: tuple[Any, ...]) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    results, port = context.Queue(), free_port()
    processes = [context.Process(target=_rank, args=(rank, ranks, port, results, arguments)) for rank in range(ranks)]
    for process in processes:
        process.start()
    found: dict[str, Any] = json.loads(results.get(timeout=400))
    for process in processes:
        process.join(30)
    return found


def pieces_of_matrices() -> str:
    """The table of docs/rules.md."""
    result, rows = read_result(RESULT.name), []
    for path, found in result["counted"].items():
        times = result["measured"].get(path, {}).get("over_whole", {})
        for case, words in CASES.items():
            flops, sent = found["flops_over_update"][case], found["sent_over_zero"].get(case, 0)
            rows.append(
                (f"`{Path(path).stem}`", words, f"{flops:.3f}", f"{sent:.3f}", f"{times[case]:.2f}" if times else "–")
            )
    return table(("model", "Muon", "FLOPs, of an update's", "bytes, of ZeRO's", "seconds, of stage 0's"), rows)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.muon_pieces", description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS[:-1]), help="that are measured")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument(
        "--tokens", type=int, default=1024, help="tokens of the updates that an update's time is taken from"
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    models = {path: in_ranks(args.ranks, (path, args.tokens, args.rounds)) for path in args.models}
    for path, found in models.items():
        for case, words in CASES.items():
            print(f"{path}: {words}: {100 * found['share_of_update'][case]:.3g} % of an update")
    counts = {path: counted(path, args.ranks) for path in MODELS}
    result = {"counted": counts, "measured": models, "ranks": args.ranks, "load_average": os.getloadavg()[0]}
    write_result(args.out, "muon_pieces", result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
