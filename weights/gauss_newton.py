"""‖θ‖² of the trainable parameters in the Gauss–Newton and the Fisher metric, of the whole network and of each layer alone.

P2 (Zhang et al., "Three Mechanisms of Weight Decay Regularization", arXiv 1810.12281) reads weight decay under K-FAC as a penalty
on these. With J (K, P) the Jacobian of one example's logits z, p = softmax(z), and u = Jθ (K,), how z moves along θ itself:

    ‖θ‖²_G = θᵀ E[JᵀJ] θ                    = E‖u‖²            Gauss–Newton, output Hessian I (a normal predictive distribution)
    θᵀFθ   = θᵀ E[Jᵀ(diag p − ppᵀ)J] θ      = E[Var_{k∼p} u_k] Fisher, labels of the model's own distribution
    θᵀF̂θ   = E[(∇ℓ·θ)²]                     = E[(u_y − Σ p_k u_k)²]  "empirical" Fisher, labels of the data

So one derivative along θ an example has all three, exactly. Labels that are sampled from p have the second as
their mean; here the expectation over classes is taken whole, and no draw's noise is in it. The third is another quantity: it
vanishes with the training loss. E is over the measured images. P2's lemmas, for ReLU networks of L hidden layers without biases
or normalisation: u = (L + 1)·z, so that ‖θ‖²_G = (L + 1)²·E‖z‖². A layer alone: the derivative along θ_l, weight and bias of one
module, all other parameters held. Layers' values add up to no whole: their cross terms are in it.

Shapes: n examples, K logits, P parameters, T positions of a convolution's outputs (1 of a linear map), D outputs of a layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from weights.frozen import Batches, Frozen, chunks

TOGETHER = 100  # examples of one pass: what bounds its memory


@dataclass(frozen=True)
class Along:
    """Of each example: `moved` u = Jθ and `logits` z, (n, K) float64 on the CPU; `targets` (n,)."""

    moved: Tensor
    logits: Tensor
    targets: Tensor

    @property
    def gauss_newton(self) -> Tensor:
        """‖u‖² of each example, (n,); its mean is ‖θ‖²_G."""
        return self.moved.square().sum(1)

    @property
    def fisher(self) -> Tensor:
        """Var of u_k over k ∼ softmax(z), (n,); its mean is θᵀFθ."""
        p = self.logits.softmax(1)
        return (p * (self.moved - self._mean(p)).square()).sum(1)

    @property
    def fisher_empirical(self) -> Tensor:
        """(∇ℓ·θ)² with the data's own label, (n,)."""
        own = self.moved.gather(1, self.targets[:, None])
        return (own - self._mean(self.logits.softmax(1))).square()[:, 0]

    def _mean(self, p: Tensor) -> Tensor:
        return (p * self.moved).sum(1, keepdim=True)


def layers(network: Frozen) -> dict[str, list[str]]:
    """Each module's own trainable parameters by its name, in the network's order."""
    found: dict[str, list[str]] = {}
    for name in network.parameters:
        found.setdefault(name.rpartition(".")[0], []).append(name)
    return found


def along(network: Frozen, batches: Batches, names: list[str] | None = None, progress: bool = True) -> Along:
    """How the logits move along the parameters `names`, of which None is all. Exact, a backward pass through a backward pass.

    Jᵀv is linear in v, so the derivative of θ·Jᵀv by v is Jθ, whatever v. A forward derivative (torch.func.jvp) has the same values
    in half the time, but ZeRO stage 3 of DeepSpeed 0.19 puts a linear map of its own in torch's place, which has none.
    """
    chosen = list(network.parameters) if names is None else names
    moved, logits, labels = [], [], []
    for inputs, targets in chunks(network, batches, TOGETHER, "logits along θ", progress):
        with torch.enable_grad():
            weights = {name: p.clone().requires_grad_() for name, p in network.parameters.items()}
            z = network.logits(weights, inputs)  # (B, K)
            v = torch.ones_like(z, requires_grad=True)
            pulled = torch.autograd.grad(z, [weights[name] for name in chosen], v, create_graph=True)
            along_theta = sum((g * network.parameters[name]).sum() for name, g in zip(chosen, pulled, strict=True))
        # no example's logits depend on another's row of v
        (u,) = torch.autograd.grad(along_theta, v)
        moved.append(u.double().cpu())
        logits.append(z.detach().double().cpu())
        labels.append(targets.cpu())
    return Along(torch.cat(moved), torch.cat(logits), torch.cat(labels))


