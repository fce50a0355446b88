"""Fragments: one view of weights, gradients and optimiser state under every ZeRO stage.

A rank holds, of each parameter, either all of it (stage 0) or a contiguous piece of its flattened form (stages 1–3),
or nothing. A Fragment is that piece: views of the masters, of the optimiser's moments and of the reduced gradient.
Norms, clipping, checkpoints, averages and probes are written once, over fragments. Where DeepSpeed keeps the pieces is for
engine/zero.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from configs.schema import Optim
from engine import zero
from engine.agree import over_ranks
from engine.dtypes import dtype_name
from engine.sums import square_sums
from engine.zero import Fragment
from optim.algorithms import moments, state_by_name, zero_state
from optim.averages import Averages
from optim.kfac import KFAC
from optim.torch_named import from_saved, to_saved
from record.checkpoint_manifest import BUFFERS, CURVATURE


class Fragments:
    """All fragments of this rank, and the collective operations over them."""

    def __init__(self, ds: Any, stage: int, optimizer: torch.optim.Optimizer, config: Optim) -> None:
        """`ds` is a DeepSpeed engine at ZeRO `stage` that drives the torch `optimizer` built from `config`."""
        self.ds, self.stage, self.optimizer, self.config = ds, stage, optimizer, config
        self.moments = moments(config)
        # Of torch.optim.NAME (stage 0): the values of its state by name, of any shape. It makes them in its first step.
        self.named_state = state_by_name(config, ds.device)
        self.averages = Averages()
        self.sharded = stage > 0
        self.names = [name for name, _ in ds.module.named_parameters()]
        self.shapes = {name: torch.Size(getattr(p, "ds_shape", p.shape)) for name, p in ds.module.named_parameters()}
        # This rank's pieces, and at which place of `names` each belongs: sums over a parameter are made by that index.
        self.local = zero.fragments_of(ds, stage)
        self._index = torch.tensor([self.names.index(f.name) for f in self.local], device=ds.device, dtype=torch.long)
        # Every rank learns once what all others hold, so that later nobody has to ask.
        pieces: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(pieces, [(f.name, f.start, f.weight.numel()) for f in self.local])
        # name → (rank, start, length) of the pieces that make up the whole; at stage 0 each rank has it all
        self.owners: dict[str, list[tuple[int, int, int]]] = {name: [] for name in self.names}
        for rank, found in enumerate(pieces if self.sharded else pieces[:1]):
            for name, start, length in found:
                self.owners[name].append((rank, start, length))
        # A gap would lose part of a checkpoint, an overlap would count it twice in every norm.
        for name, shape in self.shapes.items():
            assert sum(length for _, _, length in self.owners[name]) == shape.numel(), f"fragments do not cover {name}"

    def init_state(self) -> None:
        """Create the optimiser's state at zero now, rather than at its first step: memory and dtypes are known early."""
        # DeepSpeed empties the groups at stage 3; a rank with nothing but padding has no piece to tell a group by.
        families = {id(p): group["family"] for group in self.optimizer.param_groups for p in group["params"]}
        families |= {id(f.flat): self.groups_by_name[f.name]["family"] for f in self.local}
        for flat in self._flats() if not self.named_state else ():
            self.optimizer.state[flat] = zero_state(flat, self.config, families.get(id(flat), ""))

    def names_of(self, kind: str) -> list[str]:
        """The parameters that have a kind: all of them, but for a moment of one family alone (optim/muon.py)."""
        if kind in self.named_state:
            return [f.name for f in self.local if self.optimizer.state[f.flat].get(kind) is not None]
        if kind not in self.moments:
            return self.names
        return [name for name in self.names if kind in moments(self.config, self.groups_by_name[name]["family"])]

    def view(self, fragment: Fragment, kind: str) -> Tensor:
        """The fragment's part of `weights`, of a moment or of an average, (n,)."""
        if kind == "weights":
            return fragment.weight
        # Averages are kept by name, moments by the flat tensor that the optimiser steps, of which this is a part.
        if kind in self.averages.kinds:
            return self.averages.tensors[kind][fragment.name]
        whole: Tensor = self.optimizer.state[fragment.flat][kind]
        return whole.view(-1)[fragment.offset : fragment.offset + fragment.weight.numel()]

    def square_norms(self, tensors: list[Tensor]) -> Tensor:
        """Squared 2-norms per parameter, float64 (len(names),), of one tensor per local fragment, over all ranks."""
        return self._combine(square_sums, tensors, dist.ReduceOp.SUM)

    def sums(self, fragments: Iterable[Iterable[Tensor]]) -> Tensor:
        """Sum of the elements per parameter, float64 (len(names),), of the tensors of each local fragment, over all ranks."""
        found = [torch.stack([part.sum(dtype=torch.float64) for part in parts]).sum() for parts in fragments]
        return self._combine(torch.stack, found, dist.ReduceOp.SUM)

    def maxima(self, tensors: list[Tensor]) -> Tensor:
        """Largest finite magnitude per parameter, float64 (len(names),), of one tensor per local fragment, over all ranks."""
        return self._combine(
            lambda found: torch.stack([t.nan_to_num(0, 0, 0).abs().amax().double() for t in found]),
            tensors,
            dist.ReduceOp.MAX,
        )

    def nonfinite(self, tensors: list[Tensor]) -> Tensor:
        """Elements per parameter that are not finite, float64 (len(names),)."""
        return self._combine(
            lambda found: torch.stack([t.isfinite().logical_not().sum().double() for t in found]),
            tensors,
            dist.ReduceOp.SUM,
        )

    def _combine(self, reduce: Callable[[list[Tensor]], Tensor], tensors: list[Tensor], op: Any) -> Tensor:
        """`reduce` over the local fragments' tensors, (len(names),), combined over the ranks that share parameters."""
        found = torch.zeros(len(self.names), dtype=torch.float64, device=self.ds.device)
        if tensors:
            found[self._index] = reduce(tensors)
        if self.sharded:
            over_ranks(found, op)
        return found

    def gradients(self) -> list[Tensor]:
        return [fragment.gradient() for fragment in self.local]

    def zero_gradients(self) -> None:
        """Zero what the step would apply, and what BF16_Optimizer holds of other ranks' pieces and would look at."""
        torch._foreach_zero_(self.gradients())
        zero.zero_other_gradients(self.ds)

    def weights(self) -> list[Tensor]:
        return [fragment.weight for fragment in self.local]

    def pieces(self) -> dict[str, Tensor]:
        """The same by name."""
        return {fragment.name: fragment.weight for fragment in self.local}

    @property
    def kinds(self) -> tuple[str, ...]:
        """What there is of every parameter, each as a `view`: what a checkpoint holds. RuntimeError if the state has more."""
        if self.config.is_dotted and (
            more := {k for s in self.optimizer.state.values() for k in s} - set(self.named_state)
        ):
            raise RuntimeError(
                f"the state of {self.config.algorithm} has {sorted(more)} too, which it had not when it was tried out"
            )
        return ("weights", *self.moments, *self.named_state, *self.averages.kinds, *self.beside())

    def beside(self) -> dict[str, dict[str, Tensor]]:
        """What there is beside the parameters, by kind, whole and the same on every rank: the network's running statistics and
        frozen head, K-FAC's factors."""
        state = self.ds.module.state_dict(keep_vars=True)
        buffers = {name: tensor for name, tensor in state.items() if name not in self.shapes}
        curvature = self.optimizer.state_of_layers() if isinstance(self.optimizer, KFAC) else {}
        return {kind: tensors for kind, tensors in ((BUFFERS, buffers), (CURVATURE, curvature)) if tensors}

    @torch.no_grad()
    def load_beside(self, kind: str, read: Callable[[str], Tensor]) -> None:
        """Set one kind of it from what `read(name)` gives."""
        for name, tensor in self.beside()[kind].items():
            tensor.copy_(read(name))

    @contextmanager
    def swapped(self, kind: str) -> Iterator[None]:
        """Let the forward pass see another kind for a while; afterwards every bit is what it was. Collective."""
        # Copied, not computed back: the weights must come back to the bit.
        kept = [weight.clone() for weight in self.weights()]
        try:
            self._copy_to_weights([self.view(fragment, kind) for fragment in self.local])
            yield
        finally:
            self._copy_to_weights(kept)

    @torch.no_grad()
    def begin(self, kind: str) -> None:
        """Let an average begin anew at the weights as they are."""
        for fragment in self.local:
            self.view(fragment, kind).copy_(fragment.weight)

    @torch.no_grad()
    def _copy_to_weights(self, tensors: list[Tensor]) -> None:
        for weight, tensor in zip(self.weights(), tensors, strict=True):
            weight.copy_(tensor)
        self.refresh()

    @cached_property
    def groups_of_pieces(self) -> list[dict[str, Any]]:
        """The optimiser's group of each local fragment. The groups are the optimiser's own, so their λ and η are those of now."""
        return [self.groups_by_name[fragment.name] for fragment in self.local]

    @cached_property
    def groups_by_name(self) -> dict[str, dict[str, Any]]:
        """The same of each parameter, by its name."""
        return {name: group for group in self.optimizer.param_groups for name in group["parameter_names"]}

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Elements of each whole parameter."""
        return {name: shape.numel() for name, shape in self.shapes.items()}

    def by_name(self, values: Tensor) -> dict[str, float]:
        """Of one number a parameter (len(names),): by the parameter's name."""
        return dict(zip(self.names, values.tolist(), strict=True))

    @property
    def optimizer_step(self) -> int:
        """Adam's step count, on which every piece of state must agree; 0 for an optimiser that counts none."""
        steps = {int(state["step"]) for state in self.optimizer.state.values() if "step" in state}
        if len(steps) > 1:
            raise RuntimeError(f"the optimiser's state disagrees about its step: {sorted(steps)}")
        return steps.pop() if steps else 0

    @optimizer_step.setter
    def optimizer_step(self, step: int) -> None:
        for state in self.optimizer.state.values() if not self.named_state else ():
            if "step" in state:
                state["step"].fill_(step)

    def gather(self, kind: str, to: int) -> dict[str, Tensor] | None:
        """Whole tensors of one kind, by name, on the CPU of rank `to`; None on the other ranks. Moves bytes, no sums."""
        if kind in (BUFFERS, CURVATURE):
            whole = {name: tensor.cpu().clone() for name, tensor in self.beside().get(kind, {}).items()}
            return whole if dist.get_rank() == to else None
        # One parameter at a time, so that no rank but `to` holds more than a piece of it beside its own.
        mine, rank = {f.name: f for f in self.local}, dist.get_rank()
        whole = {}
        for name in self.names_of(kind):
            if kind in self.named_state:
                if rank == to:
                    whole[name] = to_saved(self.optimizer.state[mine[name].flat][kind])
            elif rank == to:
                pieces = []
                for owner, _, length in sorted(self.owners[name], key=lambda piece: piece[1]):
                    if owner == rank or not self.sharded:
                        pieces.append(self.view(mine[name], kind).detach())
                    else:  # sent as bytes: not every backend knows bfloat16
                        dtype = self._dtype(kind)
                        pieces.append(torch.empty(length, dtype=dtype, device=self.ds.device))
                        dist.recv(pieces[-1].view(torch.uint8), owner)
                whole[name] = torch.cat(pieces).cpu().view(self.shapes[name])
            elif name in mine and self.sharded:
                dist.send(self.view(mine[name], kind).detach().contiguous().view(torch.uint8), to)
        return whole if rank == to else None

    @torch.no_grad()
    def load(self, kind: str, read: Callable[[str], Tensor]) -> None:
        """Copy this rank's pieces out of whole tensors, which `read(name)` gives."""
        having = set(self.names_of(kind))
        for fragment in self.local:
            if fragment.name not in having:
                continue
            whole = read(fragment.name).view(-1)
            self.view(fragment, kind).copy_(whole[fragment.start : fragment.start + fragment.weight.numel()])

    def load_by_name(self, kind: str, names: Iterable[str], read: Callable[[str], Tensor]) -> None:
        """One value of the state of torch.optim.NAME, of the parameters that have it."""
        flats = {fragment.name: fragment.flat for fragment in self.local}
        for name in names:
            self.optimizer.state[flats[name]][kind] = from_saved(read(name), self.named_state[kind])

    @torch.no_grad()
    def refresh(self) -> None:
        """Make the forward pass see the masters: DeepSpeed keeps its own copies at stages 1–3."""
        zero.refresh(self.ds, self.stage)

    @torch.no_grad()
    def check_forward(self, read: Callable[[str], Tensor]) -> None:
        """Compare the weights the forward pass sees with whole tensors; RuntimeError names the first that differs."""
        for name, parameter in self.ds.module.named_parameters():
            with zero.whole(parameter, self.stage):
                if not torch.equal(parameter.detach().cpu(), read(name).to(parameter.dtype)):
                    raise RuntimeError(f"after loading, the forward pass sees other values of {name} than were loaded")

    def dtypes(self) -> dict[str, str]:
        """Dtypes in the columns of configs/precision.py: weights, masters and moments read off the live tensors.

        Those of gradients, accumulation and reduction are what DeepSpeed is configured for; engine/engine.py reads the
        first two off the first update.
        """
        model_dtype, accumulation = self.ds.get_data_types()
        return {
            "weights": dtype_name(next(self.ds.module.parameters()).dtype),
            "masters": dtype_name(self._dtype("weights")),
            "gradients": dtype_name(model_dtype),
            "accumulation": dtype_name(accumulation),
            "reduction": dtype_name(self.ds.communication_data_type),
            **({"moments": dtype_name(self._dtype(self.moments[0]))} if self.moments else {}),
        }

    def _dtype(self, kind: str) -> torch.dtype:
        if kind in self.averages.kinds:
            return torch.float32
        flats = self._flats()
        if kind == "weights":
            return flats[0].dtype
        return next(state[kind].dtype for flat in flats if kind in (state := self.optimizer.state[flat]))

    def _flats(self) -> list[Tensor]:
        return zero.flat_masters(self.ds, self.stage, self.optimizer)
