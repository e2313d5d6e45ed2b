"""scale_: data <- factor * data, and no write where the factor is 1."""

import triton
import triton.language as tl
from torch import Tensor

from mtkernels.backends.triton.launch import FP_FUSION, on_device

_BLOCK = 2048


@triton.jit
def _step(data, by, mask):
    values = tl.load(data, mask=mask)
    wide: tl.constexpr = tl.float64 if values.dtype == tl.float64 else tl.float32
    tl.store(data, (values.to(wide) * by.to(wide)).to(values.dtype), mask=mask)


@triton.jit
def _scale_kernel(data, factor, count, BLOCK: tl.constexpr):
    by = tl.load(factor)
    if by != 1:
        start = tl.program_id(0).to(tl.int64) * BLOCK
        at = tl.arange(0, BLOCK)
        if start + BLOCK <= count:
            _step(data + start + at, by, None)  # without a mask: 16 bytes wide
        else:
            _step(data + start + at, by, start + at < count)


def scale_(data: Tensor, factor: Tensor) -> None:
    """`data` fills its memory without gaps, in any order of its dims; `factor` is 0-d, fp32 or fp64, on its device."""
    count = data.numel()
    if count:
        with on_device(data.device):
            _scale_kernel[(triton.cdiv(count, _BLOCK),)](
                data, factor, count, BLOCK=_BLOCK, enable_fp_fusion=FP_FUSION
            )
