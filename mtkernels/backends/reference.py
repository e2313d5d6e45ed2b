"""The meaning of each op, in plain torch. Runs on any device; what every kernel is tested against."""

import math
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor

from mtkernels import _C
from mtkernels.backends.reference_augment import *  # noqa: F403
from mtkernels.backends.reference_losses import *  # noqa: F403
from mtkernels.backends.reference_targets import *  # noqa: F403


def ema_update(teacher, student, decay, copied=0, names=None, options=None) -> None:
    """teacher <- decay * teacher + (1 - decay) * student. The last `copied` pairs, integers and bools are copied.

    Several averages: `decay` is a list, and `teacher` holds all tensors of the first average, then of the second ...
    """
    _C.ema_rows(teacher, student, decay, copied, names, options, 1)  # checks
    options = options or _NO_OPTIONS
    if not student or (options.found_inf is not None and options.found_inf.item() != 0):
        return
    step = int(options.step) + options.advance if options.step is not None else None
    if step is None or step % options.every == 0:
        count = len(student)
        for k, one in enumerate(decay if isinstance(decay, (list, tuple)) else [decay]):
            teachers = teacher[k * count : (k + 1) * count]
            lows = options.low[k * count : (k + 1) * count] if options.low else [None] * count
            rounding = _Rounding(options.stochastic, options.seed, step, k)
            with torch.no_grad():
                _update_average(teachers, student, lows, _decay_at(one, step, options), copied, rounding)
                if options.drift is not None:
                    options.drift.view(-1)[k] = _distance(teachers, student, lows, copied)
    if options.advance:
        options.step.fill_(step)


def ema_update_plan(plan, decay, options=None) -> None:
    """The same for a bound plan."""
    values = {**vars(_NO_OPTIONS), **(options._asdict() if options else {}), "low": list(plan.low) or None}
    arguments = list(plan.teacher), list(plan.student), decay, plan.copied, plan.names
    ema_update(*arguments, SimpleNamespace(**values))


_NO_OPTIONS = SimpleNamespace(
    step=None, low=None, stochastic=False, seed=0, found_inf=None, drift=None, every=1, start=0, advance=False
)


class _Rounding(NamedTuple):
    stochastic: bool
    seed: int
    step: int | None
    average: int  # its number


def _update_average(teachers, students, lows, decay, copied, rounding: _Rounding) -> None:
    first_copied, written, first = len(teachers) - copied, set(), 0
    for index, (to, source, low) in enumerate(zip(teachers, students, lows, strict=True)):
        if not to.numel():
            continue
        tied = to.data_ptr() in written  # listed twice, averaged once
        written.add(to.data_ptr())
        if index >= first_copied or not (to.is_floating_point() or to.is_complex()):
            to.copy_(source)
            continue
        if to.is_complex():
            to, source = torch.view_as_real(to), torch.view_as_real(source)
        if not tied:
            _move(to, source, low, decay, rounding, first)
        first += _places(to)


def _move(to: Tensor, source: Tensor, low: Tensor | None, decay, rounding: _Rounding, first: int) -> None:
    """One pair. `first`: the number of its first random bits."""
    if low is not None and low.numel():
        split(_average(join(to, low), source.float(), decay), to, low)
    elif rounding.stochastic and to.dtype in (torch.bfloat16, torch.float16):
        to.copy_(round_stochastic(_average(to, source.float(), decay), to, rounding, first))
    else:
        to.copy_(_average(to, source, decay))


def _distance(teachers, students, lows, copied) -> Tensor | float:
    """The norm of teacher - student over what is averaged, tied weights once; in float64 on their device."""
    squares, seen = 0.0, set()
    averaged = list(zip(teachers, students, lows, strict=True))[: len(teachers) - copied]
    for to, source, low in averaged:
        if not to.numel() or to.data_ptr() in seen or not (to.is_floating_point() or to.is_complex()):
            continue
        seen.add(to.data_ptr())
        if to.is_complex():
            to, source = torch.view_as_real(to), torch.view_as_real(source)
        held = join(to, low) if low is not None and low.numel() else to
        squares = squares + (held.double() - source.double()).square().sum()
    return squares**0.5


