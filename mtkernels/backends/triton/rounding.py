"""Rounding of bf16 and fp16 averages beside to nearest: at random (csrc/philox.h), in two parts (csrc/low_part.h)."""

import triton
import triton.language as tl


@triton.jit
def random_bits(first, average, seed, step, BLOCK: tl.constexpr):
    """[BLOCK] uint32 below 2^16, for the elements from `first` on, a multiple of 8: a thread makes 8 at a time."""
    group = (first >> 3) + tl.arange(0, BLOCK // 8)
    zero = tl.zeros([BLOCK // 8], tl.uint32)
    low_step = zero + step.to(tl.uint32)
    high_step = zero + (step.to(tl.int64) >> 32).to(tl.uint32)
    high_group = (group >> 32).to(tl.uint32) | (zero + (average << 24))
    w0, w1, w2, w3 = tl.philox(seed, group.to(tl.uint32), high_group, low_step, high_step)
    words = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), [BLOCK // 2])  # w0 w1 w2 w3 of each group
    return tl.reshape(tl.join(words & 0xFFFF, words >> 16), [BLOCK])


@triton.jit
def round_stochastic(x, random, dtype: tl.constexpr):
    """fp32 x, up or down in magnitude by 16 random bits an element. Never to infinity from below it."""
    bits = x.to(tl.uint32, bitcast=True)
    if dtype == tl.bfloat16:
        rounded = (bits + random) >> 16
        finite = tl.where((rounded & 0x7FFF) == 0x7F80, bits >> 16, rounded)
        special = tl.where(x != x, 0x7FC0, bits >> 16)
        result = tl.where((bits & 0x7F800000) == 0x7F800000, special, finite)
    else:
        magnitude = bits & 0x7FFFFFFF
        normal = (magnitude - 0x38000000 + (random >> 3)) >> 13  # 112 << 23: the exponents' difference
        is_subnormal = magnitude < 0x38800000
        # In units of 2^-40: 16 bits below the last place of a subnormal half.
        fixed = tl.where(is_subnormal, magnitude.to(tl.float32, bitcast=True), 0.0) * 1099511627776.0
        finite = tl.where(is_subnormal, (fixed.to(tl.int32).to(tl.uint32) + random) >> 16, normal)
        special = tl.where(magnitude > 0x7F800000, 0x7E00, 0x7C00)
        result = tl.where(magnitude >= 0x477FF000, special, tl.minimum(finite, 0x7BFF)) | (
            (bits >> 16) & 0x8000
        )
    return result.to(tl.uint16).to(dtype, bitcast=True)


@triton.jit
def join_low(high, low):
    """The fp32 number of which `high` and int16 `low` are the parts."""
    if high.dtype == tl.float16:
        return high.to(tl.float32) + low.to(tl.float16, bitcast=True).to(tl.float32) * (1 / 2048)
    else:
        bits = (high.to(tl.int16, bitcast=True).to(tl.int32) << 16) + low.to(tl.int32)
        return bits.to(tl.float32, bitcast=True)


@triton.jit
def split_low(x, dtype: tl.constexpr):
    """The parts of fp32 x: high in `dtype`, low int16."""
    if dtype == tl.float16:
        high = x.to(tl.float16)
        rest = (x - high.to(tl.float32)) * 2048
        low = rest.to(tl.float16).to(tl.int16, bitcast=True)
        return high, tl.where(tl.abs(rest) < float("inf"), low, 0)  # nothing beside infinity and NaN
    else:
        bits = x.to(tl.uint32, bitcast=True)
        is_special = (bits & 0x7F800000) == 0x7F800000
        special = tl.where(x != x, 0x7FC0, bits >> 16)
        high = tl.where(is_special, special, (bits + 0x8000) >> 16).to(tl.uint16).to(dtype, bitcast=True)
        return high, tl.where(is_special, 0, bits).to(tl.uint16).to(tl.int16, bitcast=True)
