"""Which files an --input names: files, globs, folders, and folders that the `datasets` library saved."""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from configs.errors import InputError
from data.dictionary import TEXTS
from data.documents import FEW_FILES
from data.streams import COMPRESSED, Reader

SAVED, SAVED_SPLITS = "state.json", "dataset_dict.json"  # what save_to_disk writes beside its arrow files
SUFFIXES = {"jsonl": (".jsonl", ".ndjson"), "parquet": (".parquet",), "arrow": (".arrow",), "dictd": TEXTS}
SNIFFED = 1 << 16  # bytes that tell whether a file is text
ROLES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "validation", "val", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


@dataclass
class Inputs:
    """The files to read, in order. `val` are the validation split's own, if there are any.

    `kind` is the source's kind, another one than asked where a folder says so. `notes` are sentences for the user.
    `skipped` counts files that were left out, by reason.
    """

    kind: str
    files: list[Path]
    val: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)


def find_inputs(kind: str, patterns: Sequence[str], val_patterns: Sequence[str], by_name: bool) -> Inputs:
    """The files of a command line's --input and --val-input. InputError where one matches nothing.

    `by_name`, and without --val-input: files whose names say their split (wiki.train.raw and wiki.valid.raw) are used so,
    where they came from a folder or are few text files; a test split is not read.
    """
    saved = [Path(pattern) for pattern in patterns if _is_saved(Path(pattern))]
    if saved and (len(patterns) > 1 or val_patterns):
        raise InputError(f"{saved[0]} was written by save_to_disk: give it as the only --input, without --val-input")
    if saved:
        return _saved_dataset(saved[0], by_name)
    inputs = Inputs(kind, [])
    inputs.files = _matches(kind, patterns, "--input", inputs)
    if val_patterns:
        inputs.val = _matches(kind, val_patterns, "--val-input", inputs)
        both = sorted(set(inputs.files) & set(inputs.val))
        if both:
            raise InputError(f"{both[0]} is in both --input and --val-input; training would see the validation text")
    elif by_name:
        folder = any(Path(pattern).is_dir() for pattern in patterns)
        if folder or (kind == "text" and len(inputs.files) < FEW_FILES):
            _use_named_splits(inputs, folder)
    return inputs


def _matches(kind: str, patterns: Sequence[str], option: str, inputs: Inputs) -> list[Path]:
    """The regular files that the patterns name, each once, sorted by name."""
    files: set[Path] = set()
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            matching = _in_folder(kind, path, inputs)
            if not matching:
                wanted = "text file" if kind == "text" else f"file named *{' or *'.join(SUFFIXES[kind])}"
                raise InputError(f"{option} {pattern!r} is a folder that holds no {wanted}")
            inputs.notes.append(f"{pattern}: {_count(matching)}, {_names(matching)}")
        else:
            matching = files_named(pattern)
            if not matching:
                raise InputError(f"{option} {pattern!r} matches no file")
        files.update(matching)
    return sorted(files)


def files_named(pattern: str) -> list[Path]:
    """The file of this name, or those that the glob matches: a name that exists is that file, also with a glob's characters."""
    path = Path(pattern)
    candidates = [path] if path.exists() else map(Path, glob.glob(pattern, recursive=True))
    return [candidate for candidate in candidates if candidate.is_file()]


def _in_folder(kind: str, folder: Path, inputs: Inputs) -> list[Path]:
    """The files of one kind in a folder and those below it. Hidden ones are left out, and a link beside what it names."""
    files: dict[Path, Path] = {}
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if hidden or not path.is_file() or not _is_of_kind(kind, path):
            if kind == "text" and not hidden and path.is_file():
                inputs.skipped["file that is no text"] = inputs.skipped.get("file that is no text", 0) + 1
            continue
        # By what it names: a link beside its target is the same text, which would be read twice. The target stays.
        other = files.get(path.resolve())
        if other is None or (other.is_symlink() and not path.is_symlink()):
            files[path.resolve()] = path
    return sorted(files.values())


