"""A dataset of the Hugging Face hub as parquet files, pinned to a revision; or a local copy of it."""

from __future__ import annotations

from pathlib import Path

from configs.errors import InputError
from data.sources import Source

OPENWEBTEXT = "Skylion007/openwebtext"
CONVERTED = "refs/convert/parquet"  # where the hub keeps its own parquet conversion of a dataset
FETCH = "and read them with `python -m data.prepare --source parquet --input 'DIR/**/*.parquet' --out …`"


def open_hub(dataset: str, revision: str | None, text_field: str = "text") -> Source:
    """A dataset of the hub, as its parquet files at one resolved revision; or a local copy, where `dataset` is a folder.

    Raises InputError, within seconds, where the hub cannot be reached or the dataset has no parquet files.
    """
    if Path(dataset).is_dir():
        files = sorted(Path(dataset).rglob("*.parquet"))
        if not files:
            raise InputError(f"{dataset} holds no parquet file")
        source = Source.local("openwebtext", files, text_field)
        source.origin["dataset"] = dataset
        return source
    # A dataset that is a script has no parquet files of its own, and no script is run: the hub's conversion is read instead.
    for candidate in [revision] if revision else ["main", CONVERTED]:
        sha, sizes = parquet_files(dataset, candidate, FETCH)
        if sizes:
            sizes = {name: size for name, size in sizes.items() if "train" in name} or sizes
            # By the commit's hash, not by the branch's name: the data stays the same while it is read, and afterwards.
            addresses = [f"hf://datasets/{dataset}@{sha}/{name}" for name in sizes]
            origin = {"dataset": dataset, "revision": sha}
            return Source("openwebtext", addresses, sum(sizes.values()), text_field, origin)
    raise InputError(
        f"dataset {dataset} has no parquet files at revision {revision or 'main'}; name one with --revision"
    )


def parquet_files(dataset: str, revision: str, fetched: str) -> tuple[str, dict[str, int]]:
    """Resolved revision, and the parquet files of all splits with their sizes; `fetched`: how to read them once they are local."""
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
    return str(info.sha), dict(sorted(sizes.items()))
