"""The losses between a student's and a teacher's logits: one kernel for all of them, and its launch.

Of csrc/consistency.h, in its letters: p = softmax(a), q = softmax(b), ea = exp(a - ma) with ma = max a, za = sum ea.
A row that is -inf throughout on either side has loss 0 and gradient 0. A program walks tiles of [ROWS, BLOCK] logits:
rows that fit a block are read once, longer ones two or three times. Row losses are added up in fp64.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from mtkernels import _C
from mtkernels.backends.reference import gradient_dtype
from mtkernels.backends.triton.launch import FP_FUSION, on_device, ticket_of
from mtkernels.backends.triton.layout import layout

_PARTIALS = 1024  # added up at a time


@triton.jit
def _divide(x, y):
    """Rounded to nearest, so that x / x is 1: Triton's own fp32 division may be off by 2 units in the last place."""
    if x.dtype == tl.float64:
        return x / y
    else:
        return tl.div_rn(x, y)


@triton.jit
def _sum(x):
    return tl.sum(x, axis=1, keep_dims=True)


@triton.jit
def _max(x):
    return tl.max(x, axis=1, keep_dims=True)


@triton.jit
def _finite(maximum):
    return tl.where(maximum == -float("inf"), 0.0, maximum)


@triton.jit
def _logits(pointers, columns, stride, classes, in_row, wide: tl.constexpr):
    mask = in_row & (columns < classes)
    return tl.load(pointers + columns.to(tl.int64) * stride, mask=mask, other=-float("inf")).to(wide)


@triton.jit
def _weights(za, zb):
    """Which rows are masked; p - q = (ea * ratio - eb) * inverse_zb, 0 for equal sides even where it is contracted."""
    masked = (za == 0) | (zb == 0)
    za = tl.where(masked, 1.0, za)
    zb = tl.where(masked, 1.0, zb)
    return masked, za, zb, _divide(zb, za), _divide(tl.full(zb.shape, 1.0, zb.dtype), zb)


@triton.jit
def _sums(LOSS: tl.constexpr, x, y, ea, eb, d):
    """softmax_mse: of (p - q)^2 and of ea (p - q). softmax_kl: of eb (y - x), twice. x = a - ma, y = b - mb."""
    if LOSS == "softmax_mse":
        return _sum(d * d), _sum(ea * d)
    else:
        # 0 log 0 = 0, while a class that is masked at the student alone makes the loss infinite.
        cross = _sum(tl.where(eb == 0, 0.0, eb * (y - x)))
        return cross, cross


@triton.jit
def _row_loss(LOSS: tl.constexpr, first, za, zb, inverse_classes):
    if LOSS == "softmax_mse":
        return first * inverse_classes
    else:
        return _divide(first, zb) + tl.log(_divide(za, zb))


@triton.jit
def _gradient(LOSS: tl.constexpr, ea, d, along, za, scale, inverse_classes):
    if LOSS == "softmax_mse":
        factor = _divide(2 * scale * inverse_classes + tl.zeros_like(za), za)
        return factor * ea * (d - _divide(along, za))
    else:
        return scale * d


@triton.jit
def _store(pointers, columns, stride, classes, in_row, masked, gradient):
    gradient = tl.where(masked, 0.0, gradient).to(pointers.dtype.element_ty)
    tl.store(pointers + columns.to(tl.int64) * stride, gradient, mask=in_row & (columns < classes))


@triton.jit
def _tile_in_one_block(
    LOSS: tl.constexpr, GRADIENT: tl.constexpr, BLOCK: tl.constexpr,
    students, teachers, gradients, stride_a, stride_b, stride_d, classes, in_row, scale, inverse_classes,
):  # fmt: skip
    wide: tl.constexpr = scale.dtype
    columns = tl.arange(0, BLOCK)[None, :]
    a = _logits(students, columns, stride_a, classes, in_row, wide)
    b = _logits(teachers, columns, stride_b, classes, in_row, wide)
    x = a - _finite(_max(a))
    y = b - _finite(_max(b))
    ea = tl.exp(x)
    eb = tl.exp(y)
    masked, za, zb, ratio, inverse_zb = _weights(_sum(ea), _sum(eb))
    d = (ea * ratio - eb) * inverse_zb
    first, along = _sums(LOSS, x, y, ea, eb, d)
    if GRADIENT:
        gradient = _gradient(LOSS, ea, d, along, za, scale, inverse_classes)
        _store(gradients, columns, stride_d, classes, in_row, masked, gradient)
    return tl.where(masked, 0.0, _row_loss(LOSS, first, za, zb, inverse_classes))


