"""The output folder of a preparation: whole, or not there; one writer; what is finished survives a kill."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from configs.errors import InputError
from data.manifest import FILE, Manifest, read_manifest

OUTCOMES = ("notes", "skipped")  # of a manifest's source: what reading it brought, not what was asked for


def prepared_already(out: Path, request: dict[str, Any], outcomes: tuple[str, ...] = ()) -> Manifest | None:
    """The manifest in `out` if it holds what is requested; None if `out` is free. InputError if it holds anything else.

    `outcomes` are options in the manifest that nobody requested: what the preparation decided.
    """
    done = read_manifest(out)
    if done is not None and _comparable(done.source, done.options, outcomes) == _comparable(
        request["source"], request["options"], ()
    ):
        print(f"{out} is prepared already: {done.train.tokens:,} training tokens")
        return done
    if out.exists() and any(out.iterdir()):
        what = "data prepared otherwise" if done else "no prepared data"
        raise InputError(f"{out} holds something else ({what}); choose another --out")
    return None


def _comparable(source: dict[str, Any], options: dict[str, Any], outcomes: tuple[str, ...]) -> list[dict[str, Any]]:
    """Source and options without what only the preparation could know: two of them are equal for the same request."""
    return [
        {key: value for key, value in source.items() if key not in OUTCOMES},
        {key: value for key, value in options.items() if key not in outcomes},
    ]


@contextmanager
def building(out: Path, request: dict[str, Any], goes_on: bool = True) -> Iterator[Path]:
    """The folder `out`.preparing, locked, to build in; renamed to `out` at the end.

    What a killed preparation of the same `request` left in it is kept, to go on from. An InputError (bad input) removes
    everything; an OSError (a full disk) keeps it and says so. Without `goes_on` nothing is kept: the next one starts over.
    """
    work = out.with_name(out.name + ".preparing")
    work.parent.mkdir(parents=True, exist_ok=True)
    guard = FileLock(work.with_name(work.name + ".lock"), timeout=0)
    try:
        guard.acquire()
    except Timeout:
        raise InputError(f"another preparation is writing {out}; wait for it or choose another --out") from None
    try:
        # Beside the unfinished work stands what it is for: another request must not go on from it.
        started = work / "asked.json"
        if not goes_on and work.exists():
            shutil.rmtree(work)
        if started.exists() and json.loads(started.read_text()) != request:
            raise InputError(f"{work} holds an unfinished preparation with other options; repeat those, or delete it")
        try:
            work.mkdir(exist_ok=True)
            replace_file(started, json.dumps(request).encode())
            yield work
            assert (work / FILE).exists()
            # All is written: from here on `out` is there, whole. An empty folder in its place gives way.
            started.unlink()
            if out.exists():
                out.rmdir()
            os.replace(work, out)
            sync_folder(out.parent)
        except InputError:
            shutil.rmtree(work)
            raise
        except OSError as error:
            kept = "finished shards are kept: make room" if goes_on else "nothing is kept: mend that"
            if not goes_on:
                shutil.rmtree(work, ignore_errors=True)
            reason = f"{error.strerror or error} while writing {work}; {kept}, repeat the command"
            raise OSError(reason) from error
    finally:
        Path(guard.lock_file).unlink(missing_ok=True)
        guard.release()


def check_disk(folder: Path, needed: int) -> None:
    """InputError if the file system of `folder` has fewer than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        gib = 1 << 30
        raise InputError(
            f"about {needed / gib:.2f} GiB are needed in {folder}, {free / gib:.2f} GiB are free; make room or move --out"
        )


def sync_folder(path: Path) -> None:
    """Make renames inside a folder durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_file(path: Path, data: bytes) -> None:
    """The file with these bytes, or as it was: temporary name, fsync, rename."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
