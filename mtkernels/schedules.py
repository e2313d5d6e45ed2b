"""Schedules of the decay: what an average does at step t = 1, 2, ... of its life.

A schedule goes where a decay goes: `ema_update(..., decay=schedules.running_mean(0.999), step=t)`, or
`WeightEMA(model, schedules.running_mean(0.999))`. With the step in a 0-d tensor on the device the kernel evaluates the
schedule itself, so that it goes on in a captured CUDA graph. `schedule(t)` gives the number.
"""

from dataclasses import dataclass

import numpy as np

from mtkernels import _C


@dataclass(frozen=True)
class Schedule:
    """decay(t), by the numbers that the kernels take (csrc/decay.h); made by the functions of this module."""

    name: str
    kernel: tuple[int, float, float, float, float]  # kind, a, b, c, d

    def __call__(self, step: int) -> float:
        """The decay at step t = 1, 2, ...; 0, which copies the student, before."""
        return _C.decay_at(self, step)

    def __repr__(self) -> str:
        return self.name


def running_mean(decay: float) -> Schedule:
    """min(1 - 1/(t+1), decay): the mean of all weights so far, the first ones included, until it has enough.

    Source: Tarvainen and Valpola (2017), their PyTorch version; t = 1 gives 1/2.
    """
    return _schedule(f"running_mean({decay})", 1, _unit("running_mean", "decay", decay))


def ratio(decay: float, *, offset: float = 10.0) -> Schedule:
    """min((1 + t) / (offset + t), decay). Source: TensorFlow's ExponentialMovingAverage(num_updates); torch_ema."""
    _at_least("ratio", "offset", offset, 1)
    return _schedule(f"ratio({decay}, offset={offset})", 2, _unit("ratio", "decay", decay), offset)


def inverse_gamma(
    decay: float = 0.9999, *, inv_gamma: float = 1.0, power: float = 2 / 3, min_decay: float = 0.0
) -> Schedule:
    """1 - (1 + t / inv_gamma)^-power, kept between min_decay and decay.

    Source: Katherine Crowson's k-diffusion; ema-pytorch and diffusers' EMAModel(use_ema_warmup=True) have it too.
    power = 2/3 suits runs of a million steps and more, 3/4 shorter ones.
    """
    _positive("inverse_gamma", "inv_gamma", inv_gamma)
    _positive("inverse_gamma", "power", power)
    name = f"inverse_gamma({decay}, inv_gamma={inv_gamma}, power={power}, min_decay={min_decay})"
    low, high = _unit("inverse_gamma", "min_decay", min_decay), _unit("inverse_gamma", "decay", decay)
    return _schedule(name, 3, high, inv_gamma, power, low)


def switched(first: float, then: float, *, at: int) -> Schedule:
    """`first` while t < at, `then` from there on. Source: Tarvainen and Valpola (2017): 0.99, after ramp-up 0.999."""
    _at_least("switched", "at", at, 1)
    name = f"switched({first}, {then}, at={at})"
    return _schedule(name, 4, _unit("switched", "then", then), at, _unit("switched", "first", first))


def cosine(decay: float, *, steps: int) -> Schedule:
    """1 - (1 - decay) * (cos(pi * t / steps) + 1) / 2: from `decay` up to 1, where it stays.

    Source: Grill et al., "Bootstrap your own latent" (2020).
    """
    _at_least("cosine", "steps", steps, 1)
    return _schedule(f"cosine({decay}, steps={steps})", 5, _unit("cosine", "decay", decay), steps)


def half_life(steps: float, *, rampup: float | None = None) -> Schedule:
    """2^(-1 / h): a weight counts half after h steps. h = steps, or min(steps, rampup * t).

    Source: Karras et al., "Elucidating the design space" (2022): half-life in images / batch size, rampup 0.05.
    """
    _positive("half_life", "steps", steps)
    if rampup is not None:
        _positive("half_life", "rampup", rampup)
    name = f"half_life({steps}, rampup={rampup})"
    return _schedule(name, 6, steps, float("inf") if rampup is None else rampup)


def power_function(sigma_rel: float | None = None, *, gamma: float | None = None) -> Schedule:
    """(1 - 1/t)^(gamma + 1): the average's width is a fixed part of the run so far.

    sigma_rel: that part, as the profile's standard deviation over t, below 0.289 (published: 0.05 and 0.10);
    gamma is the positive root of (gamma + 1) / ((gamma + 2)^2 (gamma + 3)) = sigma_rel^2. Give one of the two.

    Source: Karras et al., "Analyzing and improving the training dynamics of diffusion models" (2024), eq. 127, alg. 2.
    """
    if (sigma_rel is None) == (gamma is None):
        raise ValueError(
            f"power_function: sigma_rel or gamma must be given, and not both, got {sigma_rel} and {gamma}"
        )
    if gamma is None:
        if not 0 < sigma_rel < 12**-0.5:
            raise ValueError(f"power_function: sigma_rel must be above 0 and below 0.2886, got {sigma_rel}")
        inverse = sigma_rel**-2
        gamma = float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())
    _at_least("power_function", "gamma", gamma, 0)
    return _schedule(f"power_function(gamma={gamma})", 7, gamma)


def debiased(decay: float) -> Schedule:
    """(decay - decay^t) / (1 - decay^t): the average that starts at zero with `decay`, divided by 1 - decay^t.

    What Adam does to its moments, without a second array and without a division when it is read.
    Source: Kingma and Ba, "Adam" (2015), section 3.
    """
    if not 0 <= decay < 1:
        raise ValueError(f"debiased: decay must be at least 0 and below 1, got {decay}")
    return _schedule(f"debiased({decay})", 8, decay)


def _schedule(name: str, kind: int, a: float, b: float = 0.0, c: float = 0.0, d: float = 0.0) -> Schedule:
    return Schedule(name, (kind, float(a), float(b), float(c), float(d)))


def _unit(schedule: str, argument: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"{schedule}: {argument} must be between 0 and 1, got {value}")
    return value


def _positive(schedule: str, argument: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{schedule}: {argument} must be above 0, got {value}")


def _at_least(schedule: str, argument: str, value: float, least: float) -> None:
    if not value >= least:
        raise ValueError(f"{schedule}: {argument} must be at least {least}, got {value}")
