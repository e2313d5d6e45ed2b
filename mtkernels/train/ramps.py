"""Shapes of ramps; timeline.py says what is ramped by them. A teacher's schedules are mtkernels.schedules."""

import math


def sigmoid_rampup(step: float, length: float) -> float:
    """exp(-5 (1 - t/L)^2) from step 0 to L = `length`, then 1; L = 0: no ramp. Laine and Aila, 1610.02242."""
    if length == 0:
        return 1.0
    progress = min(max(step / length, 0.0), 1.0)
    return math.exp(-5.0 * (1.0 - progress) ** 2)


def linear_rampup(step: float, length: float) -> float:
    """t/L from step 0 to `length`, then 1; a length of 0 means no ramp."""
    return 1.0 if step >= length else step / length


def cosine_rampdown(step: float, length: float) -> float:
    """(cos(pi t/L) + 1) / 2: from 1 at step 0 to 0 at `length`. Loshchilov and Hutter, 1608.03983."""
    if not 0 <= step <= length:
        raise ValueError(f"cosine_rampdown: step must be between 0 and length {length}, got {step}")
    return 0.5 * (math.cos(math.pi * step / length) + 1.0)


def sigmoid_rampdown(step: float, total: float, length: float) -> float:
    """1, then exp(-12.5 (1 - left/L)^2) over the last L = `length` steps of `total`; L = 0: 1. 1610.02242."""
    left = total - step
    return 1.0 if length == 0 or left > length else math.exp(-12.5 * (1.0 - left / length) ** 2)
