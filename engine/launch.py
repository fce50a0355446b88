"""Ranks, threads, device and process group, from a launcher's environment or for a single process."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from configs.errors import InputError
from record.environment import usable_cores

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class World:
    """Where this process stands among the ranks. `threads_from`: what the number of its CPU threads was taken from."""

    rank: int
    ranks: int
    device: torch.device
    threads_from: str


def device_name(device: torch.device) -> str:
    """What the record calls a device: the model of a GPU, or `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def start_world(run: str, timeout_s: float, threads: int | None, deterministic: bool = False) -> World:
    """Join the process group and choose device and CPU threads.

    `run` names the run. The group's keys carry that name, so that ranks of another run on the same port cannot join.
    With `deterministic` torch uses only algorithms that give the same bits each time (parallel.deterministic).
    `threads` is parallel.threads_per_rank. Raises InputError if the rendezvous port is taken.
    """
    # cuBLAS and torch choose their algorithms when CUDA starts, so this comes before the device is touched.
    if deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    # A process that nobody launched is one rank of one. The launchers name the ranks of this host differently:
    # LOCAL_SIZE is DeepSpeed's, LOCAL_WORLD_SIZE torchrun's.
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    local_ranks = int(os.environ.get("LOCAL_SIZE") or os.environ.get("LOCAL_WORLD_SIZE") or ranks)
    os.environ["LOCAL_RANK"] = str(local_rank)  # DeepSpeed insists on it
    # Without LOCAL_SIZE, DeepSpeed on a CPU starts numactl at every reduction of stage 3, to count devices.
    os.environ.setdefault("LOCAL_SIZE", str(local_ranks))
    if torch.cuda.is_available():
        # A cluster may show each rank its own device only, and that is then number 0.
        index = 0 if torch.cuda.device_count() == 1 else local_rank
        torch.cuda.set_device(index)
        device = torch.device("cuda", index)
    else:
        device = torch.device("cpu")
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns that it found none
    count, threads_from = cpu_threads(threads, local_ranks)
    torch.set_num_threads(count)
    logger.info("%d CPU thread(s) per rank, from %s", count, threads_from)
    if count * local_ranks > (cores := usable_cores()):
        logger.warning("%d rank(s) here with %d threads each share %d core(s): slow", local_ranks, count, cores)
    # NCCL between GPUs, gloo between CPUs. A rank that waits longer than the timeout ends with an error instead of hanging.
    timeout = timedelta(seconds=timeout_s)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=dist.PrefixStore(run, _store(rank, ranks, timeout)),
        rank=rank,
        world_size=ranks,
        timeout=timeout,
    )
    return World(rank, ranks, device, threads_from)


def cpu_threads(given: int | None, local_ranks: int) -> tuple[int, str]:
    """How many CPU threads a rank uses, and what says so: the configuration, OMP_NUM_THREADS, or the cores over the local ranks.

    The first of these that is set counts. Who shares a machine sets OMP_NUM_THREADS: two programs with a thread on every
    core slow each other many times over. Raises InputError if OMP_NUM_THREADS is no number of threads.
    """
    if given is not None:
        return given, "parallel.threads_per_rank"
    if text := os.environ.get("OMP_NUM_THREADS", "").strip():
        outermost = text.partition(",")[0].strip()  # OpenMP allows a list, one number per level of nesting
        if not outermost.isdecimal() or int(outermost) < 1:
            raise InputError(f"OMP_NUM_THREADS is {text!r}, expected a number of threads; correct it or unset it")
        return int(outermost), "OMP_NUM_THREADS"
    return max(1, usable_cores() // local_ranks), "cores over local ranks"


def _store(rank: int, ranks: int, timeout: timedelta) -> dist.Store:
    """Where the ranks find each other: a server of rank 0. InputError if its port is taken."""
    # One rank has nobody to find, and needs no port: any number of such runs fit on one host.
    if ranks == 1:
        return dist.HashStore()
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    # The other ranks are waited for in init_process_group, not here: this only takes the port, or fails to.
    try:
        return dist.TCPStore(host, port, ranks, is_master=rank == 0, timeout=timeout, wait_for_workers=False)
    except (RuntimeError, dist.DistError) as error:
        raise InputError(
            f"port {port} on {host} cannot be used for the rendezvous ({str(error).splitlines()[0]}); "
            "another run may hold it: choose one with `deepspeed --master_port PORT`"
        ) from None
