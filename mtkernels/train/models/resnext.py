"""ResNeXt-152 32x4d (Xie et al., 1611.05431), the "ResNet-152" of Mean Teacher's ImageNet results."""

from functools import partial

from torch import Tensor, nn

from .network import Network, initialize_convolutions


class ResNeXt152(Network):
    """A stem that divides the resolution by 4, 3 + 8 + 36 + 3 bottlenecks, global average pooling, linear heads.

    Maps [rows, channels, height, width], 224 x 224 in the paper, to logits [rows, classes].
    """

    def __init__(self, classes: int, *, channels: int = 3, heads: int = 1) -> None:
        layers: list[nn.Module] = [
            nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1),
        ]
        before = 64
        for stage, blocks in enumerate((3, 8, 36, 3)):
            inner = 128 * 2**stage
            for block in range(blocks):
                layers.append(Bottleneck(before, inner, stride=2 if stage > 0 and block == 0 else 1))
                before = 2 * inner
        features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        super().__init__(features, partial(nn.Linear, before, classes), heads)
        initialize_convolutions(self)


class Bottleneck(nn.Module):
    """relu(shortcut(x) + branch(x)); the branch is 1x1, 3x3 in 32 groups, 1x1 to twice the inner filters."""

    def __init__(self, channels: int, inner: int, stride: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(channels, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, inner, 3, stride=stride, padding=1, groups=32, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, 2 * inner, 1, bias=False),
            nn.BatchNorm2d(2 * inner),
        )
        self.shortcut: nn.Module = nn.Identity()
        if channels != 2 * inner:
            convolution = nn.Conv2d(channels, 2 * inner, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(2 * inner))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.branch(inputs).add_(self.shortcut(inputs)).relu_()
