"""One run folder, one writer: a kernel lock on one host, a heartbeat between hosts.

A kernel lock (flock) ends with its process, but some shared file systems keep it to one host. So the writer also
leaves its host and process in `.writer.json` and touches that file as it lives. Who finds another host's file
watches it: if it is touched, the folder is held; if not, its writer has died, and the folder is taken over.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from configs.errors import InputError
from record.environment import slurm_job
from record.files import read_dict, write_json

BEAT_S = 5.0
WATCH_S = 4 * BEAT_S
NOTE = ".writer.json"
LOCK = ".lock"
logger = logging.getLogger(__name__)


@contextmanager
def hold(
    folder: Path, act: str = "writing", instead: str = "wait for it, stop it, or give another --run-dir"
) -> Iterator[None]:
    """Be the only writer of `folder`, which is created. InputError names who is, with what it does and what to do instead."""
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / NOTE
    try:
        lock = FileLock(folder / LOCK, timeout=0).acquire()
    except Timeout:
        raise InputError(f"{holder(folder)} is {act} {folder}; {instead}") from None
    with lock:
        if _lives_elsewhere(note):
            raise InputError(f"{holder(folder)} is {act} {folder}; {instead}")
        row: dict[str, object] = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "job": slurm_job(),
        }
        row |= {"since": datetime.now(UTC).isoformat(timespec="seconds"), "token": os.urandom(8).hex()}
        write_json(note, row)
        ended = threading.Event()
        threading.Thread(target=_beat, args=(note, row, ended), name="heartbeat", daemon=True).start()
        try:
            yield
        finally:
            ended.set()
            if read_dict(note) == row:
                note.unlink(missing_ok=True)


def _beat(note: Path, row: dict[str, object], ended: threading.Event) -> None:
    while not ended.wait(BEAT_S):
        try:
            if (writer := read_dict(note)) and writer != row:  # we were suspended for long, and another host took over
                logger.error("%s has taken over %s: this process ends", holder(note.parent), note.parent)
                os._exit(1)
            os.utime(note)
        except OSError as error:
            logger.warning("the heartbeat %s cannot be written: %s", note, error)


def _lives_elsewhere(note: Path) -> bool:
    """Whether a writer on another host is alive: its file's time moves while we watch."""
    if not note.exists() or read_dict(note).get("host") == socket.gethostname():
        return False  # this host's kernel lock has already decided
    logger.info(
        "%s names a writer on another host (%s): watching for %g s whether it lives", note, holder(note.parent), WATCH_S
    )
    first, deadline = note.stat().st_mtime_ns, time.monotonic() + WATCH_S
    while time.monotonic() < deadline:
        time.sleep(BEAT_S / 10)
        try:
            if note.stat().st_mtime_ns != first:
                return True
        except FileNotFoundError:
            return False
    logger.info("it does not: the folder is taken over")
    return False


def is_running(pid: object) -> bool:
    """Whether this machine has a process of that number, as a note may name it."""
    if type(pid) is not int or pid < 1:
        return False
    try:
        os.kill(pid, 0)  # sends nothing: it only asks whether a signal could be sent
    except PermissionError:  # another user's process
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def holder(folder: Path) -> str:
    """Who writes a folder, in words."""
    row = read_dict(folder / NOTE)
    job = f", SLURM job {row['job']}" if row.get("job") else ""
    return (
        f"process {row['pid']} on {row['host']} (since {row.get('since')}{job})" if "pid" in row else "another process"
    )
