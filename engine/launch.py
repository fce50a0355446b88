"""Ranks, threads, device and process group, from a launcher's environment or for a single process."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class World:
    rank: int
    ranks: int
    device: torch.device


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def start_world(run: str, timeout_s: float, threads: int | None, deterministic: bool = False) -> World:
    """Join the process group and choose device and CPU threads.

    `run` names the run: the group's keys carry it, so that ranks of another run that collide on a port cannot join.
    With `deterministic` torch uses only algorithms that give the same bits each time (parallel.deterministic).
    Raises ValueError if the rendezvous port is taken.
    """
    if deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # read when CUDA starts
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    local_ranks = int(
        os.environ.get("LOCAL_SIZE") or os.environ.get("LOCAL_WORLD_SIZE") or ranks
    )  # DeepSpeed's, torchrun's
    os.environ["LOCAL_RANK"] = str(local_rank)  # DeepSpeed insists on it
    if torch.cuda.is_available():
        index = 0 if torch.cuda.device_count() == 1 else local_rank  # a cluster may show each rank its own device only
        torch.cuda.set_device(index)
        device = torch.device("cuda", index)
    else:
        device = torch.device("cpu")
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns that it found none
    torch.set_num_threads(threads or max(1, len(os.sched_getaffinity(0)) // local_ranks))
    timeout = timedelta(seconds=timeout_s)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=dist.PrefixStore(run, _store(rank, ranks, timeout)),
        rank=rank,
        world_size=ranks,
        timeout=timeout,
    )
    return World(rank, ranks, device)


def _store(rank: int, ranks: int, timeout: timedelta) -> dist.Store:
    if ranks == 1:
        return dist.HashStore()
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        return dist.TCPStore(host, port, ranks, is_master=rank == 0, timeout=timeout, wait_for_workers=False)
    except (RuntimeError, dist.DistError) as error:
        raise ValueError(
            f"port {port} on {host} cannot be used for the rendezvous ({str(error).splitlines()[0]}); "
            "another run may hold it: choose one with `deepspeed --master_port PORT`"
        ) from None
