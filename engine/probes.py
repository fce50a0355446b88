"""What one update did, tensor by tensor and for the whole model: a row of probes.jsonl (columns in record/probe_columns.py).

Written over fragments, so that every ZeRO stage gives the unsharded values; beside the masters before the update it
holds one slice of a tensor at a time. A probe only looks: it draws nothing at random, and every bit of training is as
without it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from configs import equilibrium
from configs.optimisation import Optim
from configs.tensors import tensor_table
from data.loader import EvalBatch
from engine.adam_rates import damping, rate_columns
from engine.agree import over_ranks
from engine.attention_logits import AttentionLogits
from engine.engine import Engine
from engine.norm_change import NormChange, norm_columns
from engine.spectral import spectral_columns
from engine.sums import slices, square_sums
from engine.zero import Fragment


class Probe:
    """Looks at one update: `look` at its gradients, `around_step`, and `finish` after it."""

    def __init__(self, engine: Engine, batch: EvalBatch) -> None:
        """`batch`: this rank's share of the windows (data/loader.probe_batch), for the whole model's quantities."""
        self.engine, self.fragments, self.batch = engine, engine.fragments, batch
        self.micro = torch.zeros((), dtype=torch.float64, device=engine.ds.device)
        parameters = engine.ds.module.parameters() if engine.config.log.noise_scale else ()
        self._hooks = [parameter.register_hook(self._note) for parameter in parameters]

    def look(self, gradients: list[Tensor]) -> None:
        """Shown the reduced gradients before they are clipped. `seconds`: how long it looked, which is no time of the update."""
        began = self._now()
        # The micro-batches' own gradients have been seen; from here on the whole batch's count.
        for hook in self._hooks:
            hook.remove()
        self.before = [weight.clone() for weight in self.fragments.weights()]  # not while activations are held
        self.grad_squares = self.fragments.square_norms(gradients)
        # |G|² of the noise scale is of the cross-entropy alone, as the hooks saw it.
        penalty = self.engine.config.optim.decay_rule == "l2_loss"
        plain = self._without_penalty(gradients) if penalty and self._hooks else gradients
        self.big = self.fragments.square_norms(plain).sum().item()
        pairs = zip(gradients, self.before, strict=True)
        self.products = self.fragments.sums((g.float() * w.float() for g, w in slices(*pair)) for pair in pairs)
        self.change = NormChange(self.fragments, self.engine.rule, self.before)
        self.seconds = self._now() - began

    @contextmanager
    def around_step(self) -> Iterator[None]:
        """Around the step: what the rule decays before it is done, what it does after it is to come."""
        began = self._now()
        self.change.decayed()
        self.seconds += self._now() - began
        yield
        began = self._now()
        self.change.stepped()
        self.seconds += self._now() - began

    def _now(self) -> float:
        """The time when the device has done what it was given; else the backward pass, still under way, would be counted."""
        if self.engine.ds.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def _without_penalty(self, gradients: list[Tensor]) -> list[Tensor]:
        """What the micro-batches' hooks saw: the gradient of the cross-entropy alone."""
        groups = self.fragments.groups_by_name
        return [
            g.float() - 2 * groups[fragment.name]["decay"] * w.float()
            for g, w, fragment in zip(gradients, self.before, self.fragments.local, strict=True)
        ]

    def finish(self) -> dict[str, float]:
        """The row. Collective."""
        return self._tensors() | self._model() | self._noise()

    def _tensors(self) -> dict[str, float]:
        # Sums over each tensor, over all ranks: Σw², Σ(w′−w)², Σg², Σg·w, and so on, a column a quantity.
        f, optim = self.fragments, self.engine.config.optim
        groups = f.groups_by_name
        rates = [float(groups[name]["lr"]) for name in f.names]
        after, w2 = f.weights(), f.square_norms(self.before)
        pairs = zip(after, self.before, strict=True)
        changes = ((square_sums([a.float() - b.float()]) for a, b in slices(*pair)) for pair in pairs)
        d2, n2 = f.sums(changes), f.square_norms(after)
        columns = {"w2": n2, "before2": w2, "d2": d2, "g2": self.grad_squares, "gw": self.products}
        columns["rotation"] = self._rotations(w2.sqrt(), n2.sqrt())
        columns["max"] = f.maxima(after)
        columns["changed"] = self._changed(lambda weight: weight)
        dtypes = self.engine.dtypes
        if dtypes["weights"] != dtypes["masters"]:  # what the forward pass reads may stay where its master moves
            columns["changed_weights"] = self._changed(lambda weight: weight.bfloat16())
        if optim.algorithm == "adam":
            second = (f.view(p, "exp_avg_sq") for p in f.local)
            columns["inverse"] = f.sums((1 / (v.float().sqrt() + optim.eps) for (v,) in slices(m)) for m in second)
        # One transfer from the device; then plain numbers, by tensor and by kind.
        table = {key: column.tolist() for key, column in columns.items()}
        if "inverse" in table:
            table["adam"] = [lr * inverse for lr, inverse in zip(rates, table["inverse"], strict=True)]
        sizes = [f.shapes[name].numel() for name in f.names]
        row: dict[str, float] = {}
        members = {name: [i] for i, name in enumerate(f.names)}
        tensors = tensor_table(self.engine.config.model)
        for i, name in enumerate(f.names):
            row |= self._equilibrium(name, groups[name])
            members.setdefault(f"kind:{tensors[name].kind}", []).append(i)
        for label, indices in members.items():
            row |= _quantities(label, indices, table, sizes, rates, optim)
        if "adam" in table:
            row["probe/adam_lr"] = sum(table["adam"]) / sum(sizes)
            row |= rate_columns(f, optim.eps, {**members, "": range(len(f.names))})
        row |= norm_columns(self.change.parts(), {**members, "": range(len(f.names))}) | spectral_columns(f, members)
        for key in ("changed", "changed_weights"):
            if key in table:
                row[f"probe/{key}"] = sum(table[key]) / sum(sizes)
        row["probe/max"] = max(table["max"])
        if optim.algorithm in equilibrium.LR_POWERS:  # of a torch.optim.NAME it is not known
            row["probe/effective_lr"] = equilibrium.effective_lr(
                self.engine.lr, math.sqrt(sum(table["before2"])), optim.algorithm
            )
        return row

    def _changed(self, seen: Callable[[Tensor], Tensor]) -> Tensor:
        """How many elements of each tensor the update changed, as `seen` shows them."""
        pairs = zip(self.fragments.weights(), self.before, strict=True)
        return self.fragments.sums((seen(a) != seen(b) for a, b in slices(*pair)) for pair in pairs)

    def _equilibrium(self, name: str, group: dict[str, Any]) -> dict[str, float]:
        """Where decay takes a tensor under noise, by its own η and λ, as far as the algorithm's law is known beforehand."""
        optim, lr, decay = self.engine.config.optim, group["lr"], group["decay"]
        # Muon's hidden matrices have their own law, its other tensors AdamW's.
        shape = tuple(self.fragments.shapes[name]) if group["family"] == "muon" else None
        law = equilibrium.predictions(optim.algorithm, optim.decay_rule, optim.betas, optim.momentum, lr, decay, shape)
        return {f"probe/predicted_{quantity}/{name}": value for quantity, value in law.items()}

    def _rotations(self, before: Tensor, after: Tensor) -> Tensor:
        """Angle between each tensor before and after (radians): 2·asin(‖ŵ′ − ŵ‖/2), exact where the cosine rounds to 1."""
        places = {name: i for i, name in enumerate(self.fragments.names)}
        one, other = (1 / before.clamp_min(1e-300)).tolist(), (1 / after.clamp_min(1e-300)).tolist()

        def squares(fragment: Fragment, before: Tensor) -> Iterator[Tensor]:
            i = places[fragment.name]
            for new, old in slices(fragment.weight, before):
                yield (new.double() * other[i]).sub_(old.double(), alpha=one[i]).square_()

        # Of the chord between the two directions: near 0 the arc cosine of their product would lose all digits.
        chords = self.fragments.sums(map(squares, self.fragments.local, self.before)).sqrt()
        return 2 * torch.asin((chords / 2).clamp(max=1.0))

    @torch.no_grad()
    def _model(self) -> dict[str, float]:
        """Loss, largest logit, mean log of the softmax's normaliser, top-1 error, over the probe's windows; averages' loss.

        Not that of an average where there is batch normalisation: to estimate its statistics takes a pass over the training images.
        """
        names = ("loss", "logsumexp", "top1_error", "max_logit", "windows")
        # Attention is looked at in the same pass; but nothing is seen inside compiled code, so that there it takes one more.
        module = self.engine.ds.module
        logits = AttentionLogits(module, len(self.batch.places))
        with nullcontext() if module.compiled else logits.seen():
            row = {f"probe/{name}": value for name, value in zip(names, self._statistics(), strict=True)}
        if module.compiled and logits.layers:
            with logits.seen(), torch.compiler.set_stance("force_eager"):
                self._statistics()
        row |= logits.columns()
        for kind in () if self.engine.statistics.are_kept else self.fragments.averages.kinds:
            with self.fragments.swapped(kind):
                row[f"probe/loss_{kind}"] = self._statistics()[0]
        return row

    def _statistics(self) -> list[float]:
        # In eval mode: no dropout, and no z-loss in the loss.
        ds = self.engine.ds
        ds.eval()
        found = ds(*self.engine.on_device(self.batch), statistics=True)
        ds.train()
        counted = torch.full((1,), self.batch.counted, dtype=torch.float64, device=ds.device)
        sums, largest = torch.cat([found[:3], counted]), found[3:]
        over_ranks(sums)
        over_ranks(largest, dist.ReduceOp.MAX)
        # How many windows it was says which: they are spread evenly over the split (data/loader.probe_batch).
        return [*(sums[:3] / sums[3]).tolist(), largest.item(), sums[3].item() / self.engine.config.targets_per_example]

    def _note(self, gradient: Tensor) -> None:
        self.micro += square_sums([gradient.detach().flatten()])[0]

    def _noise(self) -> dict[str, float]:
        """McCandlish et al. (1812.06162, appendix A): |G|² and tr Σ without bias, from micro-batches and the whole batch."""
        if not self.engine.config.log.noise_scale:
            return {}
        plan, length = self.engine.plan, self.engine.config.targets_per_example
        over_ranks(self.micro)
        pieces = plan.micro_steps * plan.ranks
        # A hook sees the gradient of loss·ranks/tokens_per_step; times the micro-steps it is that of the micro-batch's mean.
        small, big = self.micro.item() / pieces * plan.micro_steps**2, self.big
        b, whole = plan.micro_batch * length, plan.examples_per_step * length
        square, trace = (whole * big - b * small) / (whole - b), (small - big) / (1 / b - 1 / whole)
        row = {"probe/gradient_square": square, "probe/gradient_trace": trace}
        return row | ({f"probe/noise_scale_{self.engine.config.unit}": trace / square} if square > 0 else {})


