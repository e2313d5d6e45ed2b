"""A small model with every kind of tensor that an average meets, and a training that needs no data."""

import copy

import torch
from torch import Tensor, nn


class Net(nn.Module):
    """Convolution, batch norm (float and integer buffers), tied or untied linear layers."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 8, bias=False)
        self.last = nn.Linear(8, 8)
        if tied:
            self.last.weight = self.head.weight

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.head(self.norm(self.conv(images)).mean((2, 3))))

    def project(self, features: Tensor) -> Tensor:
        return self.head(features)


class Training:
    """Moves a model as an optimizer and batch norm would, the same at each call with the same seed."""

    def __init__(self, model: nn.Module, seed: int = 1) -> None:
        self.model = model
        self.random = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def step(self) -> None:
        for tensor in [*self.model.parameters(), *self.model.buffers()]:
            if tensor.is_floating_point():
                tensor.add_(0.1 * torch.randn(tensor.shape, generator=self.random).to(tensor))
            else:
                tensor.add_(1)


def assert_same(ours, theirs, *, ulps: float = 4.0) -> None:
    """Tensor by tensor, within a few roundings of their dtype at the size of the values."""
    ours, theirs = list(ours), list(theirs)
    assert len(ours) == len(theirs)
    for at, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        assert one.dtype == other.dtype and one.shape == other.shape, at
        if one.is_floating_point():
            bound = ulps * torch.finfo(one.dtype).eps * other.abs().clamp(min=1).double()
            assert ((one.double() - other.double()).abs() <= bound).all(), at
        else:
            assert torch.equal(one, other), at


def tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def twins(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    return copy.deepcopy(model), copy.deepcopy(model)


def by_hand(start: list[Tensor], after_steps: list[list[Tensor]], decay: float) -> list[Tensor]:
    """The average of weights after each step: floats averaged, counters copied."""
    average = copy.deepcopy(start)
    for weights in after_steps:
        for to, source in zip(average, weights, strict=True):
            to.lerp_(source, 1 - decay) if to.is_floating_point() else to.copy_(source)
    return average
