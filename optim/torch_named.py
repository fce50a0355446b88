"""Any optimiser of torch by its dotted name (optim.algorithm "torch.optim.NAdam"), at ZeRO stage 0, with the decay done here.

In torch `weight_decay` means one thing here and another there, and Rprop has none. So theirs is 0, and λ acts before their step:
w ← (1 − ηλ)·w where the rule is decoupled, g ← g + λw where it is coupled, in the order and to the bits of torch's AdamW and Adam.
Masters are float32 at stage 0, so that such a decay is not rounded away.

Nothing else about a name is taken on trust: `try_out` steps two small tensors before a run begins (about 20 ms), and refuses, with
the reason, one that decays by itself, does not follow η, or does not go on from its state as a checkpoint has it.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from configs.echo import cut
from configs.errors import InputError
from configs.optimisation import RESERVED
from configs.schema import Optim
from optim.rules import rule_of

ABOUT = "torch.optim's own of that name; decay as the rule says, beside its step"
RATE, DECAY = 0.125, 0.5  # of the trial: 1 − ηλ is a number that float32 has


def moments(config: Optim) -> tuple[str, ...]:
    """None that are like the weights: its state is kept by name, whatever its shape (`try_out`)."""
    return ()


def build(groups: list[dict[str, Any]], config: Optim) -> torch.optim.Optimizer:
    """η is set before each step. InputError where torch has no such optimiser, or refuses the arguments."""
    kind = getattr(torch.optim, config.algorithm.rpartition(".")[2], None)
    if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer):
        raise InputError(f"optim.algorithm {config.algorithm}: torch {torch.__version__} has no such optimiser")
    names = [name for name in inspect.signature(kind).parameters if name not in RESERVED]
    for name in config.arguments:
        if name not in names:
            raise InputError(f"optim.arguments: {config.algorithm} takes no {name}; it takes {', '.join(names)}")
    # A group's own weight_decay of 0 goes before the default of torch's, which is 0.01 for AdamW.
    optimizer: torch.optim.Optimizer = _by_torch(config, lambda: kind(groups, lr=0.0, **config.arguments))
    optimizer.register_step_pre_hook(_decay(rule_of(config).inside))
    return optimizer


def _decay(inside: str) -> Callable[..., None]:
    """What is done before each step, of the rule's part that torch's optimisers do elsewhere."""

    @torch.no_grad()
    def before_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for group in optimizer.param_groups:
            for p in group["params"]:
                # As torch has it: AdamW shrinks the weights and then steps, Adam adds λw to the clipped gradient.
                if inside == "decoupled":
                    p.mul_(1 - group["lr"] * group["decay"])
                elif inside == "coupled":
                    p.grad.add_(p, alpha=group["decay"])

    return before_step


def to_saved(value: Any) -> Tensor:
    """A value of the state as a checkpoint holds it: a tensor on the CPU, of any shape; a number is one of no dimension."""
    # A copy: safetensors refuses tensors that share memory.
    tensor = value.detach() if isinstance(value, Tensor) else torch.tensor(value, dtype=_DTYPES[type(value)])
    return tensor.to("cpu", copy=True).contiguous()


def from_saved(saved: Tensor, example: Any) -> Any:
    """The opposite, by an example of the same name: a number of its kind, or a tensor where it lies."""
    # Some lie on the CPU whatever the weights' device is, as Adam's step.
    return saved.to(example.device, copy=True) if isinstance(example, Tensor) else type(example)(saved.item())


_DTYPES = {bool: torch.bool, int: torch.int64, float: torch.float64}


def try_out(config: Optim, device: torch.device) -> dict[str, Any]:
    """Whether a run can be driven by it; its state by name, an example of each value. InputError with the reason if not."""
    # A start asks twice, before files are written and with the engine. The class is in the key: another may take its name.
    kind = getattr(torch.optim, config.algorithm.rpartition(".")[2], None)
    key = (kind, config.model_dump_json(), device)
    try:
        if key not in _TRIED:
            found = _try_out(config, device)
            _TRIED.clear()
            _TRIED[key] = found
        return dict(_TRIED[key])
    except InputError as error:
        names = _working(device)
        if config.algorithm in names:  # its arguments are at fault
            raise
        raise InputError(f"{error}; these work: {', '.join(names)}") from None


_TRIED: dict[tuple[Any, ...], dict[str, Any]] = {}  # what the last trial of this process found


def _working(device: torch.device) -> list[str]:
    """Every name that torch has and that can be driven."""
    names = []
    for name, kind in sorted(vars(torch.optim).items()):
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer):
            try:
                _try_out(Optim(algorithm=f"torch.optim.{name}", lr=1.0, weight_decay=0.0), device)
            except ValueError:  # refused here, or by the schema already
                continue
            names.append(f"torch.optim.{name}")
    return names


class _Trial:
    """An optimiser over a matrix (4, 3), which decays, and a vector (5,), which does not. No number of it is random."""

    def __init__(self, config: Optim, device: torch.device) -> None:
        self.config, self.taken = config, 0
        self.tensors = [torch.linspace(-1, 1, n, device=device).add_(0.05) for n in (12, 5)]
        self.tensors[0] = self.tensors[0].view(4, 3)
        groups = [{"params": [w.requires_grad_()], "decay": 0.0, "weight_decay": 0.0} for w in self.tensors]
        self.optimizer = build(groups, config)

    def step(self, lr: float, decay: float = 0.0, size: float = 1.0, add: float = 0.0) -> None:
        """One update at η = `lr`, by gradients of `size`; to the matrix's `add` times itself is added."""
        self.taken += 1
        for group, tensor in zip(self.optimizer.param_groups, self.tensors, strict=True):
            n = torch.arange(tensor.numel(), device=tensor.device).view(tensor.shape)
            is_matrix = tensor.dim() > 1
            group["lr"], group["decay"] = lr, decay if is_matrix else 0.0
            tensor.grad = size * torch.cos(n + self.taken)
            if add and is_matrix:
                tensor.grad.add_(tensor.detach(), alpha=add)
        _by_torch(self.config, self.optimizer.step)

    def weights(self) -> list[Tensor]:
        return [tensor.detach().clone() for tensor in self.tensors]

    def state(self) -> list[dict[str, Any]]:
        """Of both tensors, without what is not there yet."""
        found = [self.optimizer.state.get(tensor, {}) for tensor in self.tensors]
        return [{name: value for name, value in state.items() if value is not None} for state in found]


