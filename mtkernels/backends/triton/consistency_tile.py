"""A tile of a loss's rows, read once where a row fits a block, else two or three times: losses, and which rows count.

`at`: pointers to class 0 of each row, of student, teacher, dstudent and dteacher; `along`: their class strides.
`scales`: what the gradients of each side are multiplied by, beside the row's factor. These two, threshold apart, and
what else a row has one of are in fp64 where the device has it; `wide`: of logits and their maxima.
"""

import triton
import triton.language as tl

from mtkernels.backends.triton.row_math import (
    contrast,
    exponential,
    factors,
    finite,
    first_largest,
    gradient_of_student,
    gradient_of_teacher,
    load_centered,
    load_logits,
    normalizers,
    online,
    row_loss,
    row_max,
    row_sum,
    store_gradient,
    sums,
    tempered,
)


@triton.jit
def tile_in_one_block(
    LOSS: tl.constexpr, GRADIENTS: tl.constexpr, HARD: tl.constexpr, BLOCK: tl.constexpr,
    at, along, classes, in_row, center, center_stride, student_scale, teacher_scale,
    factor, threshold, smoothing, scales, inverse_classes, wide: tl.constexpr,
):  # fmt: skip
    row_dtype: tl.constexpr = factor.dtype
    columns = tl.arange(0, BLOCK)[None, :]
    a = load_logits(at[0], columns, along[0], classes, in_row, wide)
    b = load_centered(at[1], columns, along[1], classes, in_row, center, center_stride, wide)
    x = tempered(a - finite(row_max(a)), student_scale)
    y = tempered(b - finite(row_max(b)), teacher_scale)
    target = None
    if HARD:
        _, largest, nan = first_largest(b, columns, classes)
        target = tl.where(nan < classes, nan, largest)
    ea = exponential(x)
    eb = exponential(y)
    masked, za, zb, ratio = normalizers(row_sum(ea, row_dtype), row_sum(eb, row_dtype))
    kept, factor = factors(masked, zb, factor, threshold)
    u, v = contrast(LOSS, ea, eb, ratio)
    first, second, third = sums(
        LOSS, GRADIENTS, HARD, x, y, ea, eb, u, v, columns, classes, target, smoothing, row_dtype
    )
    if GRADIENTS & 1:
        scale = factor * scales[0]
        gradient = gradient_of_student(
            LOSS, HARD, x, y, ea, eb, u, first, second, za, zb, columns, target, smoothing,
            scale, inverse_classes,
        )  # fmt: skip
        store_gradient(at[2], columns, along[2], classes, in_row, scale, gradient)
    if GRADIENTS & 2:
        scale = factor * scales[1]
        gradient = gradient_of_teacher(
            LOSS, x, y, eb, u, v, first, third, zb, smoothing, scale, inverse_classes
        )
        store_gradient(at[3], columns, along[3], classes, in_row, scale, gradient)
    losses = row_loss(LOSS, HARD, first, second, za, zb, smoothing, inverse_classes)
    return tl.where(factor == 0, 0.0, factor * losses), kept


@triton.jit
def _maxima_and_sums(
    HARD: tl.constexpr, BLOCK: tl.constexpr,
    at, along, classes, in_row, center, center_stride, student_scale, teacher_scale,
    wide: tl.constexpr, row_dtype: tl.constexpr,
):  # fmt: skip
    """ma, mb, za, zb, and the target where HARD."""
    za = tl.zeros(at[0].shape, row_dtype)
    zb = za
    ma = tl.zeros(at[0].shape, wide) - float("inf")
    mb = ma
    nan = tl.zeros(at[0].shape, tl.int32) + classes
    largest = nan - classes
    for start in range(0, classes, BLOCK):
        columns = start + tl.arange(0, BLOCK)[None, :]
        a = load_logits(at[0], columns, along[0], classes, in_row, wide)
        b = load_centered(at[1], columns, along[1], classes, in_row, center, center_stride, wide)
        if HARD:
            highest, block_largest, block_nan = first_largest(b, columns, classes)
            largest = tl.where(highest > mb, block_largest, largest)
            nan = tl.minimum(nan, block_nan)
        ma, za = online(ma, za, a, student_scale)
        mb, zb = online(mb, zb, b, teacher_scale)
    return finite(ma), finite(mb), za, zb, tl.where(nan < classes, nan, largest)


@triton.jit
def _block(
    BLOCK: tl.constexpr, start,
    at, along, classes, in_row, center, center_stride, student_scale, teacher_scale, ma, mb,
):  # fmt: skip
    columns = start + tl.arange(0, BLOCK)[None, :]
    a = load_logits(at[0], columns, along[0], classes, in_row, ma.dtype)
    b = load_centered(at[1], columns, along[1], classes, in_row, center, center_stride, ma.dtype)
    x = tempered(a - ma, student_scale)
    y = tempered(b - mb, teacher_scale)
    return columns, x, y, exponential(x), exponential(y)


