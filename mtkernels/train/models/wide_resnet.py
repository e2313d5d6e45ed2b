"""Wide ResNet-28 (Zagoruyko and Komodakis, 1605.07146), the network of most later papers on CIFAR and SVHN."""

from functools import partial

import torch
from torch import Tensor, nn

from .network import Network, initialize_convolutions
from .rows import Dropout


class WideResNet28(Network):
    """Three stages of four pre-activation blocks of 16, 32 and 64 times `widen` filters; dropout; linear heads.

    Maps [rows, channels, height, width], 32 x 32 in the paper, to logits. `dropout` is before the heads; the
    paper's own, between a block's convolutions, is not there.
    """

    def __init__(
        self, classes: int, *, widen: int = 2, channels: int = 3, heads: int = 1, dropout: float = 0.0
    ) -> None:
        layers: list[nn.Module] = [nn.Conv2d(channels, 16, 3, padding=1, bias=False)]
        before = 16
        for filters, stride in ((16 * widen, 1), (32 * widen, 2), (64 * widen, 2)):
            layers += [PreActivationBlock(before, filters, stride)]
            layers += [PreActivationBlock(filters, filters, 1) for _ in range(3)]
            before = filters
        layers += [nn.BatchNorm2d(before), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        features = nn.Sequential(*layers, Dropout(dropout))
        super().__init__(features, partial(nn.Linear, before, classes), heads)
        initialize_convolutions(self)


class PreActivationBlock(nn.Module):
    """x + branch(relu(norm(x))); where the shape changes, a 1x1 convolution of relu(norm(x)) stands for x."""

    def __init__(self, channels: int, filters: int, stride: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.branch = nn.Sequential(
            nn.Conv2d(channels, filters, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(filters),
            nn.ReLU(inplace=True),
            nn.Conv2d(filters, filters, 3, padding=1, bias=False),
        )
        changes = channels != filters or stride != 1
        self.shortcut = nn.Conv2d(channels, filters, 1, stride=stride, bias=False) if changes else None

    def forward(self, inputs: Tensor) -> Tensor:
        active = torch.relu_(self.norm(inputs))
        shortcut = inputs if self.shortcut is None else self.shortcut(active)
        return self.branch(active).add_(shortcut)
