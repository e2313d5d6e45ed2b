"""For tests of a GPU that run on a CPU too, in a small form: so that CI sees what is wrong in them, if not in CUDA."""

import pytest
import torch

from mtkernels.backends import native

devices = pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(not native.HAS_CUDA, reason="a build without CUDA kernels"),
            ],
        ),
    ],
)


def captured(call, device, first=True):
    """call(), and what repeats it into what it gave: a CUDA graph; on a CPU the call, copied there.

    first: call once before the capture.
    """
    if device == "cpu":
        outputs = call()

        def replay():
            for ours, again in zip(outputs, call(), strict=True):
                ours.detach().copy_(again.detach())

        return outputs, replay
    if first:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            call()
        torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = call()
    return outputs, graph.replay


def launched(call, device="cuda") -> list[str]:
    """What runs on the device in a call after the first, which may not wait for it. On a CPU nothing is seen."""
    call()
    if device == "cpu":
        call()
        return ["cpu"]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return [e.name for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]


def same(outputs, expected):
    return all(torch.equal(ours, theirs) for ours, theirs in zip(outputs, expected, strict=True))
