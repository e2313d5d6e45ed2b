"""What the losses work out of a tile of rows: csrc/consistency.h and the ops' headers, in their letters.

x = (a - ma) / temperature with ma = max a, ea = exp(x), za = sum ea, and so with b; d = zb (p - q), where p = ea / za.
LOSS: an op's name. GRADIENTS: 1 the student's, 2 the teacher's, 3 both. Numbers of the host come in decay.py's parts.
Logits, maxima and gradients are in `wide`, what else a row has one of in `row_dtype`: fp64 where the device has it.
"""

import triton
import triton.language as tl

from mtkernels.backends.triton.decay import joined_parts


@triton.jit
def divide(x, y):
    """Rounded to nearest, so that x / x is 1: Triton's own fp32 division may be off by 2 units in the last place."""
    if x.dtype == tl.float64:
        return x / y
    else:
        return tl.div_rn(x, y)


@triton.jit
def exponential(x):
    """exp(x) for x <= 0. tl.exp takes one number for log2 e, whose rounding all exponentials of a row would share; both
    parts are positive, so that -inf stays -inf."""
    if x.dtype == tl.float64:
        return tl.exp(x)
    else:
        return tl.exp2(tl.fma(x, 1.442695021629333, x * 1.925963033500011e-08))


@triton.jit
def row_sum(x, dtype: tl.constexpr):
    """Of many classes by fours, whose sums are added up in dtype: an addition rounds off at the size of the largest."""
    if x.dtype == dtype or x.shape[1] <= 64:
        return tl.sum(x, axis=1, keep_dims=True).to(dtype)
    else:
        fours = tl.sum(tl.reshape(x, [x.shape[0], x.shape[1] // 4, 4]), axis=2)
        return tl.sum(fours.to(dtype), axis=1, keep_dims=True)


@triton.jit
def row_max(x):
    return tl.max(x, axis=1, keep_dims=True)


@triton.jit
def finite(maximum):
    return tl.where(maximum == -float("inf"), 0.0, maximum)


@triton.jit
def number(parts, wide: tl.constexpr):
    if wide == tl.float64:
        return joined_parts(parts)
    else:
        return parts[0] + parts[1]


@triton.jit
def given(parts, pointer, wide: tl.constexpr):
    """A number that the host gave, or that lies on the device."""
    if pointer is None:
        return number(parts, wide)
    else:
        return tl.load(pointer).to(wide)


@triton.jit
def split(x, wide: tl.constexpr):
    """A row's constant in two parts: rounded to one, it would be off by the same for all classes, not average out."""
    high = x.to(wide)
    low = (x - high.to(x.dtype)).to(wide)
    return high, tl.where(high - high == 0, low, 0.0)


@triton.jit
def tempered(x, scale):
    """x / temperature: were scale rounded to one number, the error would be one for all classes and not average out."""
    if scale is None:
        return x
    elif x.dtype == tl.float64:
        return x * joined_parts(scale)
    else:
        return x * scale[0] + x * scale[1]


@triton.jit
def load_logits(pointers, columns, stride, classes, in_row, wide: tl.constexpr):
    mask = in_row & (columns < classes)
    return tl.load(pointers + columns.to(tl.int64) * stride, mask=mask, other=-float("inf")).to(wide)


@triton.jit
def load_centered(pointers, columns, stride, classes, in_row, center, center_stride, wide: tl.constexpr):
    logits = load_logits(pointers, columns, stride, classes, in_row, wide)
    if center is not None:
        at = center + columns.to(tl.int64) * center_stride
        logits -= tl.load(at, mask=columns < classes, other=0.0).to(wide)
    return logits


@triton.jit
def online(maximum, z, logits, scale):
    """The running maximum, and the sum of exponentials that goes with it, after more logits."""
    higher = tl.maximum(maximum, row_max(logits))
    z = z * exponential(tempered(maximum - finite(higher), scale)).to(z.dtype)
    return higher, z + row_sum(exponential(tempered(logits - finite(higher), scale)), z.dtype)


@triton.jit
def normalizers(za, zb):
    """Which rows are masked; sums that can be divided by; zb / za."""
    masked = (za == 0) | (zb == 0)
    za = tl.where(masked, 1.0, za)
    zb = tl.where(masked, 1.0, zb)
    return masked, za, zb, divide(zb, za)


@triton.jit
def factors(masked, zb, factor, threshold):
    """Which rows count, and what each is multiplied by. exp(0) = 1 is the largest of eb, so that max q = 1 / zb."""
    kept = masked == 0
    if threshold is not None:
        most = divide(tl.full(zb.shape, 1.0, zb.dtype), zb).to(threshold.dtype)
        kept = kept & ((most < threshold) == 0)  # NaN counts
    return kept, tl.where(kept, factor, 0.0)  # whatever the factor is


@triton.jit
def first_largest(b, columns, classes):
    """The largest but NaN and where it first is; where a NaN first is. `classes` where nowhere."""
    highest = row_max(b)
    largest = tl.min(tl.where(b == highest, columns, classes), axis=1, keep_dims=True)
    return highest, largest, tl.min(tl.where(b != b, columns, classes), axis=1, keep_dims=True)


@triton.jit
def _log(w, r):
    """log w, from r = w - 1 where that is the more exact. w is at least the smallest normal number."""
    if w.dtype == tl.float64:
        u = 1 + r
        near = tl.where(u == 1, r, tl.log(u) * (r / tl.where(u == 1, 1.0, u - 1)))
        return tl.where(w < 0.75, tl.log(w), near)
    else:
        # w = (1 + m) 2^e with m from -0.25 to 0.5. Its polynomial is off by 1 unit in the last place of log1p(m).
        e = (w.to(tl.int32, bitcast=True) - 0x3F400000) & -0x800000
        m = tl.where(
            e == 0, r, w * (0x3F800000 - e).to(tl.float32, bitcast=True) - 1
        )  # times 2^-e: NaN stays NaN
        s = -0.046190083 * m + 0.105909914
        s = s * m - 0.13192995
        s = s * m + 0.14468062
        s = s * m - 0.16642946
        s = s * m + 0.19990975
        s = s * m - 0.2500023
        s = s * m + 0.3333345
        s = s * m - 0.5
        return e.to(tl.float32) * (0.6931472 / 8388608) + ((s * m) * m + m)


@triton.jit
def _logs_over_mean(u, v):
    """log(u / m) and log(v / m) with m = (u + v) / 2: log1p(r), log1p(-r), r = (u - v) / (u + v); of the smaller side,
    whose r may round to -1, log(u / m) itself. Finite for 0, whose term is 0."""
    tiny: tl.constexpr = 1e-37  # no number that a GPU flushes to 0, and no term that counts
    whole = u + v
    whole = tl.where(whole < tiny, tiny, whole)
    r = tl.abs(u - v) / whole
    less = u < v
    w = 2 * tl.where(less, u, v) / whole
    of_smaller = _log(tl.where(w < tiny, tiny, w), -r)
    of_larger = _log(1 + r, r)
    return tl.where(less, of_smaller, of_larger), tl.where(less, of_larger, of_smaller)


@triton.jit
def contrast(LOSS: tl.constexpr, ea, eb, ratio):
    """What tells the sides apart, class by class. softmax_js: log(p / m), log(q / m). Else d, twice: 0 for equal sides,
    even where it is contracted."""
    high, low = split(ratio, ea.dtype)
    if LOSS == "softmax_js":
        return _logs_over_mean(ea * high, eb)
    else:
        d = (ea * high - eb) + ea * low
        return d, d


@triton.jit
def sums(
    LOSS: tl.constexpr, GRADIENTS: tl.constexpr, HARD: tl.constexpr,
    x, y, ea, eb, u, v, columns, classes, target, smoothing, row_dtype: tl.constexpr,
):  # fmt: skip
    """Three, 0 where LOSS or GRADIENTS need no more. 0 log 0 = 0, yet a class masked on one side alone may tell.

    softmax_mse: of d^2, ea d, eb d. softmax_kl: of eb (y - x). softmax_reverse_kl: of ea (x - y). softmax_js: of both
    sides' terms, times za and zb. softmax_cross_entropy: of eb x (hard: x at the target), of x.
    """
    nothing = tl.zeros([x.shape[0], 1], row_dtype)
    second = nothing
    third = nothing
    if LOSS == "softmax_mse":
        first = row_sum(u * u, row_dtype)
        if GRADIENTS & 1:
            second = row_sum(ea * u, row_dtype)
        if GRADIENTS & 2:
            third = row_sum(eb * u, row_dtype)
    elif LOSS == "softmax_kl":
        first = row_sum(tl.where(eb == 0, 0.0, eb * (y - x)), row_dtype)
    elif LOSS == "softmax_reverse_kl":
        first = row_sum(tl.where(ea == 0, 0.0, ea * (x - y)), row_dtype)
    elif LOSS == "softmax_js":
        first = row_sum(ea * u, row_dtype)
        second = row_sum(eb * v, row_dtype)
        third = second
    elif HARD:
        first = row_sum(tl.where(columns == target, x, 0.0), row_dtype)
    else:
        first = row_sum(tl.where(eb == 0, 0.0, eb * x), row_dtype)
    if LOSS == "softmax_cross_entropy" and smoothing is not None:
        second = row_sum(tl.where(columns < classes, x, 0.0), row_dtype)
    return first, second, third


@triton.jit
def row_loss(LOSS: tl.constexpr, HARD: tl.constexpr, first, second, za, zb, smoothing, inverse_classes):
    if LOSS == "softmax_mse":
        return divide(first * inverse_classes, zb * zb)
    elif LOSS == "softmax_kl":
        return divide(first, zb) + tl.log(divide(za, zb))
    elif LOSS == "softmax_reverse_kl":
        return divide(first, za) + tl.log(divide(zb, za))
    elif LOSS == "softmax_js":
        return 0.5 * (divide(first, za) + divide(second, zb))
    else:
        target = first if HARD else divide(first, zb)
        if smoothing is not None:
            target = (1 - smoothing) * target + smoothing * inverse_classes * second
        return tl.log(za) - target


@triton.jit
def _about_mean(x, total, z, less):
    """x - total / z - less, the largest roundings first."""
    high, low = split(divide(total, z), x.dtype)
    return ((x - high) - less) - low


@triton.jit
def gradient_of_student(
    LOSS: tl.constexpr, HARD: tl.constexpr,
    x, y, ea, eb, u, first, second, za, zb, columns, target, smoothing, scale, inverse_classes,
):  # fmt: skip
    wide: tl.constexpr = ea.dtype
    if LOSS == "softmax_mse":
        lead = divide(2 * scale * inverse_classes, za * zb).to(wide)
        return lead * ea * _about_mean(u, second, za, 0.0)
    elif LOSS == "softmax_kl":
        return divide(scale, zb).to(wide) * u
    elif LOSS == "softmax_reverse_kl":
        # x is near 0 where p counts, so that one rounding is large, not two
        return divide(scale, za).to(wide) * ea * tl.where(ea == 0, 0.0, _about_mean(x, first, za, y))
    elif LOSS == "softmax_js":
        return divide(0.5 * scale, za).to(wide) * ea * _about_mean(u, first, za, 0.0)
    elif HARD:
        p = divide(ea, za.to(wide) + tl.zeros_like(ea))
        hot = (columns == target).to(wide)
        if smoothing is not None:
            hot = tl.where(columns == target, (1 - smoothing).to(wide), 0.0) + (
                smoothing * inverse_classes
            ).to(wide)
        return scale.to(wide) * (p - hot)
    elif smoothing is None:
        return divide(scale, zb).to(wide) * u
    else:
        q = eb * divide(tl.full(zb.shape, 1.0, zb.dtype), zb).to(wide)
        smoothed = (scale * smoothing).to(wide) * (q - inverse_classes.to(wide))
        return divide(scale, zb).to(wide) * u + smoothed


@triton.jit
def gradient_of_teacher(
    LOSS: tl.constexpr, x, y, eb, u, v, first, third, zb, smoothing, scale, inverse_classes
):
    wide: tl.constexpr = eb.dtype
    if LOSS == "softmax_mse":
        lead = divide(-2 * scale * inverse_classes, zb * zb).to(wide)
        return lead * eb * _about_mean(u, third, zb, 0.0)
    elif LOSS == "softmax_kl":
        return divide(scale, zb).to(wide) * eb * tl.where(eb == 0, 0.0, _about_mean(y, first, zb, x))
    elif LOSS == "softmax_reverse_kl":
        return divide(-scale, zb).to(wide) * u
    elif LOSS == "softmax_js":
        return divide(0.5 * scale, zb).to(wide) * eb * _about_mean(v, third, zb, 0.0)
    else:
        if smoothing is not None:
            scale = scale * (1 - smoothing)
        return divide(-scale, zb).to(wide) * eb * tl.where(eb == 0, 0.0, _about_mean(x, first, zb, 0.0))


@triton.jit
def narrowed(x, dtype: tl.constexpr):
    if dtype == tl.bfloat16:
        return x.to(tl.float32).to(dtype)  # from fp64 there is no one instruction
    else:
        return x.to(dtype)


@triton.jit
def store_gradient(pointers, columns, stride, classes, in_row, scale, gradient):
    """0 where the scale is, whatever the row holds."""
    gradient = narrowed(tl.where(scale == 0, 0.0, gradient), pointers.dtype.element_ty)
    tl.store(pointers + columns.to(tl.int64) * stride, gradient, mask=in_row & (columns < classes))
