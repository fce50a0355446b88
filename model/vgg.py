"""VGG16 for small images (Simonyan and Zisserman, 1409.1556, configuration D) with one linear layer at the end, as P2 trains it.

P1's code has two more linear layers of 512 units between the last maximum and the head: `hidden_layers` 2. Without batch
normalisation convolutions have biases, as in both; with it they have none, as in P2's. The maxima are over 2 × 2 and keep what is
left over at the edges (P2's "SAME"), so that images of 28 or 8 pixels pass all five.
"""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F

from configs.image_tensors import VGG16_STAGES, VGG16_WIDTHS
from configs.images import ImageModel
from model.batchnorm import batch_norm
from model.resnet import channels_last, convolution


class VGGLayer(nn.Module):
    """relu(norm(conv(x))), and a maximum over 2 × 2 where a stage ends."""

    def __init__(self, config: ImageModel, d_in: int, d_out: int, ends_stage: bool) -> None:
        super().__init__()
        self.conv, self.norm = convolution(config, d_in, d_out, 3), batch_norm(d_out, config.batchnorm)
        self.ends_stage = ends_stage

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, H) → (B, C_out, H, H), or half that height and width."""
        x = F.relu(self.norm(self.conv(x)))
        return F.max_pool2d(x, 2, ceil_mode=True) if self.ends_stage else x


class VGG16(nn.Module):
    """13 convolutions in five stages, and `hidden_layers` linear ones with biases and no normalisation.

    Without those `features` are all positions that the last maximum leaves: one of a 32 × 32 image.
    """

    def __init__(self, config: ImageModel) -> None:
        super().__init__()
        self.layers, d_in, size = nn.ModuleList(), config.channels, config.image_size
        for count, widths in zip(VGG16_STAGES, VGG16_WIDTHS, strict=True):
            for i in range(count):
                self.layers.append(VGGLayer(config, d_in, widths * config.width, i == count - 1))
                d_in = widths * config.width
            size = math.ceil(size / 2)
        self.features = d_in * size * size
        self.hidden = nn.ModuleList()
        for _ in range(config.depth):
            self.hidden.append(nn.Linear(self.features, VGG16_WIDTHS[-1] * config.width))
            self.features = VGG16_WIDTHS[-1] * config.width

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, H) → (B, features)"""
        for i, layer in enumerate(self.layers):
            x = layer(x) if i else channels_last(layer(x))
        x = x.flatten(1)
        for linear in self.hidden:
            x = F.relu(linear(x))
        return x
