"""The analyses by name: which file each is, what is given to it, and which runs it needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

from analysis.arms import alone, are_several
from analysis.runs import Run


def _any(runs: list[Run]) -> bool:
    return True


def _branched(runs: list[Run]) -> bool:
    return any(run.origin for run in runs)


def _of_two_precisions(runs: list[Run]) -> bool:
    return len({run.fields.get("precision") for run in runs}) > 1


def _of_three_decays(runs: list[Run]) -> bool:
    """Whether three λ or more, and validation before the end: an order that may be told early."""
    trunks = alone(runs)
    return len({run.decay for run in trunks}) > 2 and any(len(run.column("val/loss").loc[1:]) > 1 for run in trunks)


def _of_two_lengths(runs: list[Run]) -> bool:
    """Whether runs of two numbers of updates, or of two widths, each with three λ above zero."""
    for field in ("schedule.steps", "model.n_embd"):
        decays: dict[object, set[float]] = {}
        for run in alone(runs):
            if run.decay:
                decays.setdefault(run.fields.get(field), set()).add(run.decay)
        if sum(len(tried) > 2 for tried in decays.values()) > 1:
            return True
    return False


def _with_averages(runs: list[Run]) -> bool:
    """Whether an average of the weights was evaluated in a language model's run: overtraining has those of images."""
    averaged = any(str(column).startswith("val/loss_ema_") for run in runs for column in run.metrics)
    return averaged and not _of_images(runs)


def _of_images(runs: list[Run]) -> bool:
    return any("val/error" in run.metrics for run in runs)


def _with_mechanisms(runs: list[Run]) -> bool:
    """Whether K-FAC, a measure of curvature, or a classifier with the norms of its layers is among them.

    Norms of a language model's tensors are effective_lr's: of its layers none is scale-invariant by itself.
    """
    measured = ("measure/gauss_newton_norm", "measure/fisher_norm", "measure/input_jacobian_norm")
    for run in runs:
        columns = ("norm/", *measured) if _of_images([run]) else measured
        if run.algorithm == "kfac" or any(str(column).startswith(columns) for column in run.metrics):
            return True
    return False


def _on_other_data(runs: list[Run]) -> bool:
    """Whether a branch of one of them went on with other data."""
    return any(run.fields.get("branch.data") == "other" for run in runs)


def _with_scores(runs: list[Run]) -> bool:
    return any(any(run.evaluations) for run in runs)


@dataclass(frozen=True)
class Entry:
    """`fits` says whether runs are of the kind that `needs` names in words; of `on_page` the report is made."""

    file: str
    given: str = "RUN…"
    needs: str = ""
    fits: Callable[[list[Run]], bool] = _any
    on_page: bool = True

    def load(self) -> ModuleType:
        """Only the analysis that is asked for is imported: the libraries of all of them take seconds."""
        return import_module(f"analysis.{self.file}")


# In the order of the page.
CATALOGUE = {
    "loss_curves": Entry("loss_curves"),
    "sweep": Entry("best_decay"),
    "early": Entry("early", needs="three λ, evaluated on the way", fits=_of_three_decays),
    "transfer": Entry("what_transfers", needs="two lengths or widths", fits=_of_two_lengths),
    "rules": Entry("rules", needs="runs of several rules or algorithms", fits=are_several),
    "gains": Entry("gains", needs="AdamW and another way", on_page=False),
    "effective_lr": Entry("effective_lr", needs="log.probe_every"),
    "bias_variance": Entry("bias_variance", needs="runs and branches of them", fits=_branched),
    "averages": Entry("averaged_ends", needs="averages at the runs' ends", fits=_with_averages),
    "adaptation": Entry("adaptation", needs="branches on other data", fits=_on_other_data),
    "precision": Entry("precision_gap", needs="runs of two precisions", fits=_of_two_precisions),
    "generalisation": Entry("generalisation"),
    "overtraining": Entry("overtraining", needs="runs on images", fits=_of_images),
    "mechanisms": Entry("mechanisms", needs="images with norms, or K-FAC", fits=_with_mechanisms),
    "jacobian_gap": Entry("jacobian_gap", needs="measured runs on images", fits=_of_images, on_page=False),
    "lm_eval": Entry("task_scores", needs="scores of weights.lm_eval", fits=_with_scores),
    "declared": Entry("declared", needs="runs of the study's plan", on_page=False),
    "declared_images": Entry("declared_images", needs="its small sweeps", fits=_of_images, on_page=False),
    "gate": Entry("gate", needs="a checkpoint from update 150 on", on_page=False),
    "hours": Entry("hours", on_page=False),
    "report": Entry("report", on_page=False),
    "advise": Entry("advise", given="CONFIG [RUN…]", on_page=False),
    "theory": Entry("theory", given="", on_page=False),
}


def about(entry: Entry) -> str:
    """The first line of the analysis' own words."""
    return (entry.load().__doc__ or "").partition("\n")[0]
