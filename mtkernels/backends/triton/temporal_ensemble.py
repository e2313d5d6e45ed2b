"""temporal_ensemble_: csrc/temporal_ensemble.h in its letters; a program walks tiles of [ROWS, BLOCK] logits."""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from mtkernels import _C
from mtkernels.backends.reference import gradient_dtype
from mtkernels.backends.triton.decay import joined_parts, parts
from mtkernels.backends.triton.launch import FP_FUSION, on_device, ticket_of
from mtkernels.backends.triton.layout import layout
from mtkernels.backends.triton.partials import PARTIALS, add_up, comes_last, has_fp64, leave, new_partials
from mtkernels.backends.triton.row_math import (
    divide,
    exponential,
    finite,
    narrowed,
    number,
    row_max,
    row_sum,
)


@triton.jit
def _load(pointers, columns, stride, mask, other, wide: tl.constexpr):
    return tl.load(pointers + columns.to(tl.int64) * stride, mask=mask, other=other).to(wide)


@triton.jit
def _row(sum_e, sum_z, corrected, RENORMALIZE: tl.constexpr, wide: tl.constexpr):
    """1 / sum_e, what z is multiplied by, whether the row is masked, and whether it has no target."""
    masked = sum_e == 0
    one = tl.full(sum_e.shape, 1.0, sum_e.dtype)
    inverse = divide(one, tl.where(masked, 1.0, sum_e)).to(wide)
    if RENORMALIZE:
        return inverse, divide(one, tl.where(sum_z == 0, 1.0, sum_z)).to(wide), masked, masked | (sum_z == 0)
    else:
        return inverse, (one * corrected).to(wide), masked, masked


@triton.jit
def _write(
    samples, gradients, columns, stride, mask, p, z, d, along, factor, alpha, beta, masked, idle, inside,
    GRADIENT: tl.constexpr,
):  # fmt: skip
    moved = narrowed(alpha * z + beta * p, samples.dtype.element_ty)
    tl.store(samples + columns, moved, mask=mask & inside & (masked == 0))
    if GRADIENT:
        gradient = tl.where(inside, tl.where(idle, 0.0, factor * p * (d - along)), float("nan"))
        gradient = narrowed(gradient, gradients.dtype.element_ty)
        tl.store(gradients + columns.to(tl.int64) * stride, gradient, mask=mask)


@triton.jit
def _tile_in_one_block(
    students, samples, gradients, stride, gradient_stride, classes, in_row, inside, no_target,
    alpha, beta, corrected, factor,
    GRADIENT: tl.constexpr, RENORMALIZE: tl.constexpr, BLOCK: tl.constexpr,
    wide: tl.constexpr, row_dtype: tl.constexpr,
):  # fmt: skip
    columns = tl.arange(0, BLOCK)[None, :]
    mask = in_row & (columns < classes)
    a = _load(students, columns, stride, mask, -float("inf"), wide)
    z = _load(samples, columns, 1, mask & inside, 0.0, wide)
    e = exponential(a - finite(row_max(a)))
    inverse, corrected, masked, idle = _row(
        row_sum(e, row_dtype), row_sum(z, row_dtype), corrected, RENORMALIZE, wide
    )
    idle = idle | no_target
    p = e * inverse
    d = p - z * corrected
    along = row_sum(p * d, row_dtype).to(wide)
    _write(
        samples, gradients, columns, gradient_stride, mask, p, z, d, along, factor, alpha, beta, masked, idle,
        inside, GRADIENT,
    )  # fmt: skip
    return row_sum(d * d, row_dtype), idle


