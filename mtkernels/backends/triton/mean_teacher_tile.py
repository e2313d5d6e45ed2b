"""A tile of the objective's rows: the losses, squared distance and the labels' ranks of each row, and the gradients.

`at`: pointers to class 0 of each row, of student, teacher, second, dstudent and dsecond; `along`: their class strides.
`own`: the student's and the teacher's logit at the label; NaN where there is none. `scales`: of the gradients of the
three terms; the first is 0 in a row without a label. They and what else a row has one of are in fp64 where the device
has it; `wide`: of logits and maxima. d is the head that meets the teacher: a where there is but one.
"""

import triton
import triton.language as tl

from mtkernels.backends.triton.row_math import (
    contrast,
    divide,
    exponential,
    finite,
    gradient_of_student,
    load_logits,
    normalizers,
    online,
    row_loss,
    row_max,
    row_sum,
    store_gradient,
    sums,
)


@triton.jit
def _ahead(logits, own, columns, label):
    """How many classes of these rank before the label."""
    ahead = (logits > own) | ((logits == own) & (columns < label))
    return tl.sum(ahead.to(tl.int32), axis=1, keep_dims=True)


@triton.jit
def _class_loss(za, ma, own, class_scale):
    """Its row loss where there is a label, and its gradient's scale: 0 where a row is -inf throughout."""
    scale = tl.where(za == 0, 0.0, class_scale)
    safe = tl.where(za == 0, 1.0, za)
    return tl.where(scale == 0, 0.0, tl.log(safe) - (own - ma).to(safe.dtype)), safe, scale


@triton.jit
def _store_gradients(
    SECOND: tl.constexpr, at, along, columns, classes, in_row,
    ea, za, label, class_scale, of_consistency, consistency_scale, distance, distance_scale,
):  # fmt: skip
    p = ea * divide(tl.full(za.shape, 1.0, za.dtype), za).to(ea.dtype)
    of_class = class_scale.to(ea.dtype) * (p - (columns == label).to(ea.dtype))
    dstudent = tl.where(class_scale == 0, 0.0, of_class)
    of_consistency = tl.where(consistency_scale == 0, 0.0, of_consistency)
    every = tl.full(class_scale.shape, 1.0, class_scale.dtype)
    if SECOND:
        between = tl.where(distance_scale == 0, 0.0, distance_scale.to(ea.dtype) * distance)
        store_gradient(at[3], columns, along[3], classes, in_row, every, dstudent + between)
        store_gradient(at[4], columns, along[4], classes, in_row, every, of_consistency - between)
    else:
        store_gradient(at[3], columns, along[3], classes, in_row, every, dstudent + of_consistency)


@triton.jit
def objective_in_one_block(
    LOSS: tl.constexpr, GRADIENT: tl.constexpr, SECOND: tl.constexpr, BLOCK: tl.constexpr,
    at, along, classes, in_row, label, own, scales, inverse_classes, wide: tl.constexpr,
):  # fmt: skip
    row_dtype: tl.constexpr = inverse_classes.dtype
    columns = tl.arange(0, BLOCK)[None, :]
    a = load_logits(at[0], columns, along[0], classes, in_row, wide)
    b = load_logits(at[1], columns, along[1], classes, in_row, wide)
    ahead_a = _ahead(a, own[0], columns, label)
    ahead_b = _ahead(b, own[1], columns, label)
    ma = finite(row_max(a))
    x = a - ma
    y = b - finite(row_max(b))
    ea = exponential(x)
    eb = exponential(y)
    za = row_sum(ea, row_dtype)
    class_losses, class_za, class_scale = _class_loss(za, ma, own[0], scales[0])
    ed = ea
    distance = tl.zeros_like(a)
    if SECOND:
        d = load_logits(at[2], columns, along[2], classes, in_row, wide)
        distance = tl.where(a == d, 0.0, a - d)
        x = d - finite(row_max(d))
        ed = exponential(x)
        zd = row_sum(ed, row_dtype)
        distance = tl.where((za == 0) | (zd == 0), 0.0, distance)  # either head is -inf throughout
        za = zd
    masked, za, zb, ratio = normalizers(za, row_sum(eb, row_dtype))
    u, v = contrast(LOSS, ed, eb, ratio)
    first, second, _ = sums(
        LOSS, 1 if GRADIENT else 0, False, x, y, ed, eb, u, v, columns, classes, None, None, row_dtype
    )
    if GRADIENT:
        scale = tl.where(masked, 0.0, scales[1])
        of_consistency = gradient_of_student(
            LOSS, False, x, y, ed, eb, u, first, second, za, zb, columns, None, None,
            scale, inverse_classes,
        )  # fmt: skip
        _store_gradients(
            SECOND, at, along, columns, classes, in_row,
            ea, class_za, label, class_scale, of_consistency, scale, distance, scales[2],
        )  # fmt: skip
    losses = row_loss(LOSS, False, first, second, za, zb, None, inverse_classes)
    squares = row_sum(distance * distance, row_dtype)
    return class_losses, tl.where(masked, 0.0, losses), squares * inverse_classes, ahead_a, ahead_b


