"""A multilayer perceptron over the pixels of an image: linear, norm, relu, and so on.

The linear maps are torch's own and not model/linear.py's: measures of second derivatives go through this network.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from configs.images import ImageModel
from model.batchnorm import batch_norm


class HiddenLayer(nn.Module):
    """relu(norm(linear(x)))"""

    def __init__(self, config: ImageModel, d_in: int) -> None:
        super().__init__()
        self.linear = nn.Linear(d_in, config.width, bias=config.batchnorm == "none")
        self.norm = batch_norm(config.width, config.batchnorm)

    def forward(self, x: Tensor) -> Tensor:
        """(B, d_in) → (B, width)"""
        return F.relu(self.norm(self.linear(x)))


class ImageMLP(nn.Module):
    """`hidden_layers` layers of `width` units."""

    def __init__(self, config: ImageModel) -> None:
        super().__init__()
        pixels = config.channels * config.image_size**2
        self.layers = nn.ModuleList(HiddenLayer(config, config.width if i else pixels) for i in range(config.depth))
        self.features = config.width

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, H) → (B, features)"""
        x = x.flatten(1)
        for layer in self.layers:
            x = layer(x)
        return x
