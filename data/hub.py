"""A dataset of the Hugging Face hub as parquet files, pinned to a revision; or a local copy of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from configs.errors import InputError
from data.hub_configs import choose_files
from data.sources import Source

OPENWEBTEXT = "Skylion007/openwebtext"
CONVERTED = "refs/convert/parquet"  # where the hub keeps its own parquet conversion of a dataset
FETCH = "and read them with `python -m data.prepare --source parquet --input 'DIR/**/*.parquet' --out …`"


def open_hub(
    dataset: str, revision: str | None, text_field: str = "text", config: str | None = None, kind: str = "openwebtext"
) -> Source:
    """A dataset of the hub, as its parquet files at one resolved revision; or a local copy, where `dataset` is a folder.

    `config`: one of the configurations that the dataset's card names. Raises InputError, within seconds, where the hub cannot
    be reached, the dataset has no parquet files, or it is not clear which of them are meant.
    """
    if Path(dataset).is_dir():
        return _open_copy(Path(dataset), text_field, config, kind)
    # A dataset that is a script has no parquet files of its own, and no script is run: the hub's conversion is read instead.
    for candidate in [revision] if revision else ["main", CONVERTED]:
        sha, sizes, card = _parquet_and_card(dataset, candidate, FETCH)
        if sizes:
            names, note = choose_files(list(sizes), card, config, f"{dataset} at revision {candidate}", train=True)
            # By the commit's hash, not by the branch's name: the data stays the same while it is read, and afterwards.
            addresses = [f"hf://datasets/{dataset}@{sha}/{name}" for name in names]
            origin = {"dataset": dataset, "revision": sha} | ({"config": config} if config else {})
            source = Source(kind, addresses, sum(sizes[name] for name in names), text_field, origin)
            source.notes.append(
                f"dataset {dataset} at {sha}: {note}, {len(names)} of {len(sizes)} parquet files are read"
            )
            return source
    raise InputError(
        f"dataset {dataset} has no parquet files at revision {revision or 'main'}; name one with --revision"
    )


def _open_copy(folder: Path, text_field: str, config: str | None, kind: str) -> Source:
    """A local copy: its parquet files, or those of a configuration that the card in its README.md names."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.parquet"))
    if not names:
        raise InputError(f"{folder} holds no parquet file")
    chosen, note = choose_files(names, _local_card(folder), config, str(folder))
    source = Source.local(kind, [folder / name for name in chosen], text_field)
    source.origin |= {"dataset": str(folder)} | ({"config": config} if config else {})
    source.notes.append(f"{folder}: {note}, {len(chosen)} of {len(names)} parquet files are read")
    return source


def _local_card(folder: Path) -> Any:
    """The list of configurations in the card of a local copy; None where there is no card, or none in it."""
    from huggingface_hub import metadata_load

    card = folder / "README.md"
    if not card.is_file():
        return None
    try:
        return (metadata_load(card) or {}).get("configs")
    except Exception as error:  # the YAML reader's own
        raise InputError(f"{card} is no card of a dataset: {str(error)[:200]}") from None


def parquet_files(dataset: str, revision: str, fetched: str) -> tuple[str, dict[str, int]]:
    """Resolved revision, and the parquet files of all splits with their sizes; `fetched`: how to read them once they are local."""
    sha, sizes, _ = _parquet_and_card(dataset, revision, fetched)
    return sha, sizes


def _parquet_and_card(dataset: str, revision: str, fetched: str) -> tuple[str, dict[str, int], Any]:
    """The same, and the configurations that the dataset's card names (None: it names none)."""
    from huggingface_hub import HfApi

    try:
        info = HfApi().dataset_info(dataset, revision=revision, files_metadata=True, timeout=10)
    except Exception as error:  # the client's own, its transport's and the operating system's
        raise InputError(
            f"dataset {dataset} at revision {revision} cannot be reached ({type(error).__name__}: {str(error)[:200]}). "
            "Fetch its parquet files on a machine with network, for example with "
            f"`hf download {dataset} --repo-type dataset --revision {revision} --local-dir DIR`, {fetched}"
        ) from None
    sizes = {s.rfilename: s.size or 0 for s in info.siblings or [] if s.rfilename.endswith(".parquet")}
    return str(info.sha), dict(sorted(sizes.items())), getattr(info.card_data, "configs", None)