@triton.jit
def _maxima_and_sums(
    SECOND: tl.constexpr, BLOCK: tl.constexpr, at, along, classes, in_row, label, own, row_dtype: tl.constexpr
):
    """(ma, za), (md, zd), (mb, zb) and what else takes one look: squares and ranks."""
    wide: tl.constexpr = own[0].dtype
    nothing = tl.zeros(own[0].shape, row_dtype)
    za = nothing
    zd = nothing
    zb = nothing
    ma = tl.zeros(own[0].shape, wide) - float("inf")
    md = ma
    mb = ma
    squares = nothing
    ahead_a = tl.zeros(own[0].shape, tl.int32)
    ahead_b = ahead_a
    for start in range(0, classes, BLOCK):
        columns = start + tl.arange(0, BLOCK)[None, :]
        a = load_logits(at[0], columns, along[0], classes, in_row, wide)
        b = load_logits(at[1], columns, along[1], classes, in_row, wide)
        ahead_a += _ahead(a, own[0], columns, label)
        ahead_b += _ahead(b, own[1], columns, label)
        ma, za = online(ma, za, a, None)
        mb, zb = online(mb, zb, b, None)
        if SECOND:
            d = load_logits(at[2], columns, along[2], classes, in_row, wide)
            md, zd = online(md, zd, d, None)
            distance = tl.where(a == d, 0.0, a - d)
            squares += row_sum(distance * distance, row_dtype)
    if not SECOND:
        md = ma
        zd = za
    return finite(ma), za, finite(md), zd, finite(mb), zb, squares, ahead_a, ahead_b


@triton.jit
def objective_in_blocks(
    LOSS: tl.constexpr, GRADIENT: tl.constexpr, SECOND: tl.constexpr, BLOCK: tl.constexpr,
    at, along, classes, in_row, label, own, scales, inverse_classes, wide: tl.constexpr,
):  # fmt: skip
    row_dtype: tl.constexpr = inverse_classes.dtype
    ma, za, md, zd, mb, zb, squares, ahead_a, ahead_b = _maxima_and_sums(
        SECOND, BLOCK, at, along, classes, in_row, label, own, row_dtype
    )
    class_losses, class_za, class_scale = _class_loss(za, ma, own[0], scales[0])
    empty = (za == 0) | (zd == 0)  # either head is -inf throughout
    squares = tl.where(empty, 0.0, squares)
    by_distance = tl.where(empty, 0.0, scales[2])
    masked, zd, zb, ratio = normalizers(zd, zb)
    scale = tl.where(masked, 0.0, scales[1])
    first = tl.zeros_like(za)
    second = tl.zeros_like(za)
    # The gradient of softmax_kl needs none of the row's sums, that of softmax_mse all of them.
    PASSES: tl.constexpr = 2 if GRADIENT and LOSS == "softmax_mse" else 1
    for step in tl.static_range(PASSES):
        for start in range(0, classes, BLOCK):
            columns = start + tl.arange(0, BLOCK)[None, :]
            y = load_logits(at[1], columns, along[1], classes, in_row, wide) - mb
            a = y
            if not SECOND or (GRADIENT and step == PASSES - 1):
                a = load_logits(at[0], columns, along[0], classes, in_row, wide)
            d = a
            if SECOND:
                d = load_logits(at[2], columns, along[2], classes, in_row, wide)
            x = d - md
            ed = exponential(x)
            eb = exponential(y)
            u, v = contrast(LOSS, ed, eb, ratio)
            if step == 0:
                of_first, of_second, _ = sums(
                    LOSS,
                    1 if GRADIENT else 0,
                    False,
                    x,
                    y,
                    ed,
                    eb,
                    u,
                    v,
                    columns,
                    classes,
                    None,
                    None,
                    row_dtype,
                )
                first += of_first
                second += of_second
            if GRADIENT and step == PASSES - 1:
                of_consistency = gradient_of_student(
                    LOSS, False, x, y, ed, eb, u, first, second, zd, zb, columns, None, None,
                    scale, inverse_classes,
                )  # fmt: skip
                _store_gradients(
                    SECOND, at, along, columns, classes, in_row, exponential(a - ma), class_za, label, class_scale,
                    of_consistency, scale, tl.where(a == d, 0.0, a - d), by_distance,
                )  # fmt: skip
    losses = row_loss(LOSS, False, first, second, zd, zb, None, inverse_classes)
    return class_losses, tl.where(masked, 0.0, losses), squares * inverse_classes, ahead_a, ahead_b
