"""One run folder, one writer (record/lock.py): what writers on other hosts see of each other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from record import lock
from tests.processes import ROOT


def test_writer_on_another_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if a live writer on another host is not seen, a dead one blocks the folder, or the message names nobody."""
    monkeypatch.setattr(lock, "BEAT_S", 0.1)
    monkeypatch.setattr(lock, "WATCH_S", 0.6)
    note = tmp_path / ".writer.json"
    elsewhere = json.dumps({"host": "elsewhere", "pid": 4711, "job": "99", "since": "2026-01-01T00:00:00+00:00"})
    note.write_text(elsewhere)
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(0.1):
            os.utime(note)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(
            ValueError, match=r"process 4711 on elsewhere \(since 2026-01-01T00:00:00\+00:00, SLURM job 99\) is"
        ):
            lock.hold(tmp_path).__enter__()
    finally:
        ended.set()
        thread.join()
    assert note.read_text() == elsewhere
    with lock.hold(tmp_path):
        mine = json.loads(note.read_text())
        assert mine["pid"] == os.getpid()
        first = note.stat().st_mtime_ns
        ended.clear()
        ended.wait(0.4)
        assert note.stat().st_mtime_ns > first, "no heartbeat"
        with pytest.raises(ValueError, match=rf"process {os.getpid()} on .* is writing"):
            lock.hold(tmp_path).__enter__()
    assert not note.exists()


def test_a_writer_that_was_taken_over_ends(tmp_path: Path) -> None:
    """Breaks if a writer that was suspended for long goes on to write a folder that another host has taken over."""
    code = f"""
import json, logging, time
from pathlib import Path
from record import lock
logging.basicConfig()
lock.BEAT_S = 0.1
with lock.hold(Path({str(tmp_path)!r})):
    Path({str(tmp_path / ".writer.json")!r}).write_text(json.dumps({{"host": "elsewhere", "pid": 4711}}))
    time.sleep(20)
print("went on")
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "process 4711 on elsewhere (since" in ended.stderr
    assert f"has taken over {tmp_path}: this process ends" in ended.stderr
