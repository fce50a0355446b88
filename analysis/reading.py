"""A run folder, or a run's archive, read as a Run: whatever lies in it, the answer is a run that every analysis can work
on, or an InputError."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from analysis.runs import (
    FOLLOWS,
    LAMBDA,
    PRECISION,
    RATE,
    SCALED,
    SEEDS,
    STARTS,
    Run,
    field_name,
    flatten,
    importance,
    shown,
    table_of,
    unit_of,
)
from configs.errors import InputError
from configs.identity import model_defaults
from record.archive_file import is_archive, run_name
from record.checkpoints import split_address
from record.contents import Description, find_place, read_description, read_record
from record.run import LARGEST, UNKNOWN

# Fields that the analyses compute with: the least value, and whether a run must have it.
NUMBERS = {LAMBDA: (0.0, True), RATE: (0.0, True), "numerics.divergence_margin": (0.0, False)}
COUNTS = {"schedule.steps": True, "model.n_embd": False}
TEXTS = (PRECISION, "optim.algorithm", "branch.origin", "branch.lr_by_norm_of", "schedule.match.reference")


def load_run(path: Path) -> Run:
    """Read a run folder, or a run's archive; works on unfinished runs. InputError, naming it, if what is in it cannot be a run."""
    try:
        # what the run was: the configuration decides, the experiment adds the digest of its data
        described = read_description(path)
        experiment = flatten(described.experiment)
        fields = flatten(described.config) | {key: experiment[key] for key in ("data.digest",) if key in experiment}
        # a record may be older than a field: its default is what the run had, and tells it from no run that names it
        fields = flatten({"model": model_defaults(fields.get("model.kind", "gpt"))}) | fields
        check_fields(fields)
        record = read_record(path, fields["schedule.steps"], fields.get("log.probe_every"))
    except (OSError, ValueError, RecursionError) as error:
        if str(error).startswith(f"{path} "):  # an archive's own errors name it
            raise
        what = "archive" if is_archive(path) else "run folder"
        raise InputError(f"{path} is not a readable {what}: {error}") from None
    # from here on an archive is called as the folder was: tables name runs, and branches name their trunks
    file, path = path, path.with_name(run_name(path)) if is_archive(path) else path
    status, problems = record.status, list(record.problems)
    if status.get("state") == UNKNOWN:
        problems.append(
            f"{path}: {status['reason']}: whether the run has ended is not known, and its end makes no claim"
        )
    # what made this experiment another one than the next; the digests are of one run each, told by what that run was
    varied = set(experiment) - {"branch.digest", "branch.norms", "schedule.match.digest"}
    for name, given, digest in (
        (STARTS, fields.get("branch.origin"), experiment.get("branch.digest")),
        (FOLLOWS, fields.get("schedule.match.reference"), experiment.get("schedule.match.digest")),
    ):
        # a digest tells a reader nothing: the run that it stands for is told by what it was
        if given:
            told = _told(path, str(given), fields, varied) or digest or given
            # a model from elsewhere is no run
            is_run = name != STARTS or split_address(str(given))[1] is not None
            fields[name] = told if is_run else Path(str(given)).name
            varied.add(name)
    if scaled := fields.get("branch.lr_by_norm_of"):
        fields[SCALED] = _decay_of(path, str(scaled))
        varied.add(SCALED)
    log = record.log
    rows = table_of(log.rows)
    return Run(path, fields, varied, status, record.plan, rows, problems, log.superseded, file, record.every)


def check_fields(fields: dict[str, Any]) -> None:
    """InputError for a field of config.json that no run of ours can have had, and that an analysis would stumble over.

    Not the whole schema: runs of earlier versions are read too.
    """
    for name, value in fields.items():
        # 1e400 and NaN are read from JSON as they are written: no comparison below would catch NaN
        if isinstance(value, int | float) and not abs(value) <= LARGEST:
            raise InputError(f"config.json: {name[:80]} is a number without sense")
        if name.startswith(SEEDS) and type(value) is not int:
            raise InputError(f"config.json: {name[:80]} is {value!r:.40}, not an integer")
    for name, (least, needed) in NUMBERS.items():
        value = fields.get(name)
        # a run of an older version may lack it
        if value is None and not needed:
            continue
        if not isinstance(value, int | float) or isinstance(value, bool) or value < least:
            raise InputError(f"config.json: {name} is {value!r:.40}, not a number from {least:g} up")
    for name, needed in {**COUNTS, f"batch.{unit_of(fields)}_per_step": True}.items():
        if (needed or name in fields) and (type(fields.get(name)) is not int or fields[name] < 1):
            raise InputError(f"config.json: {name} is {fields.get(name)!r:.40}, not a count")
    for name in TEXTS:
        if not isinstance(text := fields.get(name) or "", str) or "\0" in text:
            raise InputError(f"config.json: {name} is {text!r:.40}, not a text")


def _decay_of(path: Path, reference: str) -> str:
    """λ of the run that a branch's learning rate is scaled by, as text; what is known where that run is gone."""
    described = _described(path, Path(reference))
    decay = flatten(described.config).get(LAMBDA) if described else None
    return f"λ {decay:g}" if isinstance(decay, int | float) else "a run that is not here"


def _described(path: Path, place: Path) -> Description | None:
    """A run as it is named in another's configuration, or beside that run, or in the folder of its own sweep beside that one's,
    where they were moved together. None if it is gone."""
    for name in (place, path.parent / place.name, path.parent.parent / place.parent.name / place.name):
        source = find_place(name)
        if source is not None:
            try:
                return read_description(source)
            except (OSError, ValueError, RecursionError):
                return None
    return None


def _told(path: Path, reference: str, fields: dict[str, Any], varied: set[str]) -> str:
    """What another run was, beside this one: the fields in which it differs but for seeds, and the step; empty if it is gone."""
    place, step = split_address(reference)
    described = _described(path, place)
    if described is None:
        return ""
    theirs = flatten(described.config)
    names = sorted(varied | set(flatten(described.experiment)), key=importance)
    # what follows from that other run is not said a second time
    kept = [n for n in names if not n.startswith((SEEDS, "data.digest", "branch.", "schedule.match."))]
    # only what differs from this run: the rest is in this run's own fields
    parts = [f"{field_name(n)} {shown(theirs.get(n))}" for n in kept if theirs.get(n) != fields.get(n)]
    return " ".join([*parts, *([f"step {step}"] if step is not None else [])]) or "the same"