@triton.jit
def tile_in_blocks(
    LOSS: tl.constexpr, GRADIENTS: tl.constexpr, HARD: tl.constexpr, BLOCK: tl.constexpr,
    at, along, classes, in_row, center, center_stride, student_scale, teacher_scale,
    factor, threshold, smoothing, scales, inverse_classes, wide: tl.constexpr,
):  # fmt: skip
    # Gradients that need none of the row's sums are written while these are taken.
    OF_STUDENT: tl.constexpr = LOSS == "softmax_kl" or LOSS == "softmax_cross_entropy"
    EARLY: tl.constexpr = GRADIENTS & (1 if OF_STUDENT else 2 if LOSS == "softmax_reverse_kl" else 0)
    ma, mb, za, zb, target = _maxima_and_sums(
        HARD,
        BLOCK,
        at,
        along,
        classes,
        in_row,
        center,
        center_stride,
        student_scale,
        teacher_scale,
        wide,
        factor.dtype,
    )
    masked, za, zb, ratio = normalizers(za, zb)
    kept, factor = factors(masked, zb, factor, threshold)
    scale_a = factor * scales[0]
    scale_b = factor * scales[1]
    first = tl.zeros_like(za)
    second = tl.zeros_like(za)
    third = tl.zeros_like(za)
    for start in range(0, classes, BLOCK):
        columns, x, y, ea, eb = _block(
            BLOCK,
            start,
            at,
            along,
            classes,
            in_row,
            center,
            center_stride,
            student_scale,
            teacher_scale,
            ma,
            mb,
        )
        u, v = contrast(LOSS, ea, eb, ratio)
        of_first, of_second, of_third = sums(
            LOSS, GRADIENTS, HARD, x, y, ea, eb, u, v, columns, classes, target, smoothing, za.dtype
        )
        first += of_first
        second += of_second
        third += of_third
        if EARLY & 1:
            gradient = gradient_of_student(
                LOSS, HARD, x, y, ea, eb, u, first, second, za, zb, columns, target, smoothing,
                scale_a, inverse_classes,
            )  # fmt: skip
            store_gradient(at[2], columns, along[2], classes, in_row, scale_a, gradient)
        if EARLY & 2:
            gradient = gradient_of_teacher(
                LOSS, x, y, eb, u, v, first, third, zb, smoothing, scale_b, inverse_classes
            )
            store_gradient(at[3], columns, along[3], classes, in_row, scale_b, gradient)
    if GRADIENTS != EARLY:
        for start in range(0, classes, BLOCK):
            columns, x, y, ea, eb = _block(
                BLOCK, start, at, along, classes, in_row, center, center_stride, student_scale, teacher_scale,
                ma, mb,
            )  # fmt: skip
            u, v = contrast(LOSS, ea, eb, ratio)
            if (GRADIENTS ^ EARLY) & 1:
                gradient = gradient_of_student(
                    LOSS, HARD, x, y, ea, eb, u, first, second, za, zb, columns, target, smoothing,
                    scale_a, inverse_classes,
                )  # fmt: skip
                store_gradient(at[2], columns, along[2], classes, in_row, scale_a, gradient)
            if (GRADIENTS ^ EARLY) & 2:
                gradient = gradient_of_teacher(
                    LOSS, x, y, eb, u, v, first, third, zb, smoothing, scale_b, inverse_classes
                )
                store_gradient(at[3], columns, along[3], classes, in_row, scale_b, gradient)
    losses = row_loss(LOSS, HARD, first, second, za, zb, smoothing, inverse_classes)
    return tl.where(factor == 0, 0.0, factor * losses), kept


@triton.jit
def logit_tile(
    GRADIENTS: tl.constexpr, BLOCK: tl.constexpr,
    at, along, classes, in_row, factor, scales, inverse_classes, wide: tl.constexpr,
):  # fmt: skip
    """logit_mse, of rows of any length: read once. Which rows are masked is known last, and their gradients mended."""
    squares = tl.zeros_like(factor)
    seen_a = tl.zeros(factor.shape, tl.int32)
    seen_b = seen_a
    scale_a = (2 * factor * scales[0] * inverse_classes).to(wide)
    scale_b = (-2 * factor * scales[1] * inverse_classes).to(wide)
    for start in range(0, classes, BLOCK):
        columns = start + tl.arange(0, BLOCK)[None, :]
        a = load_logits(at[0], columns, along[0], classes, in_row, wide)
        b = load_logits(at[1], columns, along[1], classes, in_row, wide)
        d = tl.where(a == b, 0.0, a - b)  # equal sides, infinite ones too
        squares += row_sum(d * d, factor.dtype)
        seen_a = tl.maximum(seen_a, row_max((a != -float("inf")).to(tl.int32)))  # NaN too
        seen_b = tl.maximum(seen_b, row_max((b != -float("inf")).to(tl.int32)))
        if GRADIENTS & 1:
            store_gradient(at[2], columns, along[2], classes, in_row, scale_a, scale_a * d)
        if GRADIENTS & 2:
            store_gradient(at[3], columns, along[3], classes, in_row, scale_b, scale_b * d)
    masked = (seen_a & seen_b) == 0
    if GRADIENTS != 0:  # noqa: SIM102 (this one when it is compiled, the next when it runs)
        if tl.max((masked & in_row).to(tl.int32)) != 0:
            tl.debug_barrier()
            nothing = tl.zeros([factor.shape[0], BLOCK], wide)
            for start in range(0, classes, BLOCK):
                columns = start + tl.arange(0, BLOCK)[None, :]
                if GRADIENTS & 1:
                    store_gradient(at[2], columns, along[2], classes, in_row & masked, scale_a, nothing)
                if GRADIENTS & 2:
                    store_gradient(at[3], columns, along[3], classes, in_row & masked, scale_b, nothing)
    factor = tl.where(masked, 0.0, factor)
    return tl.where(factor == 0, 0.0, factor * (squares * inverse_classes)), masked == 0
