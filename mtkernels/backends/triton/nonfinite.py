"""nonfinite_: found <- 1 where any element of the tensors is infinite or NaN: one program per row of the plan."""

import triton
import triton.language as tl
from torch import Tensor

from mtkernels import _C
from mtkernels.backends.triton.launch import FP_FUSION, on_device
from mtkernels.backends.triton.table import BLOCK, TARGET_ROWS, pointer, table_of


@triton.jit
def _nonfinite(data, mask):
    values = tl.load(data, mask=mask, other=0.0) if mask is not None else tl.load(data)
    if values.dtype != tl.float64:
        values = values.to(tl.float32)
    return (tl.abs(values) < float("inf")).to(tl.int32) ^ 1


@triton.jit
def _row(src, count, found, TAG: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr):
    data = pointer(src, TAG, ALIGNED)
    at = tl.arange(0, BLOCK)
    whole = count // BLOCK * BLOCK
    any_of = _nonfinite(data + whole + at, whole + at < count)
    for start in range(0, whole, BLOCK):
        any_of |= _nonfinite(data + start + at, None)  # without a mask: 16 bytes wide
    tl.store(found, 1.0, mask=tl.max(any_of) != 0)


@triton.jit
def _nonfinite_kernel(rows, found, VARIANTS: tl.constexpr, BLOCK: tl.constexpr):
    row = rows + 6 * tl.program_id(0).to(tl.int64)
    src = tl.load(row)
    count = tl.load(row + 1)
    variant = 2 * tl.load(row + 2) + (src % 16 == 0).to(tl.int64)
    for i in tl.static_range(len(VARIANTS)):
        if variant == VARIANTS[i]:
            _row(src, count, found, VARIANTS[i] // 2 % 4, VARIANTS[i] % 2 == 1, BLOCK)


def nonfinite_(found: Tensor, tensors) -> None:
    """Programs that find one write the same 1.0; the others leave the flag as it is."""
    rows = _C.nonfinite_rows(found, tensors, TARGET_ROWS)
    if rows:
        table = table_of("nonfinite_", rows, 1, found.device)
        with on_device(found.device):
            _nonfinite_kernel[(len(table.rows),)](
                table.rows, found, VARIANTS=table.variants, BLOCK=BLOCK, enable_fp_fusion=FP_FUSION
            )
