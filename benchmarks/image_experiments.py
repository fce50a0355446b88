"""The tables of P1's and P2's experiments on images: files, runs, and what they cost by FLOPs."""

from __future__ import annotations

from benchmarks.cost_tables import configs_of
from benchmarks.markdown import table
from configs import cost

RATE = 2e13  # FLOP/s that a device is assumed to sustain: small convolutions in TF32 at 128 images a step, not measured
EXPERIMENTS = [  # what, its sweep at P1's scale, and the small one that stands for it
    ("four corners, VGG16 on CIFAR-10", "p1_overtraining_vgg16_cifar10", "small_overtraining"),
    ("four corners, ResNet18 on CIFAR-10", "p1_overtraining_resnet18_cifar10", "small_overtraining"),
    ("four corners, ResNet34 on CIFAR-100", "p1_overtraining_resnet34_cifar100", "small_overtraining"),
    ("test error against η on the sphere", "p1_sphere", "small_sphere"),
    ("average and fine-tuning along a run", "p1_flows", "small_flows"),
    ("grid of η and λ, Tiny ImageNet", "p1_eta_lambda_tiny_imagenet", "small_eta_lambda"),
    ("subsets of CIFAR-5m at fixed iterations", "p1_onepass_cifar5m", "small_onepass_images"),
]
OF_P2 = [  # the same of Three Mechanisms of Weight Decay Regularization (1810.12281)
    ("VGG16, CIFAR-10", "p2_vgg16_cifar10", "small_mechanisms"),
    ("VGG16 without batch normalisation, CIFAR-10", "p2_vgg16_without_bn_cifar10", "small_without_bn"),
    ("ResNet32, crop and flip, CIFAR-10", "p2_resnet32_cifar10", "small_mechanisms"),
    ("VGG16, CIFAR-100", "p2_vgg16_cifar100", "small_mechanisms"),
    ("ResNet32, crop and flip, CIFAR-100", "p2_resnet32_cifar100", "small_mechanisms"),
    ("batches of 2,048: VGG16, CIFAR-10", "p2_large_batch_cifar10", "small_large_batch"),
    ("layer norms, and which layers decay: VGG16, CIFAR-10", "p2_layer_norms_cifar10", "small_layer_norms"),
]


def experiments_on_images() -> str:
    """P1's experiments on images: runs, FLOPs and device-hours, and the small sweep that stands for each."""
    return _experiments(EXPERIMENTS)


def experiments_of_p2() -> str:
    """P2's, in the same columns."""
    return _experiments(OF_P2)


def _experiments(experiments: list[tuple[str, str, str]]) -> str:
    rows = []
    for name, large, small in experiments:
        configs = configs_of(large)
        hours = sum(cost.device_hours(config, RATE) for config in configs)
        flops = f"{hours * 3600 * RATE:.1e}"
        rows.append(
            [name, f"`{large}.json`", len(configs), flops, f"{hours:,.0f}", f"`{small}.json`" if small else "none"]
        )
    columns = ["sweep at the paper's scale", "runs", "FLOPs", "device-hours", "small sweep"]
    return table(["experiment", *columns], rows)
