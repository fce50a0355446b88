"""Whether the files of prepared data hold what their manifest says: hashed before a run, or beside it by a thread."""

from __future__ import annotations

import hashlib
import os
import sys
import threading
from contextlib import suppress
from pathlib import Path

from configs.errors import InputError
from data.image_manifest import ImageManifest, ImageSplit
from data.manifest import Manifest, Split
from data.shards import sha256_of

BLOCK = 4 << 20  # bytes: large enough that the hash seldom asks for the interpreter, small enough to stop at once
STOP_S = 5.0
LEAST_URGENT = 19  # the operating system's niceness


class DamagedDataError(Exception):
    """The data of a run in progress is not what the run asked for: it ends as failed. Raised on all ranks together."""


def verify_split(folder: Path, split: Split | ImageSplit) -> None:
    """Compare every file of a split with its hash. InputError names all that are missing or differ."""
    wrong = []
    for name, expected in split.files():
        if not (folder / name).is_file():
            wrong.append(f"{folder / name} is missing")
        elif sha256_of(folder / name) != expected:
            wrong.append(f"{folder / name} differs from its hash in the manifest")
    if wrong:
        raise InputError("; ".join(wrong) + ": prepare the data again, or restore it")


class Hashing:
    """Compares every file with its hash, one after another, in a thread that gives way to everything else.

    It only reads, and ends at the first file that differs. `problem` is empty as long as nothing is wrong; whatever ends the
    thread early is in it too, so that no run believes its data compared when it was not.
    """

    def __init__(self, folder: Path, manifest: Manifest | ImageManifest) -> None:
        # The validation split first: it is small, and every loss that a run reports rests on it.
        self._files = [(folder / name, sha) for split in (manifest.val, manifest.train) for name, sha in split.files()]
        self.problem, self.hashed = "", 0  # bytes so far
        self._stopped, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="verify", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wait(self, seconds: float) -> bool:
        """Whether all files are compared, or something is wrong; waits up to `seconds` for it."""
        return self._ended.wait(seconds)

    def stop(self) -> None:
        """End within one block; a thread that a lost network holds is left behind."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(STOP_S)

    def _run(self) -> None:
        try:
            give_way()
            for path, expected in self._files:
                found = self._hash(path)
                if self._stopped.is_set():
                    return
                if found != expected:
                    self.problem = f"{path} differs from its hash in the manifest"
                    return
        except OSError as error:
            self.problem = f"the data cannot be compared with its hashes: {error}"
        except BaseException as error:  # a mistake of ours: a thread that dies of it would say nothing
            self.problem = f"comparing the data with its hashes broke: {type(error).__name__}: {error}"
        finally:
            self._ended.set()

    def _hash(self, path: Path) -> str:
        """The file's hash; of no meaning where it was stopped before the end."""
        digest, block = hashlib.sha256(), memoryview(bytearray(BLOCK))
        with open(path, "rb", buffering=0) as file:
            while not self._stopped.is_set() and (size := file.readinto(block)):
                digest.update(block[:size])
                self.hashed += size
        return digest.hexdigest()


def give_way() -> None:
    """Let this thread run where nothing else wants to. Only Linux has a niceness for each thread; elsewhere it stays as it is."""
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LEAST_URGENT)
