"""ema_update: teacher <- decay * teacher + (1 - decay) * student over a whole model, for one or several averages of it.

The meaning is that of csrc/ema_update.h. What a launch does not use is not compiled into it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mtkernels import _C
from mtkernels.backends.triton.decay import LIVE, decay_at, joined_parts, parts
from mtkernels.backends.triton.launch import FP_FUSION, on_device, ticket_of
from mtkernels.backends.triton.rounding import join_low, random_bits, round_stochastic, split_low
from mtkernels.backends.triton.table import BLOCK, TARGET_ROWS, Table, pointer, table_of, table_of_plan

_PARTIALS = 256  # added up at a time


@triton.jit
def _blend(teacher, student, weight, from_teacher):
    near = tl.where(from_teacher, teacher, student)
    far = tl.where(from_teacher, student, teacher)
    blended = tl.where(weight == 0, near, near + weight * (far - near))
    return tl.where(far == near, near, blended)


@triton.jit
def _narrowed(x, dtype: tl.constexpr):
    if x.dtype == tl.float64 and dtype != tl.float64:
        x = x.to(tl.float32)  # as torch narrows
    return x.to(dtype)


@triton.jit
def _average(
    dst, low, student, mask, side, first, key,
    NUMBER: tl.constexpr, LOWS: tl.constexpr, STOCHASTIC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One block of average NUMBER, its elements counted from `first`; gives what has been stored."""
    dtype: tl.constexpr = dst.dtype.element_ty
    HAS_LOW: tl.constexpr = LOWS >> NUMBER & 1 == 1
    at_random: tl.constexpr = STOCHASTIC and not HAS_LOW and dtype.primitive_bitwidth == 16
    doubles: tl.constexpr = not (HAS_LOW or at_random) and (
        dtype == tl.float64 or student.dtype == tl.float64
    )
    wide: tl.constexpr = tl.float64 if doubles else tl.float32
    teacher = tl.load(dst, mask=mask)
    if HAS_LOW:
        teacher = join_low(teacher, tl.load(low, mask=mask))
    blended = _blend(teacher.to(wide), student.to(wide), side[0].to(wide), side[1])
    if HAS_LOW:
        high, rest = split_low(blended, dtype)
        tl.store(low, rest, mask=mask)
        stored = join_low(high, rest)
    elif at_random:
        high = round_stochastic(blended, random_bits(first, NUMBER, key[0], key[1], BLOCK), dtype)
        stored = high
    else:
        high = _narrowed(blended, dtype)
        stored = high
    tl.store(dst, high, mask=mask)
    return stored


@triton.jit
def _squared_distance(stored, student, mask):
    doubles: tl.constexpr = stored.dtype == tl.float64 or student.dtype == tl.float64
    wide: tl.constexpr = tl.float64 if doubles else tl.float32
    difference = stored.to(wide) - student.to(wide)
    if mask is not None:
        difference = tl.where(mask, difference, 0.0)
    return tl.sum(difference * difference).to(tl.float64)


