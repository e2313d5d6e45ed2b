"""Random numbers by a row's place in the global batch, so that a batch split over ranks or parts trains as a whole one.

Each part seeds torch's global generator alike. A layer then draws for the global batch and takes its own rows.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd


class Rows(NamedTuple):
    """Which rows of the global batch a part has."""

    index: Tensor  # [rows of this part] int64, places in the global batch, on the network's device
    total: int  # rows of the global batch

    def whole(self, part: Tensor) -> Tensor:
        """[total, ...], not initialized, otherwise as `part`, which must have one row for each index."""
        if len(part) != len(self.index):
            raise ValueError(
                f"a layer that draws by row must get the part's {len(self.index)} rows, got {len(part)}"
            )
        shape = (self.total, *part.shape[1:])
        last = (
            part.ndim == 4
            and not part.is_contiguous()
            and part.is_contiguous(memory_format=torch.channels_last)
        )
        order = torch.channels_last if last else torch.contiguous_format
        return torch.empty(shape, dtype=part.dtype, device=part.device, memory_format=order)

    def take(self, drawn: Tensor) -> Tensor:
        """This part's rows of what was drawn for the global batch."""
        return drawn.index_select(0, self.index)


class DrawsByRow(nn.Module):
    """A layer that draws at random for each row. `rows`: None where the batch at hand is the global one."""

    rows: Rows | None = None


class Dropout(DrawsByRow, nn.Dropout):
    """torch's; with `rows` the mask is those rows of the mask that torch's draws for the global batch."""

    def forward(self, inputs: Tensor) -> Tensor:
        if self.rows is None or not self.training or self.p == 0:
            return super().forward(inputs)
        mask = self.rows.take(F.dropout(self.rows.whole(inputs).fill_(1), self.p))
        return inputs.mul_(mask) if self.inplace else inputs * mask


def set_rows(model: nn.Module, rows: Rows | None) -> None:
    """Say which rows of the global batch `model` gets from now on; None: all of them.

    A plain nn.Dropout of a network from elsewhere becomes a Dropout; `draws_alone` names what stays unaware of rows.
    """
    for module in model.modules():
        if rows is not None and type(module) is nn.Dropout:
            module.__class__ = Dropout
        if isinstance(module, DrawsByRow):
            module.rows = rows


def draws_alone(model: nn.Module) -> list[str]:
    """The names of layers that draw in training for the rows at hand, whatever `set_rows` says; as far as is known."""
    return [name for name, module in model.named_modules() if _draws_alone(module)]


def _draws_alone(module: nn.Module) -> bool:
    if isinstance(module, DrawsByRow) or type(module) is nn.Dropout:
        return False
    if isinstance(module, nn.RReLU | nn.FractionalMaxPool2d | nn.FractionalMaxPool3d):
        return True
    if isinstance(module, nn.MultiheadAttention | nn.RNNBase):
        return module.dropout > 0
    if isinstance(module, _DropoutNd) or type(module).__name__ == "StochasticDepth":  # torchvision's
        return module.p > 0
    return bool(getattr(module, "drop_prob", 0))  # of timm's DropPath and DropBlock2d