@triton.jit
def _tile_in_blocks(
    students, samples, gradients, stride, gradient_stride, classes, in_row, inside, no_target,
    alpha, beta, corrected, factor,
    GRADIENT: tl.constexpr, RENORMALIZE: tl.constexpr, BLOCK: tl.constexpr,
    wide: tl.constexpr, row_dtype: tl.constexpr,
):  # fmt: skip
    zero = tl.zeros(students.shape, row_dtype)
    maximum = tl.zeros(students.shape, wide) - float("inf")
    sum_e = zero
    sum_z = zero
    for start in range(0, classes, BLOCK):
        columns = start + tl.arange(0, BLOCK)[None, :]
        mask = in_row & (columns < classes)
        a = _load(students, columns, stride, mask, -float("inf"), wide)
        higher = tl.maximum(maximum, row_max(a))
        sum_e = sum_e * exponential(maximum - finite(higher)).to(row_dtype)
        sum_e += row_sum(exponential(a - finite(higher)), row_dtype)
        maximum = higher
        if RENORMALIZE:
            sum_z += row_sum(_load(samples, columns, 1, mask & inside, 0.0, wide), row_dtype)
    maximum = finite(maximum)
    inverse, corrected, masked, idle = _row(sum_e, sum_z, corrected, RENORMALIZE, wide)
    idle = idle | no_target
    squares = zero
    along = zero
    for start in range(0, classes, BLOCK):
        columns = start + tl.arange(0, BLOCK)[None, :]
        mask = in_row & (columns < classes)
        p = exponential(_load(students, columns, stride, mask, -float("inf"), wide) - maximum) * inverse
        d = p - _load(samples, columns, 1, mask & inside, 0.0, wide) * corrected
        squares += row_sum(d * d, row_dtype)
        along += row_sum(p * d, row_dtype)
    along = along.to(wide)
    tl.debug_barrier()  # all of the row has been read
    for start in range(0, classes, BLOCK):
        columns = start + tl.arange(0, BLOCK)[None, :]
        mask = in_row & (columns < classes)
        p = exponential(_load(students, columns, stride, mask, -float("inf"), wide) - maximum) * inverse
        z = _load(samples, columns, 1, mask & inside, 0.0, wide)
        d = p - z * corrected
        _write(
            samples, gradients, columns, gradient_stride, mask, p, z, d, along, factor, alpha, beta, masked, idle,
            inside, GRADIENT,
        )  # fmt: skip
    return squares, idle


@triton.jit
def _live_correction(updates, log_alpha, wide: tl.constexpr):
    """1 / (1 - alpha^updates), and whether there were none."""
    count = tl.load(updates).to(tl.int64)
    never = count <= 0
    power = tl.exp(tl.where(never, 1, count).to(tl.float64) * joined_parts(log_alpha))
    return (1 / (1 - power)).to(wide), never


@triton.jit(do_not_specialize=["rows", "tiles", "count"])
def _temporal_ensemble_kernel(
    student,
    ensemble,
    index,
    dstudent,  # None where nobody needs it
    loss,  # [rows], or one element
    partials,  # [1, programs], and with it a ticket: one int32 that is 0. None where REDUCTION is "none"
    ticket,
    updates,  # where it is on the device: one integer; else None, and the correction is among the numbers
    numbers,  # alpha, 1 - alpha, correction, each in parts
    log_alpha,  # in parts
    rows,
    tiles,
    count,  # of samples
    classes,
    student_strides,
    ensemble_stride,
    dstudent_strides,
    index_stride,
    CORRECTION: tl.constexpr,
    HAS_TARGET: tl.constexpr,
    REDUCTION: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    PARTIALS: tl.constexpr,
    FP64: tl.constexpr,
):
    wide: tl.constexpr = loss.dtype.element_ty
    row_dtype: tl.constexpr = tl.float64 if FP64 else wide
    one = tl.full([1, 1], 1.0, row_dtype)
    inverse_classes = divide(one, one * classes)
    scale = one
    if REDUCTION == "mean":
        scale = divide(one, one * rows)
    alpha = number(numbers[0], wide)
    beta = number(numbers[1], wide)
    corrected = number(numbers[2], wide)
    no_target = not HAS_TARGET
    if updates is not None:
        live, no_target = _live_correction(updates, log_alpha, wide)
        if CORRECTION == "bias":
            corrected = live
    GRADIENT: tl.constexpr = dstudent is not None
    losses = tl.zeros([ROWS, 1], row_dtype)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        row = (tl.full([], ROWS, tl.int64) * tile) + tl.arange(0, ROWS)[:, None]
        in_row = row < rows
        sample = tl.load(index + row * index_stride, mask=in_row, other=0).to(tl.int64)
        inside = (sample >= 0) & (sample < count)
        students = student + row * student_strides[0]
        samples = ensemble + tl.where(inside, sample, 0) * ensemble_stride
        gradients = students
        if GRADIENT:
            gradients = dstudent + row * dstudent_strides[0]
        run: tl.constexpr = _tile_in_one_block if ONE_BLOCK else _tile_in_blocks
        squares, idle = run(
            students, samples, gradients, student_strides[1], dstudent_strides[1], classes, in_row, inside,
            no_target, alpha, beta, corrected, (2 * scale * inverse_classes).to(wide),
            GRADIENT, CORRECTION == "renormalize", BLOCK, wide, row_dtype,
        )  # fmt: skip
        tile_losses = tl.where(inside, tl.where(idle, 0.0, squares * inverse_classes), float("nan"))
        if REDUCTION == "none":
            tl.store(loss + row, tile_losses.to(wide), mask=in_row)
        else:
            losses += tl.where(in_row, tile_losses, 0.0)
    if partials is not None:
        leave(partials, 0, tl.sum(losses))
        if comes_last(ticket):
            divisor = tl.full([], 1, row_dtype) * (rows if REDUCTION == "mean" else 1)
            tl.store(loss, divide(add_up(partials, 0, PARTIALS), divisor).to(wide))