@triton.jit
def _step(
    targets, src, start, mask, sides, first, key, sums,
    AVERAGE: tl.constexpr, LOWS: tl.constexpr, STOCHASTIC: tl.constexpr, DRIFT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One block of a row, for all its averages; gives the sums with the block's squared distances added."""
    at = tl.arange(0, BLOCK)
    student = tl.load(src + start + at, mask=mask)
    first += start
    for k in tl.static_range(len(targets)):
        dst = targets[k][0] + start + at
        if AVERAGE:
            low = targets[k][1] + start + at
            stored = _average(dst, low, student, mask, sides[k], first, key, k, LOWS, STOCHASTIC, BLOCK)
            if DRIFT:
                distance = _squared_distance(stored, student, mask)
                sums += tl.where(tl.arange(0, sums.shape[0]) == k, distance, 0.0)
        else:
            tl.store(dst, _narrowed(student, dst.dtype.element_ty), mask=mask)
    return sums


@triton.jit
def _row(
    addresses, src, count, sides, first, key, sums,
    VARIANT: tl.constexpr, STOCHASTIC: tl.constexpr, DRIFT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    CODE: tl.constexpr = VARIANT % 128 // 2
    ALIGNED: tl.constexpr = VARIANT % 2 == 1
    LOWS: tl.constexpr = VARIANT // 128
    # 32 and 33 are the copies of bytes and of words.
    dst_tag: tl.constexpr = CODE - 28 if CODE >= 32 else CODE % 16 // 4
    src_tag: tl.constexpr = CODE - 28 if CODE >= 32 else CODE % 4
    student = pointer(src, src_tag, ALIGNED)
    targets = ()
    for k in tl.static_range(len(addresses)):
        low = addresses[k][1].to(tl.pointer_type(tl.int16))
        low = tl.multiple_of(low, 16) if ALIGNED else low
        targets += ((pointer(addresses[k][0], dst_tag, ALIGNED), low),)
    whole = count // BLOCK * BLOCK
    for start in range(0, whole, BLOCK):
        # Without a mask, so that the accesses are 16 bytes wide.
        sums = _step(
            targets, student, start, None, sides, first, key, sums, CODE < 16, LOWS, STOCHASTIC, DRIFT, BLOCK
        )
    mask = whole + tl.arange(0, BLOCK) < count
    return _step(
        targets, student, whole, mask, sides, first, key, sums, CODE < 16, LOWS, STOCHASTIC, DRIFT, BLOCK
    )


@triton.jit
def _sides(decays, copies, t, KINDS: tl.constexpr, DOUBLES: tl.constexpr):
    """For each average the weight of the far side, and whether the near one is the teacher's: decay > 1/2."""
    sides = ()
    for k in tl.static_range(len(KINDS)):
        if KINDS[k] == 0:
            from_teacher = decays[k][0] != 0
            weight = joined_parts(decays[k][1]) if DOUBLES else decays[k][1]
        else:
            decay = tl.load(decays[k]) if KINDS[k] == 9 else decay_at(KINDS[k], decays[k], t)
            if DOUBLES:
                decay = decay.to(tl.float64)
            from_teacher = decay > 0.5
            weight = tl.where(from_teacher, 1 - decay, decay)
        sides += ((tl.where(copies, 0.0, weight), from_teacher & (copies == 0)),)
    return sides


@triton.jit
def _update(
    row, sides, key, sums,
    VARIANTS: tl.constexpr, STOCHASTIC: tl.constexpr, DRIFT: tl.constexpr,
    AVERAGES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Does what a row says; gives its part of each average's drift."""
    src = tl.load(row)
    code = tl.load(row + 2)
    first = tl.load(row + 3)
    HAS_LOW: tl.constexpr = VARIANTS[len(VARIANTS) - 1] >= 128
    places = src
    lows = code * 0
    addresses = ()
    for k in tl.static_range(AVERAGES):
        dst = tl.load(row + 4 + 2 * k)
        low = dst
        places |= dst
        if HAS_LOW:
            low = tl.load(row + 5 + 2 * k)
            places |= low
            lows += (low != 0).to(tl.int64) << k
        addresses += ((dst, low),)
    variant = 2 * code + (places % 16 == 0).to(tl.int64)
    if HAS_LOW:
        variant += tl.where(code < 16, lows, 0) * 128
    count = tl.load(row + 1)
    for i in tl.static_range(len(VARIANTS)):
        if variant == VARIANTS[i]:
            sums = _row(addresses, src, count, sides, first, key, sums, VARIANTS[i], STOCHASTIC, DRIFT, BLOCK)
    return sums


@triton.jit
def _add_up(partials, drift, writes, AVERAGES: tl.constexpr, PARTIALS: tl.constexpr):
    """The norm of each average's distance: partial sums of all programs, in their order."""
    programs = tl.num_programs(0)
    for k in tl.static_range(AVERAGES):
        total = tl.zeros([PARTIALS], tl.float64)
        for start in range(0, programs, PARTIALS):
            at = start + tl.arange(0, PARTIALS)
            # From the L2, where the other programs' stores are.
            parts_of_k = partials + at * AVERAGES + k
            total += tl.load(parts_of_k, mask=at < programs, other=0.0, cache_modifier=".cg")
        tl.store(drift + k, tl.sqrt(tl.sum(total)), mask=writes)


@triton.jit(do_not_specialize=["number", "seed", "every", "start"])
def _ema_update_kernel(
    rows,  # Table.rows
    decays,  # by KINDS: from_teacher and the weight (in parts where DOUBLES); where the decay lies; a, b, c, d in parts
    step=None,  # for these see csrc/ema_update.h's EmaUpdate
    number=0,  # the step of the random numbers, where there is none in memory
    seed=0,
    every=1,
    start=0,
    found_inf=None,
    drift=None,
    partials=None,  # [programs, averages] fp64, for the drift
    ticket=None,  # for what the program that comes last does: one int32 that is 0
    KINDS: tl.constexpr = (),
    VARIANTS: tl.constexpr = (),
    DOUBLES: tl.constexpr = False,
    ADVANCE: tl.constexpr = False,
    STOCHASTIC: tl.constexpr = False,
    BLOCK: tl.constexpr = 0,
    PARTIALS: tl.constexpr = 0,
):
    AVERAGES: tl.constexpr = len(KINDS)
    DRIFT: tl.constexpr = drift is not None
    counts = True
    if found_inf is not None:
        counts = tl.load(found_inf) == 0
    writes = counts
    copies = False
    t = number
    if step is not None:
        number = tl.load(step)
        if ADVANCE:
            number += 1
        writes = counts & (number % every == 0)
        copies = number <= start
        t = number - start
    if writes:
        sides = _sides(decays, copies, t, KINDS, DOUBLES)
        row = rows + (4 + 2 * AVERAGES) * tl.program_id(0).to(tl.int64)
        k = tl.arange(0, triton.next_power_of_2(AVERAGES))
        sums = tl.zeros(k.shape, tl.float64 if DRIFT else tl.float32)
        sums = _update(row, sides, (seed, number), sums, VARIANTS, STOCHASTIC, DRIFT, AVERAGES, BLOCK)
        if DRIFT:
            tl.store(partials + tl.program_id(0) * AVERAGES + k, sums, mask=k < AVERAGES)
    if ticket is not None:
        tl.debug_barrier()  # all of the program's threads have read the step by now
        if tl.atomic_add(ticket, 1, sem="acq_rel", scope="gpu") == tl.num_programs(0) - 1:
            if DRIFT:
                _add_up(partials, drift, writes, AVERAGES, PARTIALS)
            if ADVANCE:
                tl.store(step, number, mask=counts)
            tl.store(ticket, 0)


def ema_update(teacher, student, decay, copied: int = 0, names=None, options=None) -> None:
    """See reference.ema_update. Decays and steps on the weights' device are read by the kernel."""
    rows = _C.ema_rows(teacher, student, decay, copied, names, options, TARGET_ROWS)
    if teacher:
        decays = decay if isinstance(decay, (list, tuple)) else (decay,)
        _launch(table_of("ema_update", rows, len(decays), teacher[0].device), decays, options)


def ema_update_plan(plan: _C.EmaPlan, decay, options=None) -> None:
    number = plan.check(decay, options)
    if plan.student:
        _launch(table_of_plan(plan, number), decay if isinstance(decay, (list, tuple)) else (decay,), options)


def _launch(table: Table, decays, options) -> None:
    rows, device = table.rows, table.rows.device
    step = None if options is None else options.step
    kinds, operands = zip(*(_operand(decay, step, table.doubles, device) for decay in decays), strict=True)
    with on_device(device):
        _ema_update_kernel[(len(rows),)](
            rows,
            operands,
            KINDS=kinds,
            VARIANTS=table.variants,
            DOUBLES=table.doubles,
            BLOCK=BLOCK,
            enable_fp_fusion=FP_FUSION,
            **({} if options is None else _arguments(options, rows, len(kinds))),
        )


def _operand(decay, step, doubles: bool, device: torch.device) -> tuple:
    """An average's kind, and what the kernel takes for it."""
    if isinstance(decay, Tensor) and decay.device == device:
        return LIVE, decay
    if hasattr(decay, "kernel"):
        kind, *numbers = decay.kernel
        if kind != 0 and isinstance(step, Tensor):
            return kind, tuple(map(parts, numbers))
        decay = decay(1 if isinstance(step, Tensor) else step)
    decay = float(decay)
    from_teacher = decay > 0.5
    weight = 1.0 - decay if from_teacher else decay
    return 0, (float(from_teacher), parts(weight) if doubles else weight)


def _arguments(options, rows: Tensor, averages: int) -> dict:
    in_memory = isinstance(options.step, Tensor)
    arguments = {
        "step": options.step if in_memory else None,
        "number": 0 if in_memory else options.step or 0,
        "seed": options.seed,
        "every": options.every,
        "start": options.start,
        "found_inf": options.found_inf,
        "drift": options.drift,
        "ADVANCE": options.advance,
        "STOCHASTIC": options.stochastic,
    }
    if options.drift is not None:
        arguments["PARTIALS"] = _PARTIALS
        arguments["partials"] = rows.new_empty(len(rows) * averages, dtype=torch.float64)
    if options.drift is not None or options.advance:
        arguments["ticket"] = ticket_of(rows.device)
    return arguments
