"""sharpen: p^(1/T) / sum p^(1/T) along a dim; a program walks tiles of [ROWS, BLOCK] numbers."""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from mtkernels import _C
from mtkernels.backends.triton.decay import joined_parts, parts
from mtkernels.backends.triton.launch import FP_FUSION, on_device
from mtkernels.backends.triton.layout import first_of_row, layout
from mtkernels.backends.triton.partials import has_fp64
from mtkernels.backends.triton.row_math import divide, exponential, row_max, row_sum

# 1 / T is kept among fp32's normal numbers: 0^0 and 1^inf do not come up.
_LEAST, _MOST = tl.constexpr(1.1754944e-38), tl.constexpr(3.4028234e38)


@triton.jit
def _load(pointers, columns, stride, classes, in_row, wide: tl.constexpr):
    mask = in_row & (columns < classes)
    return tl.load(pointers + columns.to(tl.int64) * stride, mask=mask, other=0.0).to(wide)


@triton.jit
def _powers(p, largest, exponent):
    """(p / largest)^exponent; NaN of a negative number."""
    ratio = divide(p, tl.broadcast_to(tl.where(largest == 0, 1.0, largest), p.shape))
    if p.dtype == tl.float32:  # log takes a subnormal number for 0
        subnormal = ratio < 1.1754944e-38
        log = tl.log(tl.where(subnormal, ratio * 16777216.0, ratio))
        log = tl.where(subnormal, log - 16.635532333438687, log)
    else:
        log = tl.log(ratio)
    power = tl.where(ratio == 0, 0.0, exponential(exponent * log))
    return tl.where((p < 0) | (largest < 0), float("nan"), tl.where(exponent == 1, ratio, power))


@triton.jit
def _store(pointers, columns, stride, classes, in_row, powers, total):
    sharpened = divide(powers, tl.broadcast_to(tl.where(total == 0, 1.0, total), powers.shape))
    mask = in_row & (columns < classes)
    tl.store(pointers + columns.to(tl.int64) * stride, sharpened.to(pointers.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["inner_tiles"])
def _sharpen_kernel(
    probs,
    sharpened,
    temperature,  # one on the device, or in parts
    inner,  # for these see Layout
    inner_tiles,
    classes,
    tiles,
    sizes,
    strides,
    sharpened_strides,
    LIVE: tl.constexpr,
    DOUBLES: tl.constexpr,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    FP64: tl.constexpr,
):
    wide: tl.constexpr = tl.float64 if DOUBLES else tl.float32
    row_dtype: tl.constexpr = tl.float64 if FP64 else wide
    one = tl.full([1, 1], 1.0, wide)
    T = tl.load(temperature).to(wide) if LIVE else joined_parts(temperature).to(wide)
    exponent = tl.minimum(tl.maximum(divide(one, one * T), _LEAST), _MOST)
    count = classes * UNIT
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        outer = (tile // inner_tiles).to(tl.int64)
        row = (tile % inner_tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
        in_row = row < inner
        source = first_of_row(probs, outer, row, sizes, strides, UNIT)
        to = first_of_row(sharpened, outer, row, sizes, sharpened_strides, UNIT)
        if ONE_BLOCK:
            columns = tl.arange(0, BLOCK)[None, :]
            p = _load(source, columns, strides[0], count, in_row, wide)
            p = tl.where(columns < count, p, -float("inf"))
            largest = row_max(p)
            powers = tl.where(columns < count, _powers(p, largest, exponent), 0.0)
            _store(
                to, columns, sharpened_strides[0], count, in_row, powers, row_sum(powers, row_dtype).to(wide)
            )
        else:
            largest = tl.zeros([ROWS, 1], wide) - float("inf")
            for start in range(0, count, BLOCK):
                columns = start + tl.arange(0, BLOCK)[None, :]
                p = _load(source, columns, strides[0], count, in_row, wide)
                largest = tl.maximum(largest, row_max(tl.where(columns < count, p, -float("inf"))))
            total = tl.zeros([ROWS, 1], row_dtype)
            for start in range(0, count, BLOCK):
                columns = start + tl.arange(0, BLOCK)[None, :]
                p = _load(source, columns, strides[0], count, in_row, wide)
                powers = tl.where(columns < count, _powers(p, largest, exponent), 0.0)
                total += row_sum(powers, row_dtype)
            total = total.to(wide)
            for start in range(0, count, BLOCK):
                columns = start + tl.arange(0, BLOCK)[None, :]
                p = _load(source, columns, strides[0], count, in_row, wide)
                _store(to, columns, sharpened_strides[0], count, in_row, _powers(p, largest, exponent), total)


def sharpen(probs: Tensor, temperature: float | Tensor, dim: int = -1) -> Tensor:
    """See reference.sharpen. A temperature on the device of probs is read by the kernel."""
    _C.check_sharpen(probs, temperature, dim)
    sharpened = torch.empty_like(probs)
    if not probs.numel():
        return sharpened
    live = isinstance(temperature, Tensor) and temperature.device == probs.device
    doubles = probs.dtype == torch.float64
    strides = probs.stride(), sharpened.stride()
    at = layout("sharpen", tuple(probs.shape), dim, strides, halvings=int(doubles), argument="probs")
    with on_device(probs.device):
        _sharpen_kernel[(at.programs,)](
            probs, sharpened, temperature if live else parts(_clamped(float(temperature))),
            at.inner, at.inner_tiles, at.classes, at.tiles, at.sizes, at.strides[0], at.strides[-1],
            LIVE=live, DOUBLES=doubles, UNIT=at.unit, ROWS=at.tile_rows, BLOCK=at.block, ONE_BLOCK=at.one_block,
            FP64=has_fp64(probs.device), num_warps=at.num_warps, enable_fp_fusion=FP_FUSION,
        )  # fmt: skip
    return sharpened


def _clamped(temperature: float) -> float:
    """Where fp32 neither overflows nor loses it: past these bounds the powers are 0 and 1 all the same."""
    return math.copysign(min(max(abs(temperature), 1e-37), 1e37), temperature)