def temporal_ensemble_(
    ensemble: Tensor,
    index: Tensor,
    student: Tensor,
    alpha: float = 0.6,
    updates: int | Tensor | None = None,
    correction: str = "bias",
    reduction: str = "mean",
    with_gradient: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """See reference.temporal_ensemble_. `updates` on the logits' device is read by the kernel."""
    _C.check_temporal_ensemble(ensemble, index, student, alpha, updates, correction, reduction)
    rows, classes = student.shape
    wide = torch.float64 if torch.float64 in (student.dtype, ensemble.dtype) else torch.float32
    dstudent = torch.empty_like(student, dtype=gradient_dtype(student)) if with_gradient else None
    loss = student.new_empty(rows if reduction == "none" else (), dtype=wide)
    if rows == 0 and reduction == "none":
        return loss, dstudent
    strides = (student.stride(), student.stride() if dstudent is None else dstudent.stride())
    at = layout("temporal_ensemble_", (rows, classes), 1, strides, (), int(wide == torch.float64))
    partials = ticket = None
    if reduction != "none":
        partials = new_partials(1, at.programs, wide, student.device)
        ticket = ticket_of(student.device)
    live, has_target, corrected = _correction(alpha, updates, correction, student.device)
    numbers = tuple(parts(x) for x in (float(alpha), 1.0 - alpha, corrected))
    with on_device(student.device):
        _temporal_ensemble_kernel[(at.programs,)](
            student, ensemble, index, dstudent, loss, partials, ticket,
            live, numbers, parts(math.log(alpha) if alpha > 0 else -math.inf),
            max(rows, 1), at.tiles, ensemble.shape[0], classes,
            strides[0], ensemble.stride(0), strides[1], index.stride(0),
            CORRECTION=correction, HAS_TARGET=has_target, REDUCTION=reduction, ROWS=at.tile_rows,
            BLOCK=at.block, ONE_BLOCK=at.one_block, PARTIALS=PARTIALS, FP64=has_fp64(student.device),
            num_warps=at.num_warps, enable_fp_fusion=FP_FUSION,
        )  # fmt: skip
    return loss, dstudent


def _correction(alpha, updates, correction: str, device: torch.device) -> tuple[Tensor | None, bool, float]:
    """updates that the kernel reads, whether there is a target, and what z is multiplied by."""
    if isinstance(updates, Tensor):
        if updates.device == device:
            return updates, True, 1.0
        updates = int(updates)  # on the CPU
    if updates is None or updates > 0:
        return None, True, 1 / (1 - alpha**updates) if correction == "bias" else 1.0
    return None, False, 1.0
