"""A small convolutional network for images of about 8 x 8 pixels."""

from functools import partial

from torch import nn

from .network import Network
from .rows import Dropout


class ConvNet(Network):
    """Two blocks of two 3 x 3 convolutions with a max-pooling between, average pooling, linear heads.

    The shape of the paper's 13-layer network (1703.01780, table 5), cut to images that halve only once. Maps
    [rows, channels, height, width] to logits [rows, classes].
    """

    def __init__(
        self, classes: int, *, channels: int = 1, heads: int = 1, width: int, dropout: float
    ) -> None:
        features = nn.Sequential(
            *_convolution(channels, width),
            *_convolution(width, width),
            nn.MaxPool2d(2),
            Dropout(dropout),
            *_convolution(width, 2 * width),
            *_convolution(2 * width, 2 * width),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            Dropout(dropout),
        )
        super().__init__(features, partial(nn.Linear, 2 * width, classes), heads)


def _convolution(channels: int, filters: int) -> list[nn.Module]:
    return [
        nn.Conv2d(channels, filters, 3, padding=1, bias=False),  # batch norm has the bias
        nn.BatchNorm2d(filters),
        nn.LeakyReLU(0.1, inplace=True),
    ]