def _run_length(tensor: Tensor) -> int:
    """How many elements lie together in memory: all, where there are no gaps."""
    length = 1
    for stride, size in sorted((tensor.stride(dim), tensor.shape[dim]) for dim in range(tensor.dim())):
        if size > 1 and stride != length:
            break
        length *= size
    return length


def _places(tensor: Tensor) -> int:
    """How many random numbers a pair leaves to itself, used or not: whole groups of 8 for each run of memory."""
    length = _run_length(tensor)
    return tensor.numel() // length * (-(-length // 8) * 8)


def _decay_at(decay, step: int | None, options) -> float | Tensor:
    """A schedule at t = step - start; 0, which copies, up to the start."""
    t = 1 if step is None else step - options.start
    if t <= 0:
        return 0.0
    if not hasattr(decay, "kernel"):
        return decay
    kind, a, b, c, d = decay.kernel
    return {
        0: lambda: a,
        1: lambda: min(1 - 1 / (t + 1), a),
        2: lambda: min((1 + t) / (b + t), a),
        3: lambda: min(max(1 - (1 + t / b) ** -c, d), a),
        4: lambda: c if t < b else a,
        5: lambda: 1 - (1 - a) * (math.cos(math.pi * min(t / b, 1)) + 1) / 2,
        6: lambda: 0.5 ** (1 / min(a, b * t)),
        7: lambda: (1 - 1 / t) ** (a + 1),
        8: lambda: (a - a**t) / (1 - a**t),
    }[kind]()


def join(high: Tensor, low: Tensor) -> Tensor:
    """The fp32 number of which `high` and its low-order part are the parts: csrc/low_part.h."""
    if high.dtype == torch.float16:
        return high.float() + low.view(torch.float16).float() / 2048
    bits = (high.view(torch.int16).long() << 16) + low.long()
    return _signed(bits, 32).view(torch.float32)


def split(x: Tensor, high: Tensor, low: Tensor) -> None:
    """Writes the parts of fp32 x."""
    if high.dtype == torch.float16:
        high.copy_(x)
        rest = (x - high.float()) * 2048
        low.copy_(torch.where(rest.isfinite(), rest, 0).half().view(torch.int16))
        return
    bits, finite = x.view(torch.int32).long(), x.isfinite()
    top = _signed(bits + 0x8000 >> 16, 16).view(torch.bfloat16)
    high.copy_(torch.where(finite, top, x.bfloat16()))
    low.copy_(torch.where(finite, _signed(bits, 16), 0))


