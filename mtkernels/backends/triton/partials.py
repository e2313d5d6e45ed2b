"""Sums over all programs of a launch, in one order: the program that comes last adds up what each has left."""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

PARTIALS = 1024  # added up at a time


def new_partials(slots: int, programs: int, wide: torch.dtype, device: torch.device) -> Tensor:
    """Of fp64 where the device has it."""
    return torch.empty(slots, programs, dtype=torch.float64 if has_fp64(device) else wide, device=device)


@functools.cache
def has_fp64(device: torch.device) -> bool:
    return device.type != "xpu" or torch.xpu.get_device_properties(device).has_fp64


@triton.jit
def leave(partials, slot, value):
    tl.store(partials + slot * tl.num_programs(0) + tl.program_id(0), value.to(partials.dtype.element_ty))


@triton.jit
def comes_last(ticket):
    """Also leaves the ticket at 0 for the next launch."""
    tl.debug_barrier()
    last = tl.atomic_add(ticket, 1, sem="acq_rel", scope="gpu") == tl.num_programs(0) - 1
    if last:
        tl.store(ticket, 0)
    return last


@triton.jit
def add_up(partials, slot, PARTIALS: tl.constexpr):
    programs = tl.num_programs(0)
    total = tl.zeros([PARTIALS], partials.dtype.element_ty)
    for start in range(0, programs, PARTIALS):
        at = start + tl.arange(0, PARTIALS)
        # From the L2, where the other programs' stores are.
        total += tl.load(partials + slot * programs + at, mask=at < programs, other=0.0, cache_modifier=".cg")
    return tl.sum(total)
