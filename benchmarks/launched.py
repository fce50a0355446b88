"""A run of train.py as its users start it: a process of its own, under the deepspeed launcher."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from record.run import RunFolder


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def launch(given: dict[str, Any], ranks: int, work: Path, environ: dict[str, str] | None = None) -> RunFolder:
    """Train a configuration on `ranks` ranks of this machine, below the new folder `work`; its run folder."""
    work.mkdir()
    run, config = RunFolder(work / "run"), work / "config.json"
    config.write_text(json.dumps(given))
    launcher = [str(Path(sys.executable).with_name("deepspeed")), "--num_accelerators", str(ranks)]
    launcher += ["--master_port", str(free_port())]
    env = os.environ | (environ or {}) | ({} if Path("/dev/nvidia0").exists() else {"DS_ACCELERATOR": "cpu"})
    command = [sys.executable, *launcher, "train.py", "--config", str(config), "--run-dir", str(run.path)]
    ended = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if (run.read_status() or {}).get("state") != "done":
        raise SystemExit(f"train.py on {ranks} rank(s) failed:\n{ended.stderr[-2000:]}")
    return run
