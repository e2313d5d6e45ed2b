"""multi_tensor_dot: sums of first * second, and of both sides' squares, in fp64: one program per row of the plan."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mtkernels import _C
from mtkernels.backends.triton.launch import FP_FUSION, on_device, ticket_of
from mtkernels.backends.triton.table import BLOCK, TARGET_ROWS, pointer, table_of

_PARTIALS = 1024  # added up at a time


@triton.jit
def _step(first, second, mask, sums, NORMS: tl.constexpr):
    x = tl.load(first, mask=mask, other=0.0) if mask is not None else tl.load(first)
    y = tl.load(second, mask=mask, other=0.0) if mask is not None else tl.load(second)
    x = x.to(tl.float64)
    y = y.to(tl.float64)
    if NORMS:
        return sums[0] + x * y, sums[1] + x * x, sums[2] + y * y
    else:
        return sums[0] + x * y, sums[1], sums[2]


@triton.jit
def _row(
    dst, src, count, sums, CODE: tl.constexpr, ALIGNED: tl.constexpr, NORMS: tl.constexpr, BLOCK: tl.constexpr
):
    first = pointer(dst, CODE // 4, ALIGNED)
    second = pointer(src, CODE % 4, ALIGNED)
    at = tl.arange(0, BLOCK)
    whole = count // BLOCK * BLOCK
    for start in range(0, whole, BLOCK):
        sums = _step(
            first + start + at, second + start + at, None, sums, NORMS
        )  # without a mask: 16 bytes wide
    return _step(first + whole + at, second + whole + at, whole + at < count, sums, NORMS)


@triton.jit
def _total(partials, programs, PARTIALS: tl.constexpr):
    """Of all programs, in their order."""
    total = tl.zeros([PARTIALS], tl.float64)
    for start in range(0, programs, PARTIALS):
        at = start + tl.arange(0, PARTIALS)
        # From the L2, where the other programs' stores are.
        total += tl.load(partials + at, mask=at < programs, other=0.0, cache_modifier=".cg")
    return tl.sum(total)


@triton.jit
def _multi_tensor_dot_kernel(
    rows,
    sums,  # [1 or 3] fp64: the dot, and with NORMS both norms
    partials,  # [1 or 3, programs] fp64
    ticket,  # one int32 that is 0
    VARIANTS: tl.constexpr,
    NORMS: tl.constexpr,
    BLOCK: tl.constexpr,
    PARTIALS: tl.constexpr,
):
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    row = rows + 6 * program.to(tl.int64)
    src = tl.load(row)
    count = tl.load(row + 1)
    dst = tl.load(row + 4)
    variant = 2 * tl.load(row + 2) + ((dst | src) % 16 == 0).to(tl.int64)
    zero = tl.zeros([BLOCK], tl.float64)
    found = (zero, zero, zero)
    for i in tl.static_range(len(VARIANTS)):
        if variant == VARIANTS[i]:
            found = _row(dst, src, count, found, VARIANTS[i] // 2, VARIANTS[i] % 2 == 1, NORMS, BLOCK)
    tl.store(partials + program, tl.sum(found[0]))
    if NORMS:
        tl.store(partials + programs + program, tl.sum(found[1]))
        tl.store(partials + 2 * programs + program, tl.sum(found[2]))
    tl.debug_barrier()  # all of the program's threads have stored
    if tl.atomic_add(ticket, 1, sem="acq_rel", scope="gpu") == programs - 1:
        tl.store(sums, _total(partials, programs, PARTIALS))
        if NORMS:
            tl.store(sums + 1, tl.sqrt(_total(partials + programs, programs, PARTIALS)))
            tl.store(sums + 2, tl.sqrt(_total(partials + 2 * programs, programs, PARTIALS)))
        tl.store(ticket, 0)


def multi_tensor_dot(first, second, with_norms: bool = False) -> Tensor:
    """See reference.multi_tensor_dot."""
    rows, sums = _C.multi_tensor_dot_rows(first, second, with_norms, TARGET_ROWS)
    if rows:
        device = sums.device
        table = table_of("multi_tensor_dot", rows, 1, device)
        programs = len(table.rows)
        partials = torch.empty(sums.numel() * programs, dtype=torch.float64, device=device)
        with on_device(device):
            _multi_tensor_dot_kernel[(programs,)](
                table.rows, sums, partials, ticket_of(device),
                VARIANTS=table.variants, NORMS=with_norms, BLOCK=BLOCK, PARTIALS=_PARTIALS,
                enable_fp_fusion=FP_FUSION,
            )  # fmt: skip
    return sums
