"""Run a function on several ranks: real processes, a real process group over gloo."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import queue
import socket
import traceback
from collections.abc import Callable
from typing import Any


def run_ranks(
    ranks: int, function: Callable[..., Any], *arguments: Any, timeout_s: float = 300, gpu: bool = False
) -> list[Any]:
    """Results of `function(*arguments)` by rank. `function` joins the group itself (engine.launch.start_world).

    Without `gpu` the ranks see no CUDA device, so that the CPU suite is the same on every machine; they are forked from a
    process that has imported what they need, which takes longer than most tests.
    """
    context: Any = multiprocessing.get_context("spawn" if gpu else "forkserver")
    multiprocessing.set_forkserver_preload(["tests.preload"])
    results: Any = context.Queue()
    port = free_port()
    processes = [
        context.Process(target=_main, args=(rank, ranks, port, gpu, results, function, arguments))
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    found: dict[int, Any] = {}
    try:
        while len(found) < ranks:
            rank, value, problem = results.get(timeout=timeout_s)
            assert not problem, f"rank {rank} failed:\n{problem}"
            found[rank] = pickle.loads(value)
    except queue.Empty:
        raise AssertionError(f"no answer within {timeout_s} s; ranks that answered: {sorted(found)}") from None
    finally:
        for process in processes:
            process.join(10 if len(found) == ranks else 0)
            if process.is_alive():
                process.kill()
    return [found[rank] for rank in range(ranks)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _main(
    rank: int,
    ranks: int,
    port: int,
    gpu: bool,
    results: Any,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(ranks),
        LOCAL_RANK=str(rank),
        LOCAL_WORLD_SIZE=str(ranks),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    if not gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    try:
        # Pickled here: a queue would pass tensors as handles that die with this process.
        results.put((rank, pickle.dumps(function(*arguments)), ""))
    except BaseException:
        results.put((rank, b"", traceback.format_exc()))
