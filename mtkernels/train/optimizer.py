"""The student's optimizer, its rates, and the loss scale of half precision."""

import torch
from torch import Tensor, nn

from .config import Config
from .distributed import local, sharded
from .timeline import Timeline


def shards(student: nn.Module) -> list[Tensor]:
    """The student's parameters; of a sharded one this rank's parts, in the same memory."""
    return [local(w.detach()) if sharded(w) else w for w in student.parameters()]


def make_optimizer(config: Config, weights: list[Tensor]) -> torch.optim.Optimizer:
    """Of `shards`. Fused: its step takes found_inf and a gradient's scale on the device."""
    if config.optimizer == "adam":
        return torch.optim.Adam(
            weights,
            lr=config.lr,
            eps=config.adam_epsilon,
            weight_decay=config.weight_decay,
            fused=True,
            capturable=config.cuda_graph,
        )
    optimizer = torch.optim.SGD(
        weights,
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        fused=True,
    )
    if config.momentum:
        # torch's own would be what is in memory where the first step is left out for its found_inf.
        for weight in weights:
            optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
    return optimizer


def set_rates(optimizer: torch.optim.Optimizer, timeline: Timeline, step: int) -> None:
    """The optimizer's numbers at `step`; a rate that is a tensor, as a captured step has it, in place."""
    rate = timeline.learning_rate(step)
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
        if "betas" in group:
            group["betas"] = timeline.adam_betas(step)


class LossScale:
    """What a loss is multiplied by so that fp16's gradients are not 0: halved where they overflow, doubled in time.

    All of it lies on the device: no step waits to know whether it overflowed. A scale that has fallen below 1 is
    `exhausted`: no scale makes such gradients finite.
    """

    def __init__(self, device: torch.device, *, first: float = 2.0**16, patience: int = 2000) -> None:
        """patience: steps without an overflow until it doubles."""
        self.scale = torch.full((), first, device=device)
        self.good_steps = torch.zeros((), dtype=torch.int32, device=device)
        self.patience = patience

    def update(self, found_inf: Tensor) -> None:
        """After a step, of which found_inf says whether it overflowed."""
        torch._amp_update_scale_(self.scale, self.good_steps, found_inf, 2.0, 0.5, self.patience)
        self.scale.clamp_(min=0.5)

    @property
    def exhausted(self) -> Tensor:
        """1 or 0, on the device."""
        return (self.scale < 1).to(self.scale.dtype)