def _is_of_kind(kind: str, path: Path) -> bool:
    """By name; a text file by its beginning, since texts have every suffix and none."""
    if kind in SUFFIXES:
        name = path.name
        for packed in COMPRESSED if kind == "jsonl" else ():
            name = name.removesuffix(packed)
        return name.endswith(SUFFIXES[kind])
    try:
        with Reader(path) as reader:
            head = reader.read(SNIFFED)
    except InputError:
        return False
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < SNIFFED - 4:  # nearer to the end it may be a character that the read cut
            return False
    return b"\0" not in head


def _use_named_splits(inputs: Inputs, folder: bool) -> None:
    """Divide the files by the split that their names say, if every name says one, and if one of them is for training.

    A test split that the user named as a file is left out only where there is a validation split as well.
    """
    named = split_by_role(path.name for path in inputs.files)
    train = named.get("train", [])
    if not train or "" in named or not (named.get("val") or (folder and named.get("test"))):
        return
    by_name = {path.name: path for path in inputs.files}
    if len(by_name) < len(inputs.files):  # the same name in several folders
        return
    inputs.files = [by_name[name] for name in train]
    inputs.val = [by_name[name] for name in named.get("val", [])]
    if inputs.val:
        inputs.notes.append(
            f"their names say so: {_names(inputs.val)} is for validation, {_names(inputs.files)} for training"
        )
    unread = [by_name[name] for name in named.get("test", [])]
    if unread:
        inputs.notes.append(f"{_names(unread)} is a test split by its name and is not read")


def split_by_role(names: Iterable[str]) -> dict[str, list[str]]:
    """Names by the split that one of their words says: train, val, test; "" for a name that says none or several."""
    by_role: dict[str, list[str]] = {}
    for name in names:
        roles = {ROLES[word] for word in re.split(r"[^a-z]+", name.lower()) if word in ROLES}
        by_role.setdefault(roles.pop() if len(roles) == 1 else "", []).append(name)
    return by_role


def _is_saved(path: Path) -> bool:
    """Whether the `datasets` library wrote this folder, by save_to_disk."""
    return path.is_dir() and (
        (path / SAVED_SPLITS).is_file() or ((path / SAVED).is_file() and any(path.glob("*.arrow")))
    )


def _saved_dataset(folder: Path, by_name: bool) -> Inputs:
    """The arrow files of a folder by save_to_disk: of one dataset, or of the splits of a DatasetDict.

    Not `by_name`: the training split alone.
    """
    inputs = Inputs("arrow", [], notes=[f"{folder} was written by save_to_disk: its arrow files are read"])
    if not (folder / SAVED_SPLITS).is_file():
        inputs.files = _saved_files(folder)
        return inputs
    try:
        names = [str(name) for name in json.loads((folder / SAVED_SPLITS).read_text())["splits"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{folder / SAVED_SPLITS} lists no splits ({type(error).__name__}); save it again") from None
    named = split_by_role(names)
    if len(named.get("train", [])) != 1 or len(named.get("val", [])) > 1:
        raise InputError(
            f"{folder} has the splits {', '.join(names)}, not one for training; give one as --input {folder}/SPLIT"
        )
    inputs.files = _saved_files(folder / named["train"][0])
    used = named["train"]
    if named.get("val") and by_name:
        used = used + named["val"]
        inputs.val = _saved_files(folder / named["val"][0])
        inputs.notes.append(f"the split {named['val'][0]} is for validation, {named['train'][0]} for training")
    unread = [name for name in names if name not in used]
    if unread:
        inputs.notes.append(f"not read: the splits {', '.join(unread)}")
    return inputs


def _saved_files(folder: Path) -> list[Path]:
    """What state.json lists. InputError for a damaged list, or a file that is missing or elsewhere."""
    # Not every arrow file of the folder: caches of other code may lie beside the data.
    try:
        names = [str(entry["filename"]) for entry in json.loads((folder / SAVED).read_text())["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{folder / SAVED} lists no data files ({type(error).__name__}); save the dataset again"
        ) from None
    # The list comes from somebody else: a path in it could lead out of the folder.
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise InputError(f"{folder / SAVED} lists {name}, which is no file in {folder}; save the dataset again")
    return [folder / name for name in names]


def _count(files: list[Path]) -> str:
    return "1 file" if len(files) == 1 else f"{len(files):,} files"


def _names(files: list[Path]) -> str:
    shown = ", ".join(path.name for path in files[:3])
    return shown if len(files) <= 3 else f"{shown}, …"
