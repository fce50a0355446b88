"""A network for images as the engine trains it: pixels to logits, and the loss.

Shapes: B images, C channels, H height and width, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from configs.images import ImageModel
from configs.tensors import tensor_table
from model.batchnorm import Statistics
from model.mlp import ImageMLP
from model.resnet import PostActivationResNet, PreActivationResNet
from model.vgg import VGG16

BODIES: dict[str, type[nn.Module]] = {
    "resnet18": PreActivationResNet,
    "resnet34": PreActivationResNet,
    "resnet32": PostActivationResNet,
    "vgg16": VGG16,
    "mlp": ImageMLP,
}


class FrozenLinear(nn.Linear):
    """A linear map that is not trained: weight and bias are buffers.

    named_parameters() then lists what is trained and nothing else, as the tensor table does; optimiser and ZeRO never meet it. It
    is drawn from the init seed like a trained one, on every rank, and nothing moves it afterwards. Checkpoints hold it beside the
    running statistics, so that a branch with another init seed has its trunk's.
    """

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__(d_in, d_out)
        for name, parameter in list(self.named_parameters()):
            delattr(self, name)
            self.register_buffer(name, parameter.detach())


class Classifier(nn.Module):
    """The network. `mean` and `deviation` of the training images' pixels by channel, in units of 255: constants.

    `autocast` is the dtype of convolutions and matrix products under bf16-mixed, None otherwise. No part is compiled.

    Autocast lives inside forward because DeepSpeed switches off autocast that surrounds its engine on CUDA.
    """

    mean: Tensor
    deviation: Tensor
    measured = ("loss", "error")  # what by_target gives of each target
    compiled, compiled_modules = False, ()

    def __init__(
        self,
        config: ImageModel,
        mean: Sequence[float],
        deviation: Sequence[float],
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        assert len(mean) == len(deviation) == config.channels
        self.config, self.autocast = config, autocast
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(deviation, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.body = BODIES[config.kind](config)
        self.head = (FrozenLinear if config.scale_invariant else nn.Linear)(self.body.features, config.classes)
        self.statistics = Statistics(self)

    def forward(self, inputs: Tensor, targets: Tensor, statistics: bool = False, by_target: bool = False) -> Tensor:
        """Summed cross-entropy (float32 scalar) of images (B, C, H, H), uint8, and targets (B,); a target of −100 does not count.

        With `statistics`, for probes, float64 (4,): summed cross-entropy, summed log Σ exp(logits), wrong guesses, largest logit.
        With `by_target`, for evaluation, float32 (B, 2): each target's cross-entropy, and 1.0 where the largest logit is another's.
        """
        logits = self.logits(inputs).float()  # (B, K); softmax and loss in float32 in every precision
        if not (statistics or by_target):
            return F.cross_entropy(logits, targets, reduction="sum")
        counted = targets >= 0
        losses = F.cross_entropy(logits, targets, reduction="none")
        wrong = (logits.argmax(-1) != targets) & counted
        if by_target:
            return torch.stack([losses, wrong.float()], 1)
        log_z = logits.logsumexp(-1)[counted]
        largest = logits[counted].max() if counted.any() else losses.new_tensor(-math.inf)
        return torch.stack([losses.double().sum(), log_z.double().sum(), wrong.sum().double(), largest.double()])

    def logits(self, inputs: Tensor) -> Tensor:
        """(B, C, H, H) pixels, uint8 → (B, K). In training the batch's statistics are noted."""
        logits = self.logits_of_normalised(self.normalised(inputs))
        if self.training:
            self.statistics.add()
        return logits

    def re_estimate(self, images: Iterable[Tensor], gather: Callable[[Tensor], Tensor] = lambda notes: notes) -> None:
        """Set the running statistics to those of the weights as they are, over batches of images (model/batchnorm.py)."""
        was_training = self.training
        self.train()
        try:
            self.statistics.re_estimate(lambda batch: len(self.logits(batch)), images, gather)
        finally:
            self.train(was_training)

    def logits_of_normalised(self, inputs: Tensor) -> Tensor:
        """Of `normalised` pixels: what a derivative by the inputs goes through."""
        with self._autocast(inputs.device):
            logits: Tensor = self.head(self.body(inputs))
        return logits

    def normalised(self, inputs: Tensor) -> Tensor:
        """Pixels → mean 0 and deviation 1 in each channel, over the training images."""
        return (inputs.to(self.mean.dtype) / 255 - self.mean) / self.deviation

    def example(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Inputs and targets of two images, which batch normalisation needs, for whoever wants to see a forward pass."""
        shape = (2, self.config.channels, self.config.image_size, self.config.image_size)
        return torch.zeros(shape, dtype=torch.uint8, device=device), torch.zeros(2, dtype=torch.long, device=device)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """He's normal for what a ReLU follows: N(0, 2/d_in) (1502.01852), d_in the inputs of one output. Gains 1, biases 0.

        It keeps the size of activations through a network without normalisation; with one it sets the effective learning rate of
        the first steps, η/‖w‖². (P1's ResNets have torch's default, of a sixth of that variance.) The head, which no ReLU follows,
        gets N(0, 1/(3·d_in)): the variance of torch's default, P1's. Where it is frozen, that stays the scale of the logits.

        Drawn on the CPU in the order of the parameters: the same weights on every device and rank. A frozen head is drawn last, as
        a trained one, so that the seed alone makes it again.
        """
        tensors, generator = tensor_table(self.config), torch.Generator().manual_seed(seed)
        drawn = [(parameter, tensors[name].role, tensors[name].kind) for name, parameter in self.named_parameters()]
        if self.config.scale_invariant:
            drawn += [(self.head.weight, "matrix", "head"), (self.head.bias, "bias", "head")]
        for tensor, role, kind in drawn:
            if role == "matrix":
                variance = (1 / 3 if kind == "head" else 2) / math.prod(tensor.shape[1:])
                tensor.copy_(
                    torch.empty_like(tensor, device="cpu").normal_(0.0, math.sqrt(variance), generator=generator)
                )
            else:
                tensor.fill_(1.0 if role == "gain" else 0.0)

    def _autocast(self, device: torch.device) -> torch.autocast | nullcontext[None]:
        return torch.autocast(device.type, dtype=self.autocast) if self.autocast else nullcontext()