def kronecker(network: Frozen, batches: Batches, progress: bool = True) -> dict[str, float]:
    """K-FAC's form of ‖θ_l‖²_G, for each linear map and convolution: θ_lᵀ(A ⊗ S)θ_l, with the expectation over examples of each
    factor by itself. Its whole is their sum, for K-FAC has no cross terms between layers; gains have no such form and none here.

    A = E[Σ_t āāᵀ] of the inputs (ā: with a 1 where there is a trainable bias), S = E[(1/T)·Σ_t Σ_k g gᵀ] with g = ∂z_k/∂s of the
    outputs s (Martens and Grosse 2015; of convolutions Grosse and Martens 2016). With W̄ the layer's weight and bias the form is
    tr(W̄AW̄ᵀS), and W̄ā is s: so E[Σ_t ssᵀ] (D, D) stands for all of W̄AW̄ᵀ. Exact for deep linear networks, whose g are constants.
    """
    measured = {name: m for name, m in _maps(network) if f"{name}.weight" in network.parameters}
    sums: dict[str, list[Tensor]] = {}
    count = 0
    for inputs, _ in chunks(network, batches, TOGETHER, "K-FAC's factors", progress):
        count += len(inputs)
        with _outputs(measured) as seen, torch.enable_grad():
            weights = {name: p.clone().requires_grad_() for name, p in network.parameters.items()}
            logits = network.logits(weights, inputs)
            outputs = [seen[name] for name in measured]
            rows = [torch.autograd.grad(z.sum(), outputs, retain_graph=True) for z in logits.unbind(1)]
        for i, name in enumerate(measured):
            s = _positions(outputs[i].detach() - _held(network, name, measured[name]))
            g = [_positions(row[i]) for row in rows]
            second = torch.einsum("bdt,bet->de", s, s)
            sensitivity = sum(torch.einsum("bdt,bet->de", one, one) / one.shape[2] for one in g)
            old = sums.get(name, [torch.zeros_like(second), torch.zeros_like(second)])
            sums[name] = [old[0] + second, old[1] + sensitivity]
    # both are symmetric, so the trace of the product is the sum of the elements' products
    return {name: (a * s).sum().item() / count**2 for name, (a, s) in sums.items()}


def columns(
    network: Frozen, batches: Batches, kinds: Iterable[str], by_layer: bool, progress: bool = True
) -> dict[str, float]:
    """What weights/measures.py writes of these: of `kinds` "gauss_newton" and "fisher", a layer's behind an @."""
    found: dict[str, float] = {}
    for layer, names in {"": None, **(layers(network) if by_layer else {})}.items():
        one, at = along(network, batches, names, progress), f"@{layer}" if layer else ""
        if "gauss_newton" in kinds:
            found |= _mean("gauss_newton_norm", at, one.gauss_newton)
        if "fisher" in kinds:
            found |= _mean("fisher_norm", at, one.fisher) | _mean("fisher_norm_empirical", at, one.fisher_empirical)
    if "gauss_newton" in kinds:
        forms = kronecker(network, batches, progress)
        found["gauss_newton_norm_kfac"] = math.fsum(forms.values())
        if by_layer:
            found |= {f"gauss_newton_norm_kfac@{name}": value for name, value in forms.items()}
    return found


def _mean(name: str, at: str, values: Tensor) -> dict[str, float]:
    """Over examples; of the whole with its standard error."""
    error = {} if at else {f"{name}_error": (values.std() / len(values) ** 0.5).item()}
    return {f"{name}{at}": values.mean().item(), **error}


def _maps(network: Frozen) -> list[tuple[str, nn.Linear | nn.Conv2d]]:
    """Linear maps and convolutions by the names that their parameters have."""
    found = network.network.get_submodule("model").named_modules()
    return [(name, module) for name, module in found if isinstance(module, nn.Linear | nn.Conv2d)]


def _held(network: Frozen, name: str, module: nn.Linear | nn.Conv2d) -> Tensor | float:
    """The part of a layer's outputs that is no parameter's: a bias that is not trained."""
    if module.bias is None or f"{name}.bias" in network.parameters:
        return 0.0
    bias = module.bias.detach()
    return bias if isinstance(module, nn.Linear) else bias[:, None, None]


def _positions(outputs: Tensor) -> Tensor:
    """(B, D) or (B, D, H, W) → (B, D, T) float64"""
    return outputs.double().reshape(*outputs.shape[:2], -1)


@contextmanager
def _outputs(modules: dict[str, nn.Linear | nn.Conv2d]) -> Iterator[dict[str, Tensor]]:
    """Within, a forward pass leaves the outputs of these modules here."""
    seen: dict[str, Tensor] = {}

    def keep(name: str, output: Tensor) -> None:
        assert name not in seen, f"{name} works twice in one pass: its factors are of one place"
        seen[name] = output

    handles = [
        module.register_forward_hook(lambda _module, _inputs, output, name=name: keep(name, output))
        for name, module in modules.items()
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
