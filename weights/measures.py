"""What P1 and P2 measure of a classifier's weights: Jacobians, noise, Hessian, ‖θ‖ in two metrics. Of checkpoints and runs.

    python -m weights.measures RUN[@STEP] … [--weights ema_0.999] [--images N] [--draws D | --exact] [--seed S]
    python -m weights.measures RUN@all --only jacobian,noise,hessian     all checkpoints of a run; the Hessian is not the default
    python -m weights.measures RUN --only gauss_newton,fisher,input_jacobian --by-layer      P2's, and ‖w‖ of each layer
    python -m weights.measures RUN --data DIR                            where the run's data lies now

Prints one JSON object a checkpoint. With `measures.every` a run has the same columns in metrics.jsonl:

    measure/loss, measure/objective      mean cross-entropy ℓ of these images, and ℓ + ½λ‖w‖², λ as configured by group (nats)
    measure/norm                         ‖w‖ of the trainable weights; `measure/norm@LAYER` by layer
    measure/jacobian_norm                mean over images of ‖∂logits/∂w‖_F, P1's; of an estimate too small by `jacobian_bias`
    measure/jacobian_bias                about how much, ≤ 0; not where exact or of one draw
    measure/jacobian_square              mean of its square: without bias also where it is an estimate
    measure/noise_scale                  σ² = E‖softmax − onehot‖²
    measure/gradient_noise               E‖g − ḡ‖² of one image's gradient of ℓ
    measure/noise_ratio                  that over the loss: Proposition 2's c
    measure/hessian_trace                of ℓ, over TRACE_VECTORS random vectors
    measure/hessian_top                  its largest eigenvalue, and `hessian_residual` ‖Hx − value·x‖ of its vector x
    measure/gauss_newton_norm            ‖θ‖²_G = θᵀE[JᵀJ]θ (a square, as P2 writes it), and `gauss_newton_norm_kfac` K-FAC's form
    measure/fisher_norm                  θᵀFθ, labels of the model's own distribution: the expectation over classes, no draw
    measure/fisher_norm_empirical        the same form with the data's labels, which is no Fisher
    measure/input_jacobian_norm          mean over images of ‖∂logits/∂x‖_F; `_bias` and `input_jacobian_square` as above
    measure/gauss_newton_norm@LAYER      by layer, of θ_l alone; so the K-FAC form and both Fishers

`…_error` beside a column is its standard error: over images; of the trace over vectors. Sources and formulas: weights/jacobian.py,
noise.py, hessian.py, norms.py, gauss_newton.py, input_jacobian.py. All in float32 whatever the run's precision, batch
normalisation by its running statistics; those of an average are estimated anew. The images are training images without
augmentation (data/image_loader.balanced): the same ones for every checkpoint and run of the same data, and the same random
vectors for one seed.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor

from configs.errors import InputError
from configs.groups import decay_groups
from configs.images import ImageData
from configs.running import Measures
from configs.schema import RunConfig
from configs.tensors import tensor_table
from data.any_manifest import AnyManifest
from data.image_loader import balanced
from data.image_manifest import ImageManifest
from record.checkpoints import complete, step_of
from record.metrics import encode_row
from record.run import RunFolder
from weights import gauss_newton, hessian, input_jacobian, jacobian, noise
from weights.frozen import Batches, Frozen, freeze
from weights.norms import norm, objective
from weights.on_images import to_evaluate
from weights.read import Chosen, choose, choose_device, config_with_data

BATCH = 100  # images of one graph of the Hessian: what bounds its memory
TRACE_VECTORS = 10
TOP_TOLERANCE = 1e-2  # of the residual; the eigenvalue itself errs by about its square
DEFAULT = Measures()
ALL = "@all"

Measurer = Callable[[dict[str, Tensor], bool], dict[str, float]]


@dataclass(frozen=True)
class Asked:
    """What is measured. `draws`: random vectors of an image's Jacobians, or exact; `seed`: of all random vectors; `by_layer`: ‖w‖
    and the norms of METRICS of each layer too."""

    only: tuple[str, ...]
    draws: int | Literal["exact"]
    seed: int = 0
    by_layer: bool = False


METRICS = ("gauss_newton", "fisher")
KINDS = ("jacobian", "noise", "hessian", *METRICS, "input_jacobian")


def measure(
    config: RunConfig,
    manifest: AnyManifest,
    weights: dict[str, Tensor],
    averaged: bool,
    batches: Batches,
    asked: Asked,
    device: torch.device,
    progress: bool = True,
) -> dict[str, float]:
    """The columns, of weights with their buffers. `averaged`: as weights.on_images.to_evaluate. Leaves torch's own draws alone.

    Under optim.decay_rule sphere an average is brought back onto the sphere, and its own ‖w‖ is `norm`.
    """
    # To build a network draws its first weights, which are then overwritten.
    groups = decay_groups(tensor_table(config.model), config.optim)
    trained = [name for names, _ in groups.values() for name in names]
    own = {name: weights[name] for name in trained}
    size = norm(own)
    if averaged and config.optim.decay_rule == "sphere":
        # A mean of points on the sphere lies inside it, deeper at a larger η, and there the same function is steeper.
        weights = weights | {name: weights[name] / size for name in trained}
    with torch.random.fork_rng(devices=[]):
        network = freeze(to_evaluate(config, manifest, weights, averaged, device))
    with _float32_products():
        scale = noise.noise_scale(network, batches, progress)
        found = {"loss": scale.loss, "objective": objective(scale.loss, network.parameters, groups), "norm": size}
        for layer, names in gauss_newton.layers(network).items() if asked.by_layer else ():
            found[f"norm@{layer}"] = norm({name: own[name] for name in names})
        if "jacobian" in asked.only:
            found |= _jacobian(jacobian, network, batches, asked, progress)
        if "noise" in asked.only:
            each = noise.gradient_noise(network, batches, progress=progress)
            found |= {"noise_scale": scale.scale, "noise_scale_error": scale.error}
            found |= {"gradient_noise": each.of_one, "gradient_noise_error": each.error}
            # A loss that has become 0 has no ratio, and a run goes on.
            found["noise_ratio"] = each.of_one / scale.loss if scale.loss > 0 else math.nan
        if "hessian" in asked.only:
            found |= _hessian(network, batches, asked.seed, progress)
        if set(METRICS) & set(asked.only):
            found |= gauss_newton.columns(network, batches, asked.only, asked.by_layer, progress)
        if "input_jacobian" in asked.only:
            theirs = _jacobian(input_jacobian, network, batches, asked, progress)
            found |= {f"input_{name}": value for name, value in theirs.items()}
    return {f"measure/{name}": value for name, value in found.items()}


def _jacobian(of: ModuleType, network: Frozen, batches: Batches, asked: Asked, progress: bool) -> dict[str, float]:
    if asked.draws == "exact":
        norms = of.exact(network, batches, progress=progress)
    else:
        norms = of.estimate(network, batches, asked.draws, asked.seed, progress=progress)
    found = {"jacobian_norm": norms.norm, "jacobian_norm_error": norms.norm_error}
    found |= {"jacobian_square": norms.mean_square, "jacobian_square_error": norms.error}
    return found | ({"jacobian_bias": norms.bias} if not norms.exact and norms.squares.shape[1] > 1 else {})


def _hessian(network: Frozen, batches: Batches, seed: int, progress: bool) -> dict[str, float]:
    trace = hessian.trace(network, batches, TRACE_VECTORS, seed, progress)
    try:
        top = hessian.top_eigenvalue(network, batches, seed, TOP_TOLERANCE, progress=progress)
    except torch.linalg.LinAlgError:  # products that are not finite: nothing to measure, and no end of a run
        top = hessian.Top(math.nan, math.nan, 0, False)
    found = {"hessian_trace": trace.value, "hessian_trace_error": trace.error}
    return found | {"hessian_top": top.value, "hessian_residual": top.residual}


@contextmanager
def _float32_products() -> Iterator[None]:
    """Within, no TF32: measures are differences of large sums."""
    before = torch.backends.fp32_precision
    torch.backends.fp32_precision = "ieee"
    try:
        yield
    finally:
        torch.backends.fp32_precision = before


def measured_images(config: RunConfig, manifest: AnyManifest, count: int | None) -> Batches:
    """The images, of which None is the default's number or all where there are fewer. InputError for a run on tokens, or more than
    the run trains on."""
    if not isinstance(manifest, ImageManifest) or not isinstance(config.data, ImageData):
        raise InputError(
            f"{config.name} is a run on tokens, and these are measures of a classifier of images: a Jacobian of all logits, an "
            "example a gradient. Probes measure a run on tokens (log.probe_every, log.noise_scale)"
        )
    there = config.data.train_images or manifest.train.images
    count = min(DEFAULT.images, there) if count is None else count
    pixels, labels = balanced(config.data.path, manifest, count, config.data.train_images)
    halves = (torch.from_numpy(half).split(BATCH) for half in (pixels, labels))
    return list(zip(*halves, strict=True))


def measurer(config: RunConfig, manifest: AnyManifest, device: torch.device) -> Measurer:
    """What a run with measures.every calls (engine/training.py), with whole weights and buffers, and whether they are an average's.

    InputError as `measured_images`.
    """
    fields = config.measures
    # jacobian and noise have no field: a run that measures has them
    asked = Asked(tuple(kind for kind in KINDS if getattr(fields, kind, True)), fields.draws, by_layer=fields.by_layer)
    batches, shown = measured_images(config, manifest, fields.images), sys.stderr.isatty()
    return lambda weights, averaged: measure(config, manifest, weights, averaged, batches, asked, device, shown)


def addressed(addresses: Sequence[str]) -> list[Chosen]:
    """The checkpoints that these name, RUN@all for all of a run. InputError for one that is not there or damaged."""
    chosen: list[Chosen] = []
    for address in addresses:
        if not address.endswith(ALL):
            chosen.append(choose(address))
            continue
        run = address.removesuffix(ALL)
        steps = [step_of(path) for path in complete(RunFolder(Path(run)).checkpoints)]
        if not steps:
            raise InputError(f"{run} has no complete checkpoint")
        chosen += [choose(f"{run}@{step}") for step in steps]
    return chosen


def rows(
    addresses: Sequence[str], kind: str, images: int | None, asked: Asked, data: Path | None
) -> Iterator[dict[str, object]]:
    """What `main` prints, a checkpoint at a time. InputError for what cannot be measured."""
    for one in addressed(addresses):
        config, manifest = config_with_data(one.run, data)
        batches = measured_images(config, manifest, images)
        weights = {**one.tensors(kind), **one.buffers()}
        found = measure(config, manifest, weights, kind != "weights", batches, asked, choose_device())
        yield encode_row(
            {
                "run": str(one.run.path),
                "step": one.steps[0],
                "weights": kind,
                "images": sum(len(labels) for _, labels in batches),
                "draws": asked.draws,
                "seed": asked.seed,
                **found,
                "left_out": [{"checkpoint": str(path), "why": why} for path, why in one.left_out],
            }
        )


def parse_only(text: str) -> tuple[str, ...]:
    """The measures of `--only jacobian,hessian`. InputError for another word."""
    words = tuple(text.split(","))
    if unknown := [word for word in words if word not in KINDS]:
        raise InputError(f"--only {text}: there is no {unknown[0]!r}; there are {', '.join(KINDS)}, commas between")
    return words


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m weights.measures", description="Measures of a classifier's weights."
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder, FOLDER@STEP, or FOLDER@all")
    parser.add_argument("--weights", default="weights", metavar="KIND", help="an average instead: ema_0.999")
    images = f"training images; default: {DEFAULT.images}, or all where there are fewer"
    parser.add_argument("--images", type=_at_least_one, metavar="N", help=images)
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--draws", type=_at_least_one, default=DEFAULT.draws, metavar="D", help="vectors of an image's Jacobians"
    )
    how.add_argument(
        "--exact", action="store_true", help="the exact Jacobians: a backward pass for each class and image"
    )
    parser.add_argument("--only", default="jacobian,noise", metavar="KIND,…", help=f"of {', '.join(KINDS)}")
    parser.add_argument("--by-layer", action="store_true", help="‖w‖, gauss_newton and fisher of each layer too")
    parser.add_argument("--seed", type=_from_zero, default=0, metavar="S", help="of the random vectors")
    parser.add_argument("--data", type=Path, metavar="DIR", help="where the run's data lies now; other data is refused")
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(levelname)s: %(message)s")
    try:
        only = parse_only(args.only)
        asked = Asked(only, "exact" if args.exact else args.draws, args.seed, args.by_layer)
        for row in rows(args.runs, args.weights, args.images, asked, args.data):
            print(json.dumps(row), flush=True)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) < 1 << 31:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no whole number from 1 up")
    return int(text)


def _from_zero(text: str) -> int:
    if not text.isdecimal() or int(text) >= 1 << 63:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no whole number from 0 to 2^63 − 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
