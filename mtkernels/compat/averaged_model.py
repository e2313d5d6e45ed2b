"""ema_multi_avg_fn: what torch.optim.swa_utils.AveragedModel averages with."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mtkernels.ops.ema import Decay, ema_update
from mtkernels.schedules import Schedule


def ema_multi_avg_fn(
    decay: Decay = 0.999,
) -> Callable[[Sequence[Tensor], Sequence[Tensor], int | Tensor], None]:
    """Gives AveragedModel's multi_avg_fn: `AveragedModel(model, multi_avg_fn=mtkernels.ema_multi_avg_fn(0.999))`.

    averaged <- decay * averaged + (1 - decay) * model

    Takes the place of torch.optim.swa_utils.get_ema_multi_avg_fn: one launch for each dtype that AveragedModel groups
    by; integer tensors (use_buffers=True) are copied, not averaged and cut off.

    Args:
        decay: between 0 (copy the model) and 1 (keep the average), without unit; a number, a 0-d float32 or float64
            tensor, or one of `mtkernels.schedules`, whose step is AveragedModel's n_averaged: 0 at the first update,
            which copies, 1 at the second. It is read on the device.

    Raises:
        TypeError, ValueError: a decay that is none.

    Source: torch.optim.swa_utils (BSD-3-Clause), its multi_avg_fn protocol.
    """
    if isinstance(decay, bool) or not isinstance(decay, (float, int, Tensor, Schedule)):
        raise TypeError(
            f"ema_multi_avg_fn: decay must be a number, a 0-d tensor or one of mtkernels.schedules, "
            f"got {type(decay).__name__}"
        )
    if isinstance(decay, (float, int)) and not 0 <= decay <= 1:
        raise ValueError(f"ema_multi_avg_fn: decay must be between 0 and 1, got {decay}")

    @torch.no_grad()
    def multi_avg_fn(
        averaged: Sequence[Tensor], current: Sequence[Tensor], num_averaged: int | Tensor
    ) -> None:
        step = _step(num_averaged, averaged) if isinstance(decay, Schedule) else None
        ema_update(averaged, current, decay, step=step)

    return multi_avg_fn


def _step(num_averaged: int | Tensor, averaged: Sequence[Tensor]) -> int | Tensor:
    """With the weights, in int64; both no-ops as AveragedModel calls it."""
    if not isinstance(num_averaged, Tensor) or not averaged:
        return num_averaged
    return num_averaged.to(device=averaged[0].device, dtype=torch.int64, non_blocking=True)
