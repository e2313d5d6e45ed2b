"""The losses between a student's and a teacher's logits: one kernel for all of them, and its launch.

Of csrc/consistency.h, in its letters. A program walks tiles of [ROWS, BLOCK] logits: rows that fit a block are read
once, longer ones two or three times (logit_mse: once). What is None is not in the kernel. Row losses add up in fp64.
"""

import functools

import numpy
import torch
import triton
import triton.language as tl
from torch import Tensor

from mtkernels import _C
from mtkernels._options import LossOptions
from mtkernels.backends.reference import gradient_dtype
from mtkernels.backends.triton.consistency_tile import logit_tile, tile_in_blocks, tile_in_one_block
from mtkernels.backends.triton.decay import parts
from mtkernels.backends.triton.launch import FP_FUSION, on_device, ticket_of
from mtkernels.backends.triton.layout import first_of_row, layout
from mtkernels.backends.triton.partials import PARTIALS, add_up, comes_last, has_fp64, leave, new_partials
from mtkernels.backends.triton.row_math import divide, given, number

_NO_OPTIONS = LossOptions()
_NO_STRIDES = (0, 0, 0, 0, 0)


@triton.jit(do_not_specialize=["rows", "tiles", "inner_tiles"])
def _consistency_kernel(
    student,
    teacher,
    dstudent,
    dteacher,
    loss,  # [rows], or one element
    utilization,  # one element
    partials,  # [2, programs]: losses, rows that count; and with it a ticket: one int32 that is 0
    ticket,
    center,  # [classes]
    center_stride,
    weight,  # of the rows
    student_scale,  # 1 / temperature, in parts
    teacher_scale,
    threshold,  # in parts; or one number, which is read
    threshold_at,
    smoothing,  # in parts
    rows,
    tiles,  # for the rest see Layout
    inner,
    inner_tiles,
    classes,
    sizes,
    student_strides,
    teacher_strides,
    dstudent_strides,
    dteacher_strides,
    weight_strides,
    LOSS: tl.constexpr,
    GRADIENTS: tl.constexpr,
    HARD: tl.constexpr,
    REDUCTION: tl.constexpr,
    UNIT: tl.constexpr,  # a power of two: strides that are not told apart as multiples of 16 may still be of 8
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    PARTIALS: tl.constexpr,
    FP64: tl.constexpr,
):
    wide: tl.constexpr = loss.dtype.element_ty
    row_dtype: tl.constexpr = tl.float64 if FP64 else wide
    one = tl.full([1, 1], 1.0, row_dtype)
    count = classes * UNIT
    inverse_classes = divide(one, one * count)
    scale = divide(one, one * rows) if REDUCTION == "mean" else one
    scales = (
        scale if student_scale is None else scale * number(student_scale, row_dtype),
        scale if teacher_scale is None else scale * number(teacher_scale, row_dtype),
    )
    least = None if threshold is None and threshold_at is None else given(threshold, threshold_at, wide)
    smooth = None if smoothing is None else number(smoothing, row_dtype)
    losses = tl.zeros([ROWS, 1], row_dtype)
    counted = tl.zeros([ROWS, 1], tl.int32)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        outer = (tile // inner_tiles).to(tl.int64)
        row = (tile % inner_tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
        in_row = row < inner
        students = first_of_row(student, outer, row, sizes, student_strides, UNIT)
        teachers = first_of_row(teacher, outer, row, sizes, teacher_strides, UNIT)
        dstudents = students
        dteachers = teachers
        if GRADIENTS & 1:
            dstudents = first_of_row(dstudent, outer, row, sizes, dstudent_strides, UNIT)
        if GRADIENTS & 2:
            dteachers = first_of_row(dteacher, outer, row, sizes, dteacher_strides, UNIT)
        factor = tl.full([ROWS, 1], 1.0, row_dtype)
        if weight is not None:
            weights = first_of_row(weight, outer, row, sizes, weight_strides, 1)
            factor = tl.load(weights, mask=in_row, other=0.0).to(row_dtype)
        at = (students, teachers, dstudents, dteachers)
        along = (student_strides[0], teacher_strides[0], dstudent_strides[0], dteacher_strides[0])
        if LOSS == "logit_mse":
            tile_losses, kept = logit_tile(
                GRADIENTS, BLOCK, at, along, count, in_row, factor, scales, inverse_classes, wide
            )
        else:
            walk: tl.constexpr = tile_in_one_block if ONE_BLOCK else tile_in_blocks
            tile_losses, kept = walk(
                LOSS, GRADIENTS, HARD, BLOCK,
                at, along, count, in_row, center, center_stride, student_scale, teacher_scale,
                factor, least, smooth, scales, inverse_classes, wide,
            )  # fmt: skip
        if REDUCTION == "none":
            tl.store(loss + outer * inner + row, tile_losses.to(wide), mask=in_row)
        else:
            losses += tile_losses
        counted += kept.to(tl.int32)
    if partials is not None:
        leave(partials, 0, tl.sum(losses))
        if utilization is not None:
            leave(partials, 1, tl.sum(counted))
        if comes_last(ticket):
            all_rows = tl.full([], 1, row_dtype) * rows
            if REDUCTION == "mean":
                tl.store(loss, divide(add_up(partials, 0, PARTIALS), all_rows).to(wide))
            elif REDUCTION == "sum":
                tl.store(loss, add_up(partials, 0, PARTIALS).to(wide))
            if utilization is not None:
                tl.store(utilization, divide(add_up(partials, 1, PARTIALS), all_rows).to(wide))


def consistency(
    op: str,
    student: Tensor,
    teacher: Tensor,
    dim: int,
    reduction: str,
    gradients: int,
    options: LossOptions | None,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """(loss, dstudent, dteacher, utilization): the loss in its accumulator, gradients in their gradient_dtype."""
    _C.check_consistency(op, student, teacher, dim, reduction, options, gradients)
    options = options or _NO_OPTIONS
    wide = torch.float64 if torch.float64 in (student.dtype, teacher.dtype) else torch.float32
    dstudent = torch.empty_like(student, dtype=gradient_dtype(student)) if gradients & 1 else None
    dteacher = torch.empty_like(teacher, dtype=gradient_dtype(teacher)) if gradients & 2 else None
    operands = [tensor for tensor in (student, teacher, dstudent, dteacher) if tensor is not None]
    center, weight = options.center, options.weight
    # Two gradients, or the logarithms of each class, take as many registers again.
    halvings = (wide == torch.float64) + (gradients == 3 or op == "softmax_js")
    strides = tuple(tensor.stride() for tensor in operands)
    row_strides = () if weight is None else (weight.stride(),)
    at = layout(op, tuple(student.shape), dim, strides, row_strides, halvings)
    loss = student.new_empty(_loss_shape(student, dim) if reduction == "none" else (), dtype=wide)
    utilization = None if options.threshold is None else student.new_empty((), dtype=wide)
    partials, ticket = None, None
    if reduction != "none" or utilization is not None:
        partials = new_partials(2, at.programs, wide, student.device)
        ticket = ticket_of(student.device)
    elif at.rows == 0:
        return loss, dstudent, dteacher, None
    with on_device(student.device):
        _consistency_kernel[(at.programs,)](
            student, teacher, dstudent, dteacher, loss, utilization, partials, ticket,
            center, 1 if center is None else center.stride(0), weight,
            inverse_parts(options.student_temperature), inverse_parts(options.teacher_temperature),
            *number_or_pointer(options.threshold, student.device),
            parts(options.label_smoothing) if options.label_smoothing else None,
            max(at.rows, 1), at.tiles, at.inner, at.inner_tiles, at.classes, at.sizes,
            at.strides[0], at.strides[1], at.strides[min(2, len(strides) - 1)], at.strides[-1],
            at.row_strides[0] if at.row_strides else _NO_STRIDES,
            LOSS=op, GRADIENTS=gradients, HARD=options.hard, REDUCTION=reduction, UNIT=at.unit,
            ROWS=at.tile_rows, BLOCK=at.block, ONE_BLOCK=at.one_block, PARTIALS=PARTIALS,
            FP64=has_fp64(student.device), num_warps=at.num_warps, enable_fp_fusion=FP_FUSION,
        )  # fmt: skip
    return loss, dstudent, dteacher, utilization


def loss_of(op: str):
    def loss(
        student: Tensor,
        teacher: Tensor,
        dim: int = -1,
        reduction: str = "mean",
        gradients: int = 0,
        options: LossOptions | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        return consistency(op, student, teacher, dim, reduction, gradients, options)

    loss.__name__ = loss.__qualname__ = op
    return loss


def _loss_shape(student: Tensor, dim: int) -> list[int]:
    shape = list(student.shape)
    del shape[dim]
    return shape


@functools.lru_cache(maxsize=1024)
def inverse_parts(temperature: float) -> tuple[float, float, float] | None:
    """1 / temperature in parts, of which the first two are above 0: -inf stays -inf times either. None for 1."""
    if temperature == 1:
        return None
    exact = min(max(1 / temperature, 2.0**-100), 2.0**100)
    high = numpy.float32(exact)
    if high >= exact:
        high = numpy.nextafter(high, numpy.float32(0))
    low = numpy.float32(exact - float(high))
    return float(high), float(low), exact - float(high) - float(low)


def number_or_pointer(value: float | Tensor | None, device: torch.device):
    """(number in parts or None, tensor or None): a tensor on the device is read there, when the kernel runs."""
    if isinstance(value, Tensor) and value.device == device:
        return None, value
    return None if value is None else parts(float(value)), None
