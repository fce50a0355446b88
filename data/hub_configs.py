"""Which files of a dataset are one of its configurations, by its card: https://huggingface.co/docs/hub/datasets-manual-configuration."""

from __future__ import annotations

import re
from typing import Any

from configs.errors import InputError

SHOWN = 20  # configurations that a message names; FineWeb has over a hundred


def choose_files(
    names: list[str], card: Any, config: str | None, where: str, train: bool = False
) -> tuple[list[str], str]:
    """The files of a configuration's training split, and words on what was chosen. `names`: paths in the dataset.

    `card`: the list of configurations in the dataset's card, None without one: then a configuration is a folder. Without
    `config` it is the card's default, or its only one; without a card all files, or with `train` those whose name says so.
    InputError where it is not clear which are meant.
    """
    entries = [entry for entry in card or [] if isinstance(entry, dict) and "config_name" in entry]
    if not entries:
        chosen, said = _by_folders(names, config, where)
        training = [name for name in chosen if "train" in name] if train or config is not None else []
        return training or chosen, said
    entry = _entry(entries, config, where)
    split, patterns = _training_patterns(entry, where)
    chosen = [name for name in names if any(_matches(name, pattern) for pattern in patterns)]
    if not chosen:
        raise InputError(
            f"the configuration {entry['config_name']} of {where} names no parquet file that is there ({', '.join(patterns)[:200]})"
        )
    # Of a whole folder the names tell which files are of which split, where any of them does.
    if "data_dir" in entry and "data_files" not in entry:
        chosen = [name for name in chosen if "train" in name] or chosen
    return chosen, f"configuration {entry['config_name']}, split {split}"


def _entry(entries: list[dict[str, Any]], config: str | None, where: str) -> dict[str, Any]:
    """The configuration that is asked for, or the default one."""
    by_name = {str(entry["config_name"]): entry for entry in entries}
    if config is not None and config not in by_name:
        raise InputError(f"{where} has no configuration {config}; it has {_listed(list(by_name))}")
    if config is not None:
        return by_name[config]
    default = [entry for entry in entries if entry.get("default")] or [by_name[n] for n in ("default",) if n in by_name]
    if not default and len(entries) > 1:
        raise InputError(f"{where} has several configurations: name one with --config, of {_listed(list(by_name))}")
    return (default or entries)[0]


def _training_patterns(entry: dict[str, Any], where: str) -> tuple[str, list[str]]:
    """The training split of a configuration, or its only split, and the patterns of its files."""
    files = entry.get("data_files", entry.get("data_dir"))
    splits: dict[str, list[str]] = {}
    if isinstance(files, dict):
        files = [{"split": split, "path": path} for split, path in files.items()]
    for part in files if isinstance(files, list) else [files]:
        split, path = (part.get("split", "train"), part.get("path")) if isinstance(part, dict) else ("train", part)
        splits.setdefault(str(split), []).extend(
            str(one) for one in (path if isinstance(path, list) else [path]) if one
        )
    name = "train" if "train" in splits else next(iter(splits))
    if name != "train" and len(splits) > 1:
        raise InputError(
            f"the configuration {entry['config_name']} of {where} has no split train; it has {_listed(list(splits))}: fetch the "
            "files, and read them with --source parquet"
        )
    # A card that names no files leaves them to the names.
    return name, splits[name] or ["**/*train*", "**/*train*/**"]


def _by_folders(names: list[str], config: str | None, where: str) -> tuple[list[str], str]:
    """Without a card: the files in the folder of that name, as in the hub's own conversion, CONFIG/SPLIT/0000.parquet."""
    folders = sorted({name.partition("/")[0] for name in names if "/" in name})
    if config is None:
        # Only where all files lie so deep, folders are configurations; else they may be anything.
        if len(folders) > 1 and "default" not in folders and all(name.count("/") == 2 for name in names):
            raise InputError(
                f"{where} has no card, and several folders: name one with --config, of {_listed(folders)}; or read files that are "
                "here with --source parquet"
            )
        return names, "no card names a configuration"
    chosen = [name for name in names if name.startswith(f"{config}/")]
    if not chosen:
        raise InputError(
            f"{where} has no configuration {config}: no card names one, and its folders are {_listed(folders)}"
        )
    return chosen, f"folder {config}"


def _matches(name: str, pattern: str) -> bool:
    """Whether a path is a pattern's, with *, ** and ?; or lies in the folder that it names. `*` stops at a slash."""
    pattern = pattern.removeprefix("./").rstrip("/")
    words = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    return re.fullmatch("".join(words.get(part) or re.escape(part) for part in parts) + "(?:/.*)?", name) is not None


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more if names else "none"