@triton.jit
def _tile_in_blocks(
    LOSS: tl.constexpr, GRADIENT: tl.constexpr, BLOCK: tl.constexpr,
    students, teachers, gradients, stride_a, stride_b, stride_d, classes, in_row, scale, inverse_classes,
):  # fmt: skip
    wide: tl.constexpr = scale.dtype
    zero = tl.zeros(students.shape, wide)
    ma = zero - float("inf")
    mb = zero - float("inf")
    za = zero
    zb = zero
    for start in range(0, classes, BLOCK):
        columns = start + tl.arange(0, BLOCK)[None, :]
        a = _logits(students, columns, stride_a, classes, in_row, wide)
        b = _logits(teachers, columns, stride_b, classes, in_row, wide)
        higher_a = tl.maximum(ma, _max(a))
        higher_b = tl.maximum(mb, _max(b))
        za = za * tl.exp(ma - _finite(higher_a)) + _sum(tl.exp(a - _finite(higher_a)))
        zb = zb * tl.exp(mb - _finite(higher_b)) + _sum(tl.exp(b - _finite(higher_b)))
        ma = higher_a
        mb = higher_b
    ma = _finite(ma)
    mb = _finite(mb)
    masked, za, zb, ratio, inverse_zb = _weights(za, zb)
    first = zero
    along = zero
    for start in range(0, classes, BLOCK):
        columns = start + tl.arange(0, BLOCK)[None, :]
        x = _logits(students, columns, stride_a, classes, in_row, wide) - ma
        y = _logits(teachers, columns, stride_b, classes, in_row, wide) - mb
        ea = tl.exp(x)
        eb = tl.exp(y)
        d = (ea * ratio - eb) * inverse_zb
        block_first, block_along = _sums(LOSS, x, y, ea, eb, d)
        first += block_first
        along += block_along
        if GRADIENT and LOSS == "softmax_kl":
            gradient = _gradient(LOSS, ea, d, along, za, scale, inverse_classes)
            _store(gradients, columns, stride_d, classes, in_row, masked, gradient)
    if GRADIENT and LOSS == "softmax_mse":
        for start in range(0, classes, BLOCK):
            columns = start + tl.arange(0, BLOCK)[None, :]
            ea = tl.exp(_logits(students, columns, stride_a, classes, in_row, wide) - ma)
            eb = tl.exp(_logits(teachers, columns, stride_b, classes, in_row, wide) - mb)
            d = (ea * ratio - eb) * inverse_zb
            gradient = _gradient(LOSS, ea, d, along, za, scale, inverse_classes)
            _store(gradients, columns, stride_d, classes, in_row, masked, gradient)
    return tl.where(masked, 0.0, _row_loss(LOSS, first, za, zb, inverse_classes))


@triton.jit
def _add_up(losses, divisor, loss, partials, ticket, PARTIALS: tl.constexpr):
    """The program that comes last adds all up in their order, and leaves the ticket at 0 for the next launch."""
    programs = tl.num_programs(0)
    tl.store(partials + tl.program_id(0), tl.sum(losses))
    tl.debug_barrier()
    if tl.atomic_add(ticket, 1, sem="acq_rel", scope="gpu") == programs - 1:
        total = tl.zeros([PARTIALS], losses.dtype)
        for start in range(0, programs, PARTIALS):
            at = start + tl.arange(0, PARTIALS)
            # From the L2, where the other programs' stores are.
            total += tl.load(partials + at, mask=at < programs, other=0.0, cache_modifier=".cg")
        tl.store(loss, _divide(tl.sum(total), divisor).to(loss.dtype.element_ty))
        tl.store(ticket, 0)


@triton.jit
def _first_of_row(pointer, outer, row, sizes, strides, UNIT: tl.constexpr):
    """Pointers to class 0 of rows of the innermost row dim, at an index over the three outer ones."""
    offset = outer // sizes[1] // sizes[0] * strides[1]
    offset += outer // sizes[1] % sizes[0] * strides[2]
    offset += outer % sizes[1] * strides[3]
    return pointer + (offset + row * strides[4]) * UNIT


