"""The 13-layer convolutional network of the Mean Teacher and Temporal Ensembling papers."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .network import Network
from .rows import DrawsByRow, Dropout
from .weight_norm import WeightNormConv2d, WeightNormLinear


class ConvNet13(Network):
    """Nine convolutions with weight norm and mean-only batch norm, then linear heads of the same kind.

    Maps [rows, channels, height, width], 32 x 32 in the papers and at least 12 x 12, to logits [rows, classes].
    `noise`: standard deviation of Gaussian noise on the input, in training. `normalize`: every image to mean 0
    and variance 1 over all its pixels, before the noise. Call `initialize` with images before training.

    Source: Tarvainen and Valpola, "Mean teachers are better role models" (2017), table 5.
    """

    def __init__(
        self,
        classes: int,
        *,
        channels: int = 3,
        heads: int = 1,
        dropout: float = 0.5,
        noise: float = 0.15,
        normalize: bool = False,
    ) -> None:
        features = nn.Sequential(
            _Input(noise, normalize),
            *_convolution(channels, 128, 3, padding=1),
            *_convolution(128, 128, 3, padding=1),
            *_convolution(128, 128, 3, padding=1),
            nn.MaxPool2d(2),
            Dropout(dropout),
            *_convolution(128, 256, 3, padding=1),
            *_convolution(256, 256, 3, padding=1),
            *_convolution(256, 256, 3, padding=1),
            nn.MaxPool2d(2),
            Dropout(dropout),
            *_convolution(256, 512, 3),
            *_convolution(512, 256, 1),
            *_convolution(256, 128, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        super().__init__(features, partial(WeightNormLinear, 128, classes), heads)

    @torch.no_grad()
    def initialize(self, images: Tensor) -> None:
        """Set gains and biases so that each layer's outputs for these images have variance 1, as in training.

        Layer by layer, with noise and dropout. For the first minibatch, before a teacher is made of the model.
        """
        training = self.training
        self.train()
        outputs = images
        for layer in self.features:
            outputs = layer.initialize(outputs) if isinstance(layer, WeightNormConv2d) else layer(outputs)
        for layer in self.classifier.modules():
            if isinstance(layer, WeightNormLinear):
                layer.initialize(outputs)
        self.train(training)


class _Input(DrawsByRow):
    def __init__(self, noise: float, normalize: bool) -> None:
        super().__init__()
        self.noise, self.normalize = noise, normalize

    def forward(self, images: Tensor) -> Tensor:
        if self.normalize:
            # An epsilon far below one grey level squared, (1 / 255)^2: low contrast is normalised too.
            images = F.layer_norm(images, images.shape[1:], eps=1e-8)
        if self.training and self.noise:
            rows = self.rows
            noise = (
                torch.randn_like(images) if rows is None else rows.take(torch.randn_like(rows.whole(images)))
            )
            images = torch.add(images, noise, alpha=self.noise)
        return images


def _convolution(channels: int, filters: int, kernel: int, *, padding: int = 0) -> list[nn.Module]:
    convolution = WeightNormConv2d(channels, filters, kernel, padding=padding)
    return [convolution, nn.LeakyReLU(0.1, inplace=True)]
