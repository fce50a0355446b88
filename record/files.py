"""Files that are either the old one or the new one, never half of each; and files of others, read with care."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from configs.errors import InputError


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file: temporary name, fsync, rename."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def read_regular(path: Path) -> bytes:
    """The content of a regular file. FileNotFoundError where there is none, InputError for anything else than a file.

    A device would be read without end, and a named pipe waited for. A symbolic link is followed: folders are laid over
    several disks with them, and the reader gets no more than what the user may read anyway. Its target must be a file too.
    """
    mode = path.stat().st_mode  # before it is opened: to open a named pipe would already wait
    if not stat.S_ISREG(mode):
        raise InputError(f"{path} is {KINDS.get(stat.S_IFMT(mode), 'no regular file')}, not a file")
    return path.read_bytes()


KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def plain_name(name: str) -> str:
    """`name`, if it names a file in the folder itself. InputError for a path that leads elsewhere, absolute or by `..`."""
    if name in ("", ".", "..") or set(name) & set("/\\\0"):
        raise InputError(f"{name[:80]!r} is not the plain name of a file in its folder")
    return name


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object. FileNotFoundError where there is none, InputError that names the file for anything else."""
    try:
        value = parse_json(read_regular(path).decode("utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({error})") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} cannot be read (it holds no JSON object)")
    return value


def parse_json(text: str) -> Any:
    """A JSON value that can be written again and printed: no NaN, no half of a surrogate pair. ValueError or RecursionError."""
    value = json.loads(text, parse_constant=_no_number)
    if "\\u" in text:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    return value


def _no_number(text: str) -> None:
    raise InputError(f"{text} is no number of JSON")


def read_dict(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none, or none that can be read: for notes that one can do without."""
    try:
        return read_object(path)
    except (OSError, ValueError):
        return {}


def sync_folder(path: Path) -> None:
    """Make renames inside a folder durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
