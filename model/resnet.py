"""ResNets for small images (He et al., 1512.03385 and 1603.05027), as P1 and P2 train them.

Shapes: B images, C channels, H height and width of a feature map. All convolutions are padded, those that begin a stage have
stride 2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from configs.image_tensors import STAGES, block_shapes
from configs.images import ImageModel
from model.batchnorm import batch_norm

FEWEST_LAST = 16  # channels of a network whose feature maps have them last


class PreActivationBlock(nn.Module):
    """x + conv(relu(norm(conv(relu(norm(x)))))). Where the shape changes, a 1 × 1 convolution of the first relu stands for x."""

    def __init__(self, config: ImageModel, d_in: int, d_out: int, stride: int) -> None:
        super().__init__()
        self.norm1 = batch_norm(d_in, config.batchnorm)
        self.conv1 = convolution(config, d_in, d_out, 3, stride)
        self.norm2 = batch_norm(d_out, config.batchnorm)
        self.conv2 = convolution(config, d_out, d_out, 3)
        self.conv2_norm = _extra_norm(config, d_out)
        self.shortcut = convolution(config, d_in, d_out, 1, stride) if d_in != d_out else None
        self.shortcut_norm = _extra_norm(config, d_out) if d_in != d_out else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, H) → (B, C_out, H/stride, H/stride)"""
        y = F.relu(self.norm1(x))
        if self.shortcut is not None:
            x = self.shortcut_norm(self.shortcut(y))
        y = F.relu(self.norm2(self.conv1(y)))
        return x + self.conv2_norm(self.conv2(y))


class PreActivationResNet(nn.Module):
    """resnet18 and resnet34: stem, four stages of 2, 2, 2, 2 or 3, 4, 6, 3 blocks, norm, relu, mean over positions.

    As in P1's code (PreActResNet): a stem of 3 × 3 without a maximum, batch normalisation of the input, and one before the mean.
    P1 calls `resnet34` its post-activation one, of 1,786 parameters more. Without batch normalisation there are biases, and nothing
    in place of it (P1's code has group normalisation there).

    scale_invariant has a plain batch normalisation after every convolution, in shortcuts and after the stem too, so that no layer's
    norm matters. P1's code has one before the convolution of a shortcut, and biases: there only the norm of all weights together
    does not matter.
    """

    def __init__(self, config: ImageModel) -> None:
        super().__init__()
        self.input_norm = batch_norm(config.channels, config.batchnorm)
        self.stem = convolution(config, config.channels, config.width, 3)
        self.stem_norm = _extra_norm(config, config.width)
        shapes = block_shapes(config.width, STAGES[config.kind])
        self.blocks = nn.ModuleList(PreActivationBlock(config, *shape) for shape in shapes)
        self.features = shapes[-1][1]
        self.norm = batch_norm(self.features, config.batchnorm)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, H) → (B, features)"""
        x = self.stem_norm(channels_last(self.stem(self.input_norm(x))))
        for block in self.blocks:
            x = block(x)
        return F.relu(self.norm(x)).mean((2, 3))


class PostActivationBlock(nn.Module):
    """relu(x + norm(conv(relu(norm(conv(x)))))). Where the shape changes, a normalised 1 × 1 convolution stands for x."""

    def __init__(self, config: ImageModel, d_in: int, d_out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = convolution(config, d_in, d_out, 3, stride), batch_norm(d_out, config.batchnorm)
        self.conv2, self.norm2 = convolution(config, d_out, d_out, 3), batch_norm(d_out, config.batchnorm)
        self.shortcut = convolution(config, d_in, d_out, 1, stride) if d_in != d_out else None
        self.shortcut_norm = batch_norm(d_out, config.batchnorm) if d_in != d_out else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, H) → (B, C_out, H/stride, H/stride)"""
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        if self.shortcut is not None:
            x = self.shortcut_norm(self.shortcut(x))
        return F.relu(x + y)


class PostActivationResNet(nn.Module):
    """resnet32: stem, three stages of five blocks, mean over positions; of width 64 P2's "ResNet32 × 4" (its code: resnet32).

    P2's is post-activation. Its TensorFlow pads a convolution of stride 2 at the far edges only, torch at all of them.
    """

    def __init__(self, config: ImageModel) -> None:
        super().__init__()
        self.stem = convolution(config, config.channels, config.width, 3)
        self.stem_norm = batch_norm(config.width, config.batchnorm)
        shapes = block_shapes(config.width, STAGES[config.kind])
        self.blocks = nn.ModuleList(PostActivationBlock(config, *shape) for shape in shapes)
        self.features = shapes[-1][1]

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, H) → (B, features)"""
        x = F.relu(self.stem_norm(channels_last(self.stem(x))))
        for block in self.blocks:
            x = block(x)
        return x.mean((2, 3))


def convolution(config: ImageModel, d_in: int, d_out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Padded; with a bias only where no normalisation would take it away."""
    return nn.Conv2d(d_in, d_out, kernel, stride, padding=kernel // 2, bias=config.batchnorm == "none")


def channels_last(x: Tensor) -> Tensor:
    """A feature map with a position's channels side by side, as every map after it then has them.

    A ResNet18 of width 16 needs a fifth less time so on a CPU, one of width 64 as much as before. Shapes stay as they are. The
    stem's output is the place: an image of one channel is in both orders at once, and its convolution would choose the other.
    """
    # oneDNN's strided 1 × 1 convolution of fewer channels writes outside its memory in the backward pass (oneDNN#6035, seen in
    # torch 2.13.0 as "corrupted double-linked list"): fewer than 8 with AVX2, than 16 with AVX-512. In the other order it does not.
    return x.contiguous(memory_format=torch.channels_last if x.shape[1] >= FEWEST_LAST else torch.contiguous_format)


def _extra_norm(config: ImageModel, channels: int) -> nn.Module:
    """What a pre-activation network has after a convolution: nothing, or a normalisation of its own where no scale shall matter."""
    return batch_norm(channels, config.batchnorm) if config.scale_invariant else nn.Identity()
