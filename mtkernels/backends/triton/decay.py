"""Schedules of the decay, evaluated by the kernel in fp64: csrc/decay.h, in its letters."""

import functools
import struct

import triton
import triton.language as tl

LIVE = 9  # of csrc/decay.h's kinds: a decay in memory. 0 is a number, the others are schedules.


@functools.lru_cache(maxsize=1024)
def parts(x: float) -> tuple[float, float, float]:
    """fp64 x as a sum of three fp32: Triton hands a float over as fp32, and compiles anew for some integers."""
    found = []
    for _ in range(3):
        found.append(struct.unpack("f", struct.pack("f", x))[0])
        x = x - found[-1] if abs(x) != float("inf") else 0.0
    return found[0], found[1], found[2]


@triton.jit
def joined_parts(x):
    return tl.cast(x[0], tl.float64) + tl.cast(x[1], tl.float64) + tl.cast(x[2], tl.float64)


@triton.jit
def _pow(x, y):
    return tl.exp(y * tl.log(x))


@triton.jit
def decay_at(KIND: tl.constexpr, numbers, t):
    """decay(t), fp64; numbers: a, b, c, d in parts. t: int64."""
    t = t.to(tl.float64)
    a = joined_parts(numbers[0])
    b = joined_parts(numbers[1])
    c = joined_parts(numbers[2])
    d = joined_parts(numbers[3])
    if KIND == 1:
        decay = tl.minimum(1 - 1 / (t + 1), a)
    elif KIND == 2:
        decay = tl.minimum((1 + t) / (b + t), a)
    elif KIND == 3:
        decay = tl.minimum(tl.maximum(1 - _pow(1 + t / b, -c), d), a)
    elif KIND == 4:
        decay = tl.where(t < b, c, a)
    elif KIND == 5:
        decay = 1 - (1 - a) * (tl.cos(3.141592653589793 * tl.minimum(t / b, 1.0)) + 1) / 2
    elif KIND == 6:
        decay = tl.exp2(-1 / tl.minimum(a, b * t))
    elif KIND == 7:
        decay = _pow(1 - 1 / t, a + 1)
    else:
        tl.static_assert(KIND == 8)
        power = _pow(a, t)
        decay = tl.where(
            t == 1, 0.0, (a - power) / (1 - power)
        )  # exp and log do not give back a to its last bit
    return decay