def round_stochastic(x: Tensor, like: Tensor, rounding: _Rounding, first: int) -> Tensor:
    """fp32 x to the dtype of `like`, up or down by 16 random bits an element in the order of memory: csrc/philox.h."""
    dtype, limit = like.dtype, torch.finfo(like.dtype)
    length = _run_length(like)
    random = _random_bits(_places(like), rounding, first).view(like.numel() // length, -1)[:, :length]
    random = _in_memory_order(random.reshape(-1).to(x.device), like)
    magnitude, subnormal = x.double().abs(), x.abs() < limit.smallest_normal
    unit = torch.exp2(torch.frexp(magnitude).exponent - 1.0).clamp(min=limit.smallest_normal) * limit.eps
    places = magnitude / unit
    if dtype == torch.float16:  # 13 bits are cut off a normal number, and as many random ones count
        random = torch.where(subnormal, random, random >> 3 << 3)
        places = torch.where(subnormal, (places * 65536).floor() / 65536, places)
    rounded = (torch.floor(places + random / 65536) * unit).clamp(max=limit.max)
    special = ~x.isfinite() | (magnitude >= 65520 if dtype == torch.float16 else False)
    return torch.where(special, x.to(dtype), rounded.copysign(x.double()).to(dtype))


def _random_bits(count: int, rounding: _Rounding, first: int) -> Tensor:
    """16 bits for each of the elements [first, first + count): Philox4x32-10, in int64."""
    mask, step = 0xFFFFFFFF, rounding.step
    group = torch.arange(first // 8, (first + count + 7) // 8, dtype=torch.int64)
    c = [
        group & mask,
        group >> 32 | rounding.average << 24,
        group * 0 + (step & mask),
        group * 0 + (step >> 32),
    ]
    k0, k1 = rounding.seed & mask, rounding.seed >> 32 & mask
    for _ in range(10):
        (low0, high0), (low1, high1) = _product(0xD2511F53, c[0]), _product(0xCD9E8D57, c[2])
        c = [high1 ^ c[1] ^ k0, low1, high0 ^ c[3] ^ k1, low0]
        k0, k1 = (k0 + 0x9E3779B9) & mask, (k1 + 0xBB67AE85) & mask
    words = torch.stack(c, -1)
    return torch.stack([words & 0xFFFF, words >> 16], -1).reshape(-1)[first % 8 :][:count]


def _product(constant: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """Low and high 32 bits of a product of 32-bit numbers, in int64."""
    low, high = constant * (x & 0xFFFF), constant * (x >> 16)
    total = low + ((high & 0xFFFF) << 16)
    return total & 0xFFFFFFFF, (total >> 32) + (high >> 16)


def _in_memory_order(values: Tensor, like: Tensor) -> Tensor:
    """A 1-d tensor laid out over `like` in the order of its addresses."""
    order = sorted(range(like.dim()), key=lambda dim: (-like.stride(dim), dim))
    return values.view([like.shape[dim] for dim in order]).permute(
        [order.index(dim) for dim in range(like.dim())]
    )


def _signed(bits: Tensor, width: int) -> Tensor:
    """The low 16 or 32 bits as int16 or int32."""
    bits = bits & ((1 << width) - 1)
    signed = torch.where(bits >= 1 << (width - 1), bits - (1 << width), bits)
    return signed.to(torch.int16 if width == 16 else torch.int32)


def _average(teacher: Tensor, student: Tensor, decay: float | Tensor) -> Tensor:
    wide = torch.promote_types(torch.promote_types(teacher.dtype, student.dtype), torch.float32)
    weight = (1 - decay.double()).to(teacher.device) if isinstance(decay, Tensor) else 1 - decay
    if isinstance(weight, Tensor):
        weight = weight.to(wide)
    t, s = teacher.to(wide), student.to(wide)
    average = torch.lerp(t, s, weight)
    # Equal sides stay as they are, infinite ones too; decay 1 keeps the teacher, 0 the student, whatever the other is.
    average = torch.where((t == s) | torch.as_tensor(weight == 0, device=t.device), t, average)
    return torch.where(torch.as_tensor(weight == 1, device=t.device), s, average)


def swap_(teacher, student, names=None) -> None:
    """teacher <-> student."""
    _C.swap_rows(teacher, student, names, 1)  # checks
    written = set()
    with torch.no_grad():
        for a, b in zip(teacher, student, strict=True):
            if a.numel() and a.data_ptr() not in written:
                written.add(a.data_ptr())
                kept = a.clone()
                a.copy_(b)
                b.copy_(kept)


def nonfinite_(found: Tensor, tensors) -> None:
    """found <- 1 where any element of the tensors is infinite or NaN."""
    _C.nonfinite_rows(found, tensors, 1)  # checks
    for tensor in tensors:
        if (tensor.is_floating_point() or tensor.is_complex()) and not tensor.isfinite().all():
            found.fill_(1)


def scale_(data: Tensor, factor: Tensor) -> None:
    """data <- factor * data."""
    data.mul_(factor)
