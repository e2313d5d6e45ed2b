"""Schedules over steps, of the consistency weight and the learning rate; the teacher's are mtkernels.schedules."""

import math

from .config import Config


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


def learning_rate(step: int, config: Config) -> float:
    """Linear from `initial_lr` to `lr` over `lr_rampup` steps, times the cosine to 0 at `lr_rampdown`."""
    rampdown = config.steps if config.lr_rampdown is None else config.lr_rampdown
    rate = config.initial_lr + (config.lr - config.initial_lr) * linear_rampup(step, config.lr_rampup)
    return rate * cosine_rampdown(step, rampdown) if rampdown else rate