def _try_out(config: Optim, device: torch.device) -> dict[str, Any]:
    """The reasons one after another: each trial begins anew."""
    _check_decay(config, device)
    _check_rate(config, device)
    return _check_state(config, device)


def _check_decay(config: Optim, device: torch.device) -> None:
    """The zero-gradient law: nothing moves at λ = 0, and at λ only the matrix, by the rule's factor and to the bit."""
    name, still = config.algorithm, _Trial(config, device)
    start = still.weights()
    for _ in range(3):
        still.step(RATE, size=0.0)
    if not _equal(start, still.weights()):
        own = ", ".join(name for name in still.optimizer.defaults if name not in RESERVED)
        raise InputError(
            f"optim.algorithm {name} moves weights whose gradient is zero at λ = 0: it has a decay of its own beside "
            f"optim.weight_decay (its arguments: {own})"
        )
    # The same with λ, against a twin that is shrunk, or given λw as its gradient, by hand.
    inside, ours, twin = rule_of(config).inside, _Trial(config, device), _Trial(config, device)
    for _ in range(3):
        ours.step(RATE, DECAY, size=0.0)
        if inside == "decoupled":
            twin.tensors[0].data.mul_(1 - RATE * DECAY)
        twin.step(RATE, size=0.0, add=DECAY if inside == "coupled" else 0.0)
    if not _equal(ours.weights(), twin.weights()):
        raise InputError(
            f"optim.algorithm {name} breaks the zero-gradient law under optim.decay_rule {config.decay_rule}: weights without a "
            "gradient shrink by another factor than λ says"
        )


def _check_rate(config: Optim, device: torch.device) -> None:
    """At η = 0 weights stay, else a schedule would be of another run than the one that is trained."""
    trial = _Trial(config, device)
    for _ in range(2):
        trial.step(RATE)
    before = trial.weights()
    trial.step(0.0)
    if not _equal(before, trial.weights()):
        raise InputError(
            f"optim.algorithm {config.algorithm} moves weights at η = 0: its step sizes are not the η of the update, so optim.lr "
            "and schedule would not say what is trained"
        )


def _check_state(config: Optim, device: torch.device) -> dict[str, Any]:
    """All that it remembers can be saved by name, and it goes on from that as if it had not stopped."""
    name, trial, again = f"optim.algorithm {config.algorithm}", _Trial(config, device), _Trial(config, device)
    settings = _settings(trial)
    for _ in range(3):
        trial.step(RATE)
    examples = {key: value for state in trial.state() for key, value in state.items()}
    for key, value in examples.items():
        # A file of the checkpoint is named for it.
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,60}", str(key)) or key == "weights" or str(key).startswith("ema_"):
            raise InputError(f"{name} keeps {cut(repr(key))} as its state, and no file can have that name")
        if not isinstance(value, Tensor) and type(value) not in _DTYPES:
            raise InputError(f"{name} keeps {key} as its state, a {type(value).__name__}: no tensor and no number")
    # η and λ are set in each update; what else changes in a group, or is kept of no tensor, would be lost.
    if settings != _settings(trial) or set(trial.optimizer.state) - set(trial.tensors):
        raise InputError(f"{name} keeps state that is of no tensor, and checkpoints hold states by tensor")
    for old, new, state in zip(trial.tensors, again.tensors, trial.state(), strict=True):
        new.data.copy_(old)
        again.optimizer.state[new] = {key: from_saved(to_saved(value), value) for key, value in state.items()}
    again.taken = trial.taken
    for _ in range(2):
        trial.step(RATE)
        again.step(RATE)
    if not _equal(trial.weights(), again.weights()):
        raise InputError(
            f"{name} does not go on from its state: it keeps something else, which a resumed run would lack"
        )
    return examples


def _settings(trial: _Trial) -> list[dict[str, str]]:
    return [
        {key: repr(value) for key, value in group.items() if key not in ("params", "lr", "decay")}
        for group in trial.optimizer.param_groups
    ]


def _equal(some: list[Tensor], others: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


def _by_torch(config: Optim, act: Callable[[], Any]) -> Any:
    """Call torch, and turn whatever it raises into an InputError that quotes it."""
    try:
        return act()
    except Exception as error:
        arguments = f" with {', '.join(config.arguments)}" if config.arguments else ""
        text = cut(f"{type(error).__name__}: {error}", 300)
        raise InputError(f"optim.algorithm {config.algorithm}{arguments} cannot be driven here: {text}") from None
