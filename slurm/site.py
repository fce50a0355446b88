"""What a cluster is like: account, partition, devices, modules or container. One small file per site."""

from __future__ import annotations

from pathlib import Path

from pydantic import model_validator

from configs.errors import InputError
from configs.load import read_json, validate_as
from configs.schema import Section, setting

DEFAULT = Path(__file__).with_name("site.json")


class Site(Section):
    """Everything a site may ask of a job. What is null is left to the cluster's defaults."""

    account: str | None = setting(None, "account to charge")
    partition: str | None = setting(None, "partition")
    qos: str | None = setting(None, "quality of service")
    time: str | None = setting(None, "time limit of one attempt: minutes, H:M:S or D-H:M:S", pattern=r"^[0-9:-]+$")
    nodes: int = setting(1, "nodes of a run", ge=1)
    ranks_per_node: int = setting(1, "ranks, that is tasks, on each node: one per device", ge=1)
    gpus_per_node: int = setting(0, "GPUs on each node; 0 trains on CPUs", ge=0)
    cpus_per_rank: int | None = setting(None, "CPU cores, and threads, of a rank", ge=1)
    memory: str | None = setting(None, "memory of a node, as sbatch's --mem", pattern=r"^[0-9]+[KMGT]?$")
    signal_s: int = setting(180, "seconds before the time limit at which a run saves and is requeued", ge=10)
    limit: int | None = setting(None, "tasks of an array that run at once, where the sweep names no limit", ge=1)
    modules: tuple[str, ...] = setting((), "`module load` each of these first")
    container: tuple[str, ...] = setting((), "words before the training command, e.g. apptainer exec --nv IMAGE")
    python: str | None = setting(None, "the Python of the job; null: the one that submits")
    options: tuple[str, ...] = setting((), "further options of sbatch, one word each")

    @model_validator(mode="after")
    def _one_rank_per_device(self) -> Site:
        if self.gpus_per_node not in (0, self.ranks_per_node):
            raise InputError(
                f"ranks_per_node {self.ranks_per_node} and gpus_per_node {self.gpus_per_node}: one rank per GPU, so set "
                "them equal (or gpus_per_node 0 for CPUs)"
            )
        return self

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node


def load_site(path: Path | None) -> tuple[Site, str]:
    """The site of a file, of slurm/site.json, or the cluster's defaults; and where it came from. InputError lists problems."""
    if path is None and not DEFAULT.exists():
        return Site(), "the cluster's defaults (no slurm/site.json; slurm/site.example.json shows one)"
    path = path or DEFAULT
    return validate_as(Site, read_json(path), str(path)), str(path)
