"""Batch statistics over the rows of all ranks: `synchronize` makes a network's batch norms take them."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..config import SettingError


def synchronize(model: nn.Module, group: "dist.ProcessGroup | None" = None) -> nn.Module:
    """Let batch norm, and mean-only batch norm, take training's statistics over all ranks' rows; return `model`.

    In place: parameters, buffers and their names stay. Ranks may have unevenly many rows. A rank's gradients are its
    part: their sum over ranks is the whole batch's. `group`: None is the default one. In evaluation nothing changes.
    """
    ranks = Group(group)
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and not isinstance(module, OverRanks | nn.SyncBatchNorm):
            module.__class__ = _synchronized(name, module)
        if isinstance(module, OverRanks):
            module.ranks = ranks
    return model


class Group:
    """The processes of a group. A copied model shares it: a group cannot be copied."""

    def __init__(self, group: "dist.ProcessGroup | None") -> None:
        self.group = group

    def __deepcopy__(self, memo: dict[int, Any]) -> "Group":
        return self

    @property
    def size(self) -> int:
        """Their number; 1 without torch.distributed."""
        return dist.get_world_size(self.group) if dist.is_available() and dist.is_initialized() else 1

    def mean(self, values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The mean of all ranks' values [rows, channels, ...] for each channel, and how many values that is of."""
        total = values.sum([0, *range(2, values.ndim)], dtype=dtype)
        count = total.new_full((1,), values.numel() // values.shape[1])
        total = _Sum.apply(torch.cat((total, count)), self.group)
        return total[:-1] / total[-1], total[-1]


class _Sum(torch.autograd.Function):
    """The sum over ranks. Its gradient is summed too: every rank's loss depends on it."""

    @staticmethod
    def forward(values: Tensor, group: "dist.ProcessGroup | None") -> Tensor:
        total = values.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.group = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Sum.apply(gradient, ctx.group), None


class OverRanks(nn.Module):
    """A layer with batch statistics over the rows of `ranks`; None: of this process alone."""

    ranks: Group | None = None

    @property
    def alone(self) -> bool:
        return self.ranks is None or self.ranks.size == 1


class SynchronizedBatchNorm(OverRanks, _BatchNorm):
    """Batch norm with training's statistics over all ranks: torch's SyncBatchNorm, and ours on the CPU.

    Not a subclass of SyncBatchNorm, which refuses the CPU and which DistributedDataParallel refuses there.
    """

    _check_non_zero_input_channels = nn.SyncBatchNorm._check_non_zero_input_channels  # its forward calls it

    @property
    def process_group(self) -> "dist.ProcessGroup | None":
        """SyncBatchNorm's name for the group."""
        return self.ranks.group

    def forward(self, inputs: Tensor) -> Tensor:
        if not self.training or self.alone:
            return super().forward(inputs)
        if inputs.device.type != "cpu":
            return nn.SyncBatchNorm.forward(self, inputs)
        self._check_input_dim(inputs)
        # Converted at once: else the mean's gradient is rounded by itself, one way for all rows.
        values = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
        mean, count = self.ranks.mean(values, values.dtype)
        if count < 2:
            raise ValueError(
                f"batch norm in training must get 2 or more values a channel over all ranks, got {int(count)}"
            )
        centered = values - _per_channel(mean, inputs)
        variance, _ = self.ranks.mean(centered.square(), values.dtype)  # in two passes: no cancellation
        if self.track_running_stats:
            self._move(mean.detach(), variance.detach() * (count / (count - 1)))
        scale = (variance + self.eps).rsqrt()
        if not self.affine:
            return (centered * _per_channel(scale, inputs)).to(inputs.dtype)
        scale, bias = _per_channel(scale * self.weight, inputs), _per_channel(self.bias, inputs)
        return torch.addcmul(bias, centered, scale).to(inputs.dtype)

    @torch.no_grad()
    def _move(self, mean: Tensor, variance: Tensor) -> None:
        self.num_batches_tracked.add_(1)
        weight = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        for statistic, value in ((self.running_mean, mean), (self.running_var, variance)):
            statistic.lerp_(value.to(statistic.dtype), weight)


class _BatchNorm1d(SynchronizedBatchNorm, nn.BatchNorm1d):
    pass


class _BatchNorm2d(SynchronizedBatchNorm, nn.BatchNorm2d):
    pass


class _BatchNorm3d(SynchronizedBatchNorm, nn.BatchNorm3d):
    pass


class _BatchNormAct2d(_BatchNorm2d):
    """timm's batch norm with an activation, which has a forward of its own."""

    def forward(self, inputs: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(inputs)))


_TORCH = {nn.BatchNorm1d: _BatchNorm1d, nn.BatchNorm2d: _BatchNorm2d, nn.BatchNorm3d: _BatchNorm3d}


def _synchronized(name: str, module: nn.Module) -> type[SynchronizedBatchNorm]:
    kind = type(module)
    if kind in _TORCH:
        return _TORCH[kind]
    if kind.__module__.startswith("timm.") and kind.__name__ == "BatchNormAct2d":
        return _BatchNormAct2d
    raise SettingError(
        f"a batch norm must be torch's own or timm's to be synchronized, got {name!r}, a {kind.__name__}"
    )


def _per_channel(values: Tensor, inputs: Tensor) -> Tensor:
    return values.view(-1, *[1] * (inputs.ndim - 2))
