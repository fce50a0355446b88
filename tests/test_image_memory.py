"""The memory of a micro-batch of images: what is counted against what a forward and backward pass holds."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from configs.image_cost import image_activation_bytes
from configs.images import ImageModel
from engine.memory import CLEAR_REFS
from tests.processes import ROOT

MEASURE = """
import re, sys, torch
from engine.memory import STATUS, forget_peak, peak_bytes
from configs.images import ImageModel
from model.classifier import Classifier
torch.set_num_threads(1)
config = ImageModel.model_validate_json(sys.argv[1])
autocast = torch.bfloat16 if sys.argv[2] == "bf16-mixed" else None
model = Classifier(config, [0.0] * config.channels, [1.0] * config.channels, autocast)
model.init_weights(0)
def step(count):
    shape = (count, config.channels, config.image_size, config.image_size)
    model(torch.zeros(shape, dtype=torch.uint8), torch.zeros(count, dtype=torch.long)).backward()
step(2)  # gradients are there now, and kernels are made
forget_peak(torch.device("cpu"))
before = int(re.search(r"VmRSS:\\s+(\\d+) kB", STATUS.read_text())[1]) * 1024
step(int(sys.argv[3]))
print(peak_bytes(torch.device("cpu")) - before)
"""
CASES = [("resnet18", "affine", "fp32"), ("resnet18", "affine", "bf16-mixed"), ("resnet32", "plain", "fp32"),
         ("vgg16", "none", "fp32"), ("vgg16", "affine", "bf16-mixed")]  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not os.access(CLEAR_REFS, os.W_OK), reason="the system does not let the peak be set back")
@pytest.mark.parametrize(("kind", "batchnorm", "precision"), CASES)
def test_activations_are_counted(kind: str, batchnorm: str, precision: str) -> None:
    """Breaks if a micro-batch of images needs more than is counted for it, or half as much again is counted."""
    config = ImageModel(kind=kind, width=16, image_size=32, classes=10, batchnorm=batchnorm)
    command = [sys.executable, "-c", MEASURE, config.model_dump_json(), precision, "64"]
    # Every large tensor is mapped by itself and given back when it is freed: what is resident is what is in use.
    environ = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"}
    ended = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=True)
    measured = int(ended.stdout)
    assert measured <= image_activation_bytes(config, precision, 64) <= 1.5 * measured, measured / 2**20
