"""A GPU model's weights on their way to an average in host memory, while the GPU goes on."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mtkernels import _C
from mtkernels.backends import backend_for

_ALIGNMENT = 64  # bytes


class Offload:
    """Two buffers, one with the weights and one, pinned, in host memory, and views of both that are like the weights.

    `send` copies the weights on their device (the optimizer may change them right after) and starts one transfer on a
    stream of its own; `receive` waits for it, and `received` are the weights as they were.
    """

    def __init__(self, weights: Sequence[Tensor], device: torch.device) -> None:
        if device.type != "cpu":
            raise NotImplementedError(
                f"WeightEMA: device must be that of the model ({weights[0].device}) or the CPU, got {device}"
            )
        place = weights[0].device
        # One more number at the end: found_inf travels with the weights that it is about.
        like = [*weights, torch.zeros((), device=place)]
        offsets, size = [], 0
        for tensor in like:
            offsets.append(size)
            size += -(-_reach(tensor) * tensor.element_size() // _ALIGNMENT) * _ALIGNMENT
        pinned = place.type == "cuda"
        self._here = torch.empty(size, dtype=torch.uint8, device=place)
        self._there = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
        self._copies = [_view(self._here, at, tensor) for at, tensor in zip(offsets, like, strict=True)]
        *self.received, self._found_inf = (
            _view(self._there, at, tensor) for at, tensor in zip(offsets, like, strict=True)
        )
        with torch.no_grad():
            self._plan = _C.EmaPlan(self._copies[:-1], list(weights))
        self._stream = torch.cuda.Stream(place) if pinned else None
        self._pending: tuple[bool, bool] | None = None  # with found_inf, with drift

    def send(self, found_inf: Tensor | None, drift: bool) -> None:
        with torch.no_grad():
            if (
                self._stream is not None
            ):  # the last transfer has been received, but its buffer's stream is not ours
                torch.cuda.current_stream(self._here.device).wait_stream(self._stream)
            backend_for(self._here.device.type).ema_update_plan(self._plan, 0.0)
            if found_inf is not None:
                self._copies[-1].copy_(found_inf.reshape(()))
            if self._stream is None:
                self._there.copy_(self._here)
            else:
                self._stream.wait_stream(torch.cuda.current_stream(self._here.device))
                with torch.cuda.stream(self._stream):
                    self._there.copy_(self._here, non_blocking=True)
        self._pending = found_inf is not None, drift

    def receive(self) -> tuple[Tensor | None, bool] | None:
        """found_inf and drift of what was sent, once; None where nothing was."""
        if self._pending is None:
            return None
        if self._stream is not None:
            self._stream.synchronize()
        (with_found_inf, drift), self._pending = self._pending, None
        return (self._found_inf if with_found_inf else None), drift


def _reach(tensor: Tensor) -> int:
    """Elements from the first in memory to the last."""
    dims = zip(tensor.shape, tensor.stride(), strict=True)
    return 1 + sum((size - 1) * stride for size, stride in dims) if tensor.numel() else 0


def _view(buffer: Tensor, offset: int, like: Tensor) -> Tensor:
    flat = buffer[offset : offset + _reach(like) * like.element_size()].view(like.dtype)
    return flat.as_strided(like.shape, like.stride()) if like.numel() else flat.view(like.shape)
