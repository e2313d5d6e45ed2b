"""The objective of a step in one launch: csrc/mean_teacher_loss.h, in its letters.

Tiles, partial sums and the ticket are those of consistency.py. Class losses over labeled rows alone need their number
before any gradient: each program counts them where that is quick, else a launch before this one does.
A label that is no class cannot be refused on a GPU: it is not followed, and makes the total and its row's gradient NaN.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mtkernels import _C
from mtkernels.backends.reference import gradient_dtype
from mtkernels.backends.triton.consistency import number_or_pointer
from mtkernels.backends.triton.launch import FP_FUSION, on_device, ticket_of
from mtkernels.backends.triton.layout import first_of_row, layout
from mtkernels.backends.triton.mean_teacher_tile import objective_in_blocks, objective_in_one_block
from mtkernels.backends.triton.partials import PARTIALS, add_up, comes_last, leave, new_partials
from mtkernels.backends.triton.row_math import divide, given

_COUNTED = 1 << 20  # labels read by all programs together: above, counting is a launch of its own
_COUNTERS = 256  # its programs, at most
_SLOTS = 8  # sums: three losses, five counts


@triton.jit
def _labels_of(labels, outer, row, in_row, sizes, strides, ignore_index):
    pointers = first_of_row(labels, outer, row, sizes, strides, 1)
    return tl.load(pointers, mask=in_row, other=ignore_index).to(tl.int64)


@triton.jit
def _labeled_rows(labels, first, step, rows, inner, sizes, strides, ignore_index, PARTIALS: tl.constexpr):
    labeled = tl.zeros([PARTIALS], tl.int32)
    for start in range(first * PARTIALS, rows, step * PARTIALS):
        at = start + tl.arange(0, PARTIALS).to(tl.int64)
        label = _labels_of(labels, at // inner, at % inner, at < rows, sizes, strides, ignore_index)
        labeled += (label != ignore_index).to(tl.int32)
    return tl.sum(labeled)


@triton.jit(do_not_specialize=["rows", "ignore_index"])
def _count_kernel(labels, counters, rows, inner, sizes, label_strides, ignore_index, PARTIALS: tl.constexpr):
    programs = tl.num_programs(0)
    labeled = _labeled_rows(
        labels, tl.program_id(0), programs, rows, inner, sizes, label_strides, ignore_index, PARTIALS
    )
    tl.store(counters + tl.program_id(0), labeled)


@triton.jit
def _finish(
    parts_out, total, counts, partials, weight, cost, rows, BY_LABELED: tl.constexpr, PARTIALS: tl.constexpr
):
    one = tl.full([], 1.0, partials.dtype.element_ty)
    for k in tl.static_range(5):
        tl.store(counts + k, add_up(partials, 3 + k, PARTIALS).to(tl.int64))
    all_rows = one * tl.maximum(rows, 1)
    labeled = tl.maximum(add_up(partials, 3, PARTIALS), 1.0)
    of_class = divide(add_up(partials, 0, PARTIALS), labeled if BY_LABELED else all_rows)
    consistency = weight.to(one.dtype) * divide(add_up(partials, 1, PARTIALS), all_rows)
    distance = cost.to(one.dtype) * divide(add_up(partials, 2, PARTIALS), all_rows)
    wide: tl.constexpr = total.dtype.element_ty
    of_class = of_class.to(wide)
    consistency = tl.where(weight == 0, 0.0, consistency).to(wide)
    distance = tl.where(cost == 0, 0.0, distance).to(wide)
    tl.store(parts_out, of_class)
    tl.store(parts_out + 1, consistency)
    tl.store(parts_out + 2, distance)
    tl.store(total, of_class + consistency + distance)


@triton.jit(do_not_specialize=["rows", "tiles", "inner_tiles", "ignore_index"])
def _mean_teacher_loss_kernel(
    student,
    teacher,
    second,
    dstudent,
    dsecond,
    labels,
    total,  # one element
    parts_out,  # three
    counts,  # five, int64
    partials,  # [_SLOTS, programs], and with it a ticket
    ticket,
    counters,  # [COUNTERS]: labeled rows; None where they are counted here, or nobody needs them
    weight,  # in parts; or one number, which is read
    weight_at,
    cost,
    cost_at,
    ignore_index,
    rows,
    tiles,  # for the rest see Layout
    inner,
    inner_tiles,
    classes,
    sizes,
    student_strides,
    teacher_strides,
    second_strides,
    dstudent_strides,
    dsecond_strides,
    label_strides,
    LOSS: tl.constexpr,
    BY_LABELED: tl.constexpr,
    COUNTERS: tl.constexpr,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    PARTIALS: tl.constexpr,
):
    wide: tl.constexpr = total.dtype.element_ty
    row_dtype: tl.constexpr = partials.dtype.element_ty
    GRADIENT: tl.constexpr = dstudent is not None
    SECOND: tl.constexpr = second is not None
    one = tl.full([1, 1], 1.0, row_dtype)
    count = classes * UNIT
    inverse_classes = divide(one, one * count)
    scale = divide(one, one * tl.maximum(rows, 1))
    by_weight = given(weight, weight_at, row_dtype)
    by_cost = given(cost, cost_at, row_dtype)
    class_scale = scale
    if GRADIENT and BY_LABELED:
        if counters is None:
            labeled = _labeled_rows(labels, 0, 1, rows, inner, sizes, label_strides, ignore_index, PARTIALS)
        else:
            labeled = tl.sum(tl.load(counters + tl.arange(0, COUNTERS)))
        class_scale = divide(one, one * tl.maximum(labeled, 1))
    class_losses = tl.zeros([ROWS, 1], row_dtype)
    consistency = class_losses
    distance = class_losses
    labeled_rows = tl.zeros([ROWS, 1], tl.int32)
    student_top1 = labeled_rows
    student_top5 = labeled_rows
    teacher_top1 = labeled_rows
    teacher_top5 = labeled_rows
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        outer = (tile // inner_tiles).to(tl.int64)
        row = (tile % inner_tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
        in_row = row < inner
        label = _labels_of(labels, outer, row, in_row, sizes, label_strides, ignore_index)
        is_labeled = in_row & (label != ignore_index)
        is_class = is_labeled & (label >= 0) & (label < count)
        students = first_of_row(student, outer, row, sizes, student_strides, UNIT)
        teachers = first_of_row(teacher, outer, row, sizes, teacher_strides, UNIT)
        seconds = students
        dstudents = students
        dseconds = students
        if SECOND:
            seconds = first_of_row(second, outer, row, sizes, second_strides, UNIT)
        if GRADIENT:
            dstudents = first_of_row(dstudent, outer, row, sizes, dstudent_strides, UNIT)
            if SECOND:
                dseconds = first_of_row(dsecond, outer, row, sizes, dsecond_strides, UNIT)
        own_a = tl.load(students + label * student_strides[0], mask=is_class, other=float("nan")).to(wide)
        own_b = tl.load(teachers + label * teacher_strides[0], mask=is_class, other=float("nan")).to(wide)
        scales = (
            tl.where(is_labeled, tl.where(is_class, class_scale, float("nan")), 0.0),
            by_weight * scale,
            by_cost * scale * 2 * inverse_classes,
        )
        walk: tl.constexpr = objective_in_one_block if ONE_BLOCK else objective_in_blocks
        of_class, of_consistency, of_distance, ahead_a, ahead_b = walk(
            LOSS, GRADIENT, SECOND, BLOCK,
            (students, teachers, seconds, dstudents, dseconds),
            (student_strides[0], teacher_strides[0], second_strides[0], dstudent_strides[0], dsecond_strides[0]),
            count, in_row, label, (own_a, own_b), scales, inverse_classes, wide,
        )  # fmt: skip
        of_class = tl.where(is_labeled & (is_class == 0), float("nan"), of_class)
        class_losses += of_class
        consistency += of_consistency
        distance += of_distance
        ranked_a = is_class & (own_a == own_a)
        ranked_b = is_class & (own_b == own_b)
        labeled_rows += is_labeled.to(tl.int32)
        student_top1 += (ranked_a & (ahead_a < 1)).to(tl.int32)
        student_top5 += (ranked_a & (ahead_a < 5)).to(tl.int32)
        teacher_top1 += (ranked_b & (ahead_b < 1)).to(tl.int32)
        teacher_top5 += (ranked_b & (ahead_b < 5)).to(tl.int32)
    leave(partials, 0, tl.sum(class_losses))
    leave(partials, 1, tl.sum(consistency))
    leave(partials, 2, tl.sum(distance))
    leave(partials, 3, tl.sum(labeled_rows))
    leave(partials, 4, tl.sum(student_top1))
    leave(partials, 5, tl.sum(student_top5))
    leave(partials, 6, tl.sum(teacher_top1))
    leave(partials, 7, tl.sum(teacher_top5))
    if comes_last(ticket):
        _finish(parts_out, total, counts, partials, by_weight, by_cost, rows, BY_LABELED, PARTIALS)


def mean_teacher_loss(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    second: Tensor | None = None,
    dim: int = -1,
    consistency_weight: float | Tensor = 1.0,
    logit_distance_cost: float | Tensor = 0.0,
    kl: bool = False,
    by_labeled: bool = False,
    ignore_index: int = -1,
    with_gradient: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """(total, parts, counts, dstudent, dsecond)."""
    arguments = (student, teacher, labels, second, dim, consistency_weight, logit_distance_cost)
    _C.check_mean_teacher_loss(*arguments, ignore_index)
    logits = [tensor for tensor in (student, teacher, second) if tensor is not None]
    wide = torch.float64 if any(tensor.dtype == torch.float64 for tensor in logits) else torch.float32
    dstudent, dsecond = (
        torch.empty_like(head, dtype=gradient_dtype(head)) if with_gradient and head is not None else None
        for head in (student, second)
    )
    operands = [tensor for tensor in (*logits, dstudent, dsecond) if tensor is not None]
    at = layout(
        "mean_teacher_loss", tuple(student.shape), dim, tuple(tensor.stride() for tensor in operands),
        (labels.stride(),), 1 + (wide == torch.float64),
    )  # fmt: skip
    strides = {id(tensor): stride for tensor, stride in zip(operands, at.strides, strict=True)}
    strides[id(None)] = at.strides[0]
    total, parts = student.new_empty((), dtype=wide), student.new_empty(3, dtype=wide)
    counts = student.new_empty(5, dtype=torch.int64)
    walk = (at.inner, at.sizes, at.row_strides[0], ignore_index, PARTIALS)
    with on_device(student.device):
        counters = None
        if with_gradient and by_labeled and at.rows * at.programs > _COUNTED:
            programs = min(_COUNTERS, triton.next_power_of_2(triton.cdiv(at.rows, PARTIALS)))
            counters = torch.empty(programs, dtype=torch.int32, device=student.device)
            _count_kernel[(programs,)](labels, counters, at.rows, *walk, enable_fp_fusion=FP_FUSION)
        _mean_teacher_loss_kernel[(at.programs,)](
            student, teacher, second, dstudent, dsecond, labels, total, parts, counts,
            new_partials(_SLOTS, at.programs, wide, student.device), ticket_of(student.device), counters,
            *number_or_pointer(consistency_weight, student.device),
            *number_or_pointer(logit_distance_cost, student.device),
            ignore_index, at.rows, at.tiles, at.inner, at.inner_tiles, at.classes, at.sizes,
            *(strides[id(tensor)] for tensor in (student, teacher, second, dstudent, dsecond)), at.row_strides[0],
            LOSS="softmax_kl" if kl else "softmax_mse", BY_LABELED=by_labeled,
            COUNTERS=1 if counters is None else len(counters), UNIT=at.unit, ROWS=at.tile_rows, BLOCK=at.block,
            ONE_BLOCK=at.one_block, PARTIALS=PARTIALS, num_warps=at.num_warps, enable_fp_fusion=FP_FUSION,
        )  # fmt: skip
    return total, parts, counts, dstudent, dsecond
