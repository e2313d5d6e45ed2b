"""What every launch needs: the tensors' device made current, and whether a graph is being captured."""

from contextlib import AbstractContextManager, nullcontext

import torch

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
