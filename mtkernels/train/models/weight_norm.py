"""Convolution and linear layer with weight norm and mean-only batch norm (Salimans and Kingma, 1602.07868)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .sync_norm import OverRanks

EVAL_MEAN_DECAY = 0.999


class _WeightNorm(OverRanks):
    """The parameters V (`weight`), g (`gain`), b (`bias`), and the mean that stands in for a batch's in eval mode.

    `eval_mean` starts at 0 and follows the training batches without a correction for that start: it is of use
    after some thousands of steps.
    """

    eval_mean: Tensor
    epsilon: float

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape).normal_(std=0.05))
        self.gain = nn.Parameter(torch.ones(shape[0]))
        self.bias = nn.Parameter(torch.zeros(shape[0]))
        self.register_buffer("eval_mean", torch.zeros(shape[0]))

    def map(self, inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        raise NotImplementedError

    def scale(self) -> Tensor:
        """g / ||V||, one norm a filter."""
        return self.gain / torch.linalg.vector_norm(self.weight.flatten(1), dim=1)

    def batch_mean(self, outputs: Tensor) -> Tensor:
        """The mean over all but the channels, of all ranks' rows, which also moves `eval_mean`."""
        dtype = self.eval_mean.dtype
        if self.alone:
            mean = outputs.mean(_others(outputs), dtype=dtype)
        else:
            mean, _ = self.ranks.mean(outputs, dtype)
        self.eval_mean.lerp_(mean.detach(), 1 - EVAL_MEAN_DECAY)
        return mean

    @torch.no_grad()
    def initialize(self, inputs: Tensor) -> Tensor:
        """Set the gain so that outputs for `inputs` have variance 1, and the bias to 0; return those outputs."""
        self.gain.fill_(1)
        self.bias.zero_()
        outputs = self.map(inputs, _per_filter(self.scale(), self.weight) * self.weight)
        variance, mean = torch.var_mean(outputs, _others(outputs), correction=0)
        self.gain.copy_((variance + self.epsilon).rsqrt())
        return (outputs - _per_channel(mean, outputs)) * _per_channel(self.gain, outputs)


class WeightNormConv2d(_WeightNorm):
    """y = x * W - mean + b with W = g V / ||V||; the mean is over rows, height and width."""

    epsilon = 1e-8

    def __init__(self, channels: int, filters: int, kernel: int, *, padding: int = 0) -> None:
        super().__init__(filters, channels, kernel, kernel)
        self.padding = padding

    def map(self, inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.conv2d(inputs, weight, bias, padding=self.padding)

    def forward(self, inputs: Tensor) -> Tensor:
        weight = _per_filter(self.scale(), self.weight) * self.weight
        if not self.training:
            return self.map(inputs, weight, self.bias - self.eval_mean)
        outputs = self.map(inputs, weight)
        shift = self.bias - self.batch_mean(outputs)
        return outputs.add_(_per_channel(shift, outputs))  # in place: nothing has saved the outputs


class WeightNormLinear(_WeightNorm):
    """y = g / ||V|| (x V - mean) + b; the mean is over rows, of x V without the factor."""

    epsilon = 1e-10

    def __init__(self, width: int, classes: int) -> None:
        super().__init__(classes, width)

    def map(self, inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.linear(inputs, weight, bias)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = self.map(inputs, self.weight)
        mean = self.batch_mean(outputs) if self.training else self.eval_mean
        return torch.addcmul(self.bias, outputs - mean, self.scale())


def _others(outputs: Tensor) -> list[int]:
    return [0, *range(2, outputs.ndim)]


def _per_filter(values: Tensor, weight: Tensor) -> Tensor:
    return values.view(-1, *[1] * (weight.ndim - 1))


def _per_channel(values: Tensor, outputs: Tensor) -> Tensor:
    return values.to(outputs.dtype).view(-1, *[1] * (outputs.ndim - 2))
