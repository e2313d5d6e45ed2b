"""What launches need: the tensors' device made current, whether a graph is being captured, a ticket."""

import functools
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

# Said at each launch, since Triton's default changes in 3.10. The CPU kernels contract products and sums too.
FP_FUSION = True


def on_device(device: torch.device) -> AbstractContextManager:
    """Triton launches on the current device, whatever the tensors' own."""
    if device.type == "cpu":
        return nullcontext()
    module = torch.get_device_module(device)
    return nullcontext() if module.current_device() == device.index else module.device(device)


def is_capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def ticket_of(device: torch.device) -> Tensor:
    """By which the last of a launch's programs knows that it is: 0 between launches.

    One per stream. A captured graph, which may be replayed on any, has its own and zeroes it at each replay.
    """
    if is_capturing(device):
        return torch.zeros(1, dtype=torch.int32, device=device)
    if device.type == "cpu":
        return _ticket(device, 0)
    stream = torch.get_device_module(device).current_stream(device)
    return _ticket(device, stream.cuda_stream if device.type == "cuda" else stream.sycl_queue)


@functools.cache
def _ticket(device: torch.device, stream: int) -> Tensor:
    return torch.zeros(1, dtype=torch.int32, device=device)
