"""A real SLURM cluster of two nodes on this machine: munge, one controller, two slurmd. Needs root and `make system-deps`."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.processes import wait
from tests.ranks import free_port

CORES = os.sched_getaffinity(0)  # read at import, before a worker is bound to one of them
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool.%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
ReturnToService=2
JobRequeue=1
MaxArraySize={max_array_size}
KillWait=15
SlurmdTimeout=20
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 State=UNKNOWN
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=low Nodes=n1,n2 PriorityTier=1 GraceTime=30 MaxTime=INFINITE State=UP
PartitionName=high Nodes=n1,n2 PriorityTier=9 PreemptMode=OFF MaxTime=INFINITE State=UP
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP LLN=YES
"""


def why_not() -> str:
    """Why no cluster can be started here; empty if one can."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"no SLURM here ({', '.join(missing)} not found): `make system-deps` installs it"
    return "" if os.geteuid() == 0 else "a cluster of our own needs root"


@dataclass
class Cluster:
    root: Path
    env: dict[str, str]
    daemons: dict[str, subprocess.Popen[bytes]]

    def ask(self, *command: str) -> str:
        return subprocess.run(
            command, env=self.env, capture_output=True, text=True, check=True, timeout=60
        ).stdout.strip()

    def start(self, name: str) -> None:
        """`n1` or `n2`: that node's slurmd."""
        self.daemons[name] = _daemon(
            ["slurmd", "-D", "-N", name, "-f", str(self.root / "slurm.conf")], self.env, self.root
        )

    def jobs(self, job: str) -> list[str]:
        """States of a job array's tasks that SLURM still has."""
        lines = self.ask("squeue", "--noheader", "--array", "--states=all", "--format=%F %K %T").splitlines()
        return [line.split()[2] for line in lines if line.split()[0] == job]

    def active(self, job: str) -> list[str]:
        ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
        return [state for state in self.jobs(job) if state not in ended]


@contextmanager
def cluster(root: Path, max_array_size: int = 1001) -> Iterator[Cluster]:
    """Start it, wait until both nodes are idle; stop everything at the end. SLURM's own default is an array of 1,001."""
    host = socket.gethostname().partition(".")[0]
    (root / "state").mkdir(parents=True)
    ports = [free_port() for _ in range(3)]
    (root / "slurm.conf").write_text(CONF.format(host=host, root=root, ports=ports, max_array_size=max_array_size))
    (root / "munge.key").write_bytes(os.urandom(128))
    (root / "munge.key").chmod(0o400)
    root.chmod(0o755)
    env = {**os.environ, "SLURM_CONF": str(root / "slurm.conf")}
    munged = ["munged", "--foreground", "--force", f"--socket={root}/munge.socket", f"--key-file={root}/munge.key"]
    munged += [f"--pid-file={root}/munge.pid", f"--log-file={root}/munge.log", f"--seed-file={root}/munge.seed"]
    found = Cluster(root, env, {"munged": _daemon(munged, env, root)})
    try:
        wait(lambda: (root / "munge.socket").exists(), timeout_s=20)
        found.daemons["slurmctld"] = _daemon(["slurmctld", "-D", "-c", "-f", str(root / "slurm.conf")], env, root)
        found.start("n1")
        found.start("n2")
        wait(lambda: _idle(found), timeout_s=60)
        yield found
    finally:
        with suppress(subprocess.SubprocessError):
            found.ask("scancel", "--user=root")
            wait(lambda: not found.ask("squeue", "--noheader"), timeout_s=60)
        for name in ("n1", "n2", "slurmctld", "munged"):
            if (process := found.daemons.get(name)) is not None:
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(15)
                process.kill()


def _idle(found: Cluster) -> bool:
    with suppress(subprocess.CalledProcessError):
        return found.ask("sinfo", "--noheader", "--Node", "--partition=main", "--format=%T").split() == ["idle", "idle"]
    return False


def _daemon(command: list[str], env: dict[str, str], root: Path) -> subprocess.Popen[bytes]:
    with open(root / "daemons.log", "ab") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    # Its jobs take whichever core has time: the core of the worker that waits for them has tests of another worker.
    os.sched_setaffinity(process.pid, CORES)
    return process