@triton.jit(do_not_specialize=["rows", "tiles", "inner_tiles"])
def _consistency_kernel(
    student,
    teacher,
    dstudent,  # None where nobody needs it
    loss,  # [rows], or one element
    partials,  # [programs], and with it a ticket: one int32 that is 0. None where REDUCTION is "none"
    ticket,
    rows,
    tiles,  # for the rest see Layout
    inner,
    inner_tiles,
    classes,
    sizes,
    student_strides,
    teacher_strides,
    dstudent_strides,
    LOSS: tl.constexpr,
    REDUCTION: tl.constexpr,
    UNIT: tl.constexpr,  # a power of two: strides that are not told apart as multiples of 16 may still be of 8
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    PARTIALS: tl.constexpr,
):
    one = tl.full([1, 1], 1.0, loss.dtype.element_ty)
    count = classes * UNIT
    inverse_classes = _divide(one, one * count)
    scale = one
    if REDUCTION == "mean":
        scale = _divide(one, one * rows)
    GRADIENT: tl.constexpr = dstudent is not None
    losses = tl.zeros([ROWS, 1], one.dtype if REDUCTION == "none" else partials.dtype.element_ty)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        outer = (tile // inner_tiles).to(tl.int64)
        row = (tile % inner_tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
        students = _first_of_row(student, outer, row, sizes, student_strides, UNIT)
        teachers = _first_of_row(teacher, outer, row, sizes, teacher_strides, UNIT)
        gradients = students
        if GRADIENT:
            gradients = _first_of_row(dstudent, outer, row, sizes, dstudent_strides, UNIT)
        run: tl.constexpr = _tile_in_one_block if ONE_BLOCK else _tile_in_blocks
        tile_losses = run(
            LOSS, GRADIENT, BLOCK, students, teachers, gradients,
            student_strides[0], teacher_strides[0], dstudent_strides[0], count, row < inner, scale, inverse_classes,
        )  # fmt: skip
        if REDUCTION == "none":
            tl.store(loss + outer * inner + row, tile_losses, mask=row < inner)
        else:
            losses += tile_losses.to(losses.dtype)
    if REDUCTION != "none":
        divisor = tl.full([], 1, losses.dtype) * (rows if REDUCTION == "mean" else 1)
        _add_up(losses, divisor, loss, partials, ticket, PARTIALS)


def consistency(op: str, student: Tensor, teacher: Tensor, dim: int, reduction: str, with_gradient: bool):
    """(loss, dstudent or None), in the loss's accumulator and in gradient_dtype(student)."""
    _C.check_consistency(op, student, teacher, dim, reduction)
    wide = torch.float64 if torch.float64 in (student.dtype, teacher.dtype) else torch.float32
    dstudent = torch.empty_like(student, dtype=gradient_dtype(student)) if with_gradient else None
    operands = (student, teacher) if dstudent is None else (student, teacher, dstudent)
    strides = tuple(tensor.stride() for tensor in operands)
    at = layout(op, tuple(student.shape), dim, strides, wide == torch.float64)
    if reduction == "none":
        shape = list(student.shape)
        del shape[dim]
        loss, partials, ticket = student.new_empty(shape, dtype=wide), None, None
        if at.rows == 0:
            return loss, dstudent
    else:
        loss = student.new_empty((), dtype=wide)
        sums = torch.float64 if _has_fp64(student.device) else wide
        partials, ticket = student.new_empty(at.programs, dtype=sums), ticket_of(student.device)
    with on_device(student.device):
        _consistency_kernel[(at.programs,)](
            student, teacher, dstudent, loss, partials, ticket,
            max(at.rows, 1), at.tiles, at.inner, at.inner_tiles, at.classes, at.sizes,
            at.strides[0], at.strides[1], at.strides[-1],
            LOSS=op, REDUCTION=reduction, UNIT=at.unit, ROWS=at.tile_rows, BLOCK=at.block, ONE_BLOCK=at.one_block,
            PARTIALS=_PARTIALS, num_warps=at.num_warps, enable_fp_fusion=FP_FUSION,
        )  # fmt: skip
    return loss, dstudent


@functools.cache
def _has_fp64(device: torch.device) -> bool:
    return device.type != "xpu" or torch.xpu.get_device_properties(device).has_fp64
