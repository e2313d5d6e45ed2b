"""A small convolutional network for images of about 8 x 8 pixels."""

from torch import Tensor, nn


class ConvNet(nn.Module):
    """Two blocks of two 3 x 3 convolutions with a max-pooling between, average pooling, one linear layer.

    The shape of the paper's 13-layer network (1703.01780, table 5), cut to images that halve only once. Maps
    [rows, 1, height, width] to logits [rows, classes].
    """

    def __init__(self, classes: int, *, width: int, dropout: float) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_convolution(1, width),
            *_convolution(width, width),
            nn.MaxPool2d(2),
            nn.Dropout(dropout),
            *_convolution(width, 2 * width),
            *_convolution(2 * width, 2 * width),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(dropout),
        )
        self.classifier = nn.Linear(2 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images))


def _convolution(channels: int, filters: int) -> list[nn.Module]:
    return [
        nn.Conv2d(channels, filters, 3, padding=1, bias=False),  # batch norm has the bias
        nn.BatchNorm2d(filters),
        nn.LeakyReLU(0.1, inplace=True),
    ]
