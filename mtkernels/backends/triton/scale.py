"""scale_: data <- factor * data, and no write where the factor is 1."""

import triton
import triton.language as tl
from torch import Tensor

from mtkernels.backends.triton.launch import FP_FUSION, on_device

_BLOCK = 2048


@triton.jit(do_not_specialize_on_alignment=["factor"])
def _scale_kernel(data, factor, count, BLOCK: tl.constexpr):
    by = tl.load(factor)
    if by != 1:
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        values = tl.load(data + at, mask=at < count)
        if data.dtype.element_ty == tl.float64:
            values = values * by.to(tl.float64)
        else:
            values = values.to(tl.float32) * by.to(tl.float32)
        tl.store(data + at, values.to(data.dtype.element_ty), mask=at < count)


def scale_(data: Tensor, factor: Tensor) -> None:
    """`data` fills its memory without gaps, in any order of its dims; `factor` is 0-d, fp32 or fp64, on its device."""
    count = data.numel()
    if count:
        with on_device(data.device):
            _scale_kernel[(triton.cdiv(count, _BLOCK),)](data, factor, count, BLOCK=_BLOCK, enable_fp_fusion=FP_FUSION)
