"""Shake-shake ResNet-26 2x96d (Gastaldi, 1705.07485), the residual network of Mean Teacher's CIFAR-10 results."""

from functools import partial

import torch
from torch import Tensor, nn

from .network import Network, initialize_convolutions
from .rows import DrawsByRow, Rows


class CifarShakeShake26(Network):
    """Three stages of four blocks whose two branches are mixed at random; global average pooling; linear heads.

    Maps [rows, channels, height, width], height and width multiples of 4 (32 in the paper), to logits.
    """

    def __init__(self, classes: int, *, channels: int = 3, heads: int = 1) -> None:
        layers: list[nn.Module] = [nn.Conv2d(channels, 16, 3, padding=1, bias=False)]
        before = 16
        for filters, stride in ((96, 1), (192, 2), (384, 2)):
            layers += [ShakeBlock(before, filters, stride)]
            layers += [ShakeBlock(filters, filters, 1) for _ in range(3)]
            before = filters
        features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        super().__init__(features, partial(nn.Linear, before, classes), heads)
        initialize_convolutions(self)


class ShakeBlock(DrawsByRow):
    """shortcut(x) + shake(branch1(relu(x)), branch2(relu(x)))."""

    def __init__(self, channels: int, filters: int, stride: int) -> None:
        super().__init__()
        self.branch1 = _branch(channels, filters, stride)
        self.branch2 = _branch(channels, filters, stride)
        self.shortcut: nn.Module = nn.Identity()
        if stride == 2:
            self.shortcut = ShiftedDownsample(channels, filters)
        elif channels != filters:
            convolution = nn.Conv2d(channels, filters, 1, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(filters))

    def forward(self, inputs: Tensor) -> Tensor:
        active = inputs.relu()
        mixed = shake(self.branch1(active), self.branch2(active), training=self.training, rows=self.rows)
        return mixed.add_(self.shortcut(inputs))


class ShiftedDownsample(nn.Module):
    """Half the resolution: the even pixels to one half of the filters, their diagonal neighbours to the other."""

    def __init__(self, channels: int, filters: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(2 * channels, filters, 1, groups=2)
        self.norm = nn.BatchNorm2d(filters)

    def forward(self, inputs: Tensor) -> Tensor:
        halves = torch.cat((inputs[:, :, ::2, ::2], inputs[:, :, 1::2, 1::2]), dim=1)
        return self.norm(self.convolution(halves.relu_()))


def shake(one: Tensor, two: Tensor, *, training: bool, rows: Rows | None = None) -> Tensor:
    """gate * one + (1 - gate) * two: in training a gate per row, uniform in 0..1; in evaluation 0.5.

    The gradient has gates of its own, drawn anew in every backward pass, in evaluation too. With `rows` both kinds
    are those rows' of the global batch.
    """
    index, total = rows or (None, len(one))
    return _Shake.apply(one, two, _gates(one, index, total) if training else 0.5, index, total)


class _Shake(torch.autograd.Function):
    """Saves nothing but the rows' places and makes no temporary of the branches' size."""

    @staticmethod
    def forward(one: Tensor, two: Tensor, gate: Tensor | float, index: Tensor | None, total: int) -> Tensor:
        return torch.lerp(two, one, gate)

    @staticmethod
    def setup_context(ctx: object, inputs: tuple[object, ...], output: Tensor) -> None:
        *_, index, ctx.total = inputs
        ctx.save_for_backward(index)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        (index,) = ctx.saved_tensors
        gate = _gates(gradient, index, ctx.total)
        return gradient * gate, gradient * (1 - gate), None, None, None


def _gates(like: Tensor, index: Tensor | None, total: int) -> Tensor:
    """[rows, 1, 1, 1], drawn in float32: bfloat16 has too few values below 1."""
    gates = torch.rand(total, 1, 1, 1, device=like.device).to(like.dtype)
    return gates if index is None else gates.index_select(0, index)


def _branch(channels: int, filters: int, stride: int) -> nn.Sequential:
    """Without the ReLU in front, which both branches share."""
    return nn.Sequential(
        nn.Conv2d(channels, filters, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(filters),
        nn.ReLU(inplace=True),
        nn.Conv2d(filters, filters, 3, padding=1, bias=False),
        nn.BatchNorm2d(filters),
    )
