"""Take one step of a run again and look at it tensor by tensor: what a spike or a non-finite update was made of.

Writes nothing: the run folder is only read.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from configs.errors import InputError
from engine import checkpoint
from engine.agree import on_first_rank, over_ranks
from engine.resume import load
from engine.training import Training
from engine.update import update
from record.checkpoints import complete, step_of
from record.metrics import read_metrics

COLUMNS = ("‖w‖", "max|w|", "‖g‖", "max|g|", "not finite")
MOMENTS = {"exp_avg": "m", "exp_avg_sq": "v", "momentum_buffer": "m"}


def replay(training: Training, step: int, show: Callable[[str], None]) -> None:
    """Take update `step` (counted from 1) of a run, just built, from the nearest sound checkpoint before it; collective.

    Shows, per tensor: norm and largest element of the weight before, of the gradient before clipping, the gradient's
    elements that are not finite, Adam's moments after, and the relative update; per block of the model the largest
    activation on any rank. InputError if the step lies outside the run.
    """
    if not 1 <= step <= training.plan.steps:
        raise InputError(f"--replay {step}: the run has steps 1 to {training.plan.steps}")
    _load_before(training, step, show)
    fragments, batches = training.engine.fragments, training.batches()
    try:
        # The updates between the checkpoint and the step are those of the run: same windows, same rates.
        while training.progress.step < step - 1:
            if update(training, batches).ended == "refused":
                raise InputError(
                    f"--replay {step}: the run ends at step {training.progress.step + 1}, whose update is not finite"
                )
        # Everything about the weights is taken before the update changes them in place.
        before = [weight.clone() for weight in fragments.weights()]
        columns = [fragments.square_norms(before).sqrt(), fragments.maxima(before)]

        def look(gradients: list[Tensor]) -> None:
            norms = fragments.square_norms(gradients).sqrt()
            columns.extend([norms, fragments.maxima(gradients), fragments.nonfinite(gradients)])

        activations = _Activations(training.engine.ds.module)
        outcome = update(training, batches, look=look)
    finally:
        batches.close()
    # A rank holds pieces of tensors: the sums over ranks are taken inside `square_norms`, by tensor.
    # Of a parameter without a moment (optim/muon.py has two families) nothing is measured.
    none = torch.empty(0, device=fragments.ds.device)
    having = {kind: set(fragments.names_of(kind)) for kind in fragments.moments}
    moments = [
        [fragments.view(f, kind) if f.name in names else none for f in fragments.local]
        for kind, names in having.items()
    ]
    change = [weight - old for weight, old in zip(fragments.weights(), before, strict=True)]
    columns += [fragments.square_norms(moment).sqrt() for moment in moments]
    columns.append(fragments.square_norms(change).sqrt() / columns[0])
    table = {name: [column[i].item() for column in columns] for i, name in enumerate(fragments.names)}
    titles = [*COLUMNS, *(f"‖{MOMENTS[name]}‖" for name in fragments.moments), "‖Δw‖/‖w‖"]
    show(_render(table, titles) + "\n\n" + activations.render(training.world.device))
    # The loss that the run recorded stands beside the one just computed: they agree where the replay is of that update.
    row = next((row for row in read_metrics(training.folder.metrics)[0] if row["step"] == step), {})
    loss = row.get("train/loss")
    show(
        f"\nloss {outcome.loss:.6f}, gradient norm {outcome.grad_norm:.6g}, learning rate {training.engine.lr:.6g}, "
        f"{'applied' if outcome.ended == 'applied' else 'not applied'}; "
        + ("no loss of this step is recorded" if loss is None else f"recorded loss {loss:.6f}")
    )


def _load_before(training: Training, step: int, show: Callable[[str], None]) -> None:
    """Load the newest sound checkpoint before update `step`, or the run's start if there is none; collective."""
    folder = training.folder.checkpoints
    # Rank 0 alone looks at the folder, so that all ranks try the same checkpoints in the same order.
    earlier = on_first_rank(lambda: [path for path in complete(folder) if step_of(path) < step])
    path = next((path for path in reversed(earlier) if _is_sound(path, show)), None)
    load(training, path)
    show(f"replay of step {step} from {path or 'the start'}")


def _is_sound(path: Path, show: Callable[[str], None]) -> bool:
    """Whether every file is the one that was saved; if not, says so. Nothing is set aside, as a resume would; collective."""
    try:
        checkpoint.check(path)
    except InputError as error:
        show(str(error))
        return False
    return True


class _Activations:
    """What the outputs of every block were in a forward pass: the largest finite magnitude, and how many are not finite."""

    def __init__(self, model: nn.Module) -> None:
        self.outputs: dict[str, tuple[Tensor, Tensor]] = {}
        for name, module in model.named_modules():
            # A block is `blocks.3`; what stands alone is an embedding, the last norm or the head.
            is_block, stands_alone = name.count(".") == 1, name.isidentifier() and not list(module.children())
            if is_block or stands_alone:
                module.register_forward_hook(self._hook(name))

    def _hook(self, name: str) -> Callable[..., None]:
        def note(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            output = output.detach()
            # What is not finite would hide the largest of the rest: it is counted by itself.
            largest = output.nan_to_num(0, 0, 0).abs().amax().float()
            bad = output.isfinite().logical_not().sum().float()
            # The hook runs once per micro-step, and the step is what is asked for. Values stay on the device.
            if name in self.outputs:
                largest_before, bad_before = self.outputs[name]
                largest, bad = torch.maximum(largest_before, largest), bad_before + bad
            self.outputs[name] = (largest, bad)

        return note

    def render(self, device: torch.device) -> str:
        """The table over all ranks; collective."""
        values = torch.tensor([[float(a), float(b)] for a, b in self.outputs.values()], device=device)
        # A column is strided, and a reduction wants it whole.
        largest, bad = values[:, 0].contiguous(), values[:, 1].contiguous()
        over_ranks(largest, dist.ReduceOp.MAX)
        over_ranks(bad)
        rows = zip(self.outputs, largest.tolist(), bad.tolist(), strict=True)
        width = max(map(len, self.outputs))
        lines = [f"{'output of':<{width}} {'max|x|':>11} {'not finite':>11}"]
        return "\n".join(lines + [f"{name:<{width}} {_number(a)} {_number(b)}" for name, a, b in rows])


def _render(table: dict[str, list[float]], titles: list[str]) -> str:
    width = max(map(len, table))
    lines = [" ".join([f"{'tensor':<{width}}", *(f"{column:>11}" for column in titles)])]
    return "\n".join(lines + [" ".join([f"{name:<{width}}", *map(_number, row)]) for name, row in table.items()])


def _number(value: float) -> str:
    return f"{value:>11.4g}" if math.isfinite(value) else f"{value!s:>11}"