def _quantities(
    label: str, members: list[int], table: dict[str, list[float]], sizes: list[int], rates: list[float], optim: Optim
) -> dict[str, float]:
    """A tensor's quantities, or a kind's: of its tensors as one vector; rotation is the mean over them."""
    total: dict[str, Any] = {
        key: math.fsum(values[i] for i in members) for key, values in table.items() if key != "max"
    }
    size, norm = sum(sizes[i] for i in members), math.sqrt(total["w2"])
    before, gradient = math.sqrt(total["before2"]), math.sqrt(total["g2"])
    lr = sum(rates[i] * sizes[i] for i in members) / size
    row = {
        "norm": norm,
        "rms": norm / math.sqrt(size),
        "update": math.sqrt(total["d2"]) / before if before else math.inf,
        "rotation": total["rotation"] / len(members),
        "grad_norm": gradient,
        "cosine": total["gw"] / (gradient * before) if gradient and before else 0.0,
        "max": max(table["max"][i] for i in members),
        **{key: total[key] / size for key in ("changed", "changed_weights") if key in total},
    }
    if optim.algorithm in equilibrium.LR_POWERS:
        row["effective_lr"] = equilibrium.effective_lr(lr, before, optim.algorithm)
    if "adam" in table:
        row["adam_lr"] = total["adam"] / size
        row |= damping(optim.eps, before, total["inverse"] / size)
    return {f"probe/{key}/{label}": value for key, value in row.items()}
