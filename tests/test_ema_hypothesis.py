"""ema_update over random lists: shapes, dtypes, memory formats, ties, averages and options, against the reference."""

from itertools import chain

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtkernels import _C, schedules
from mtkernels.backends import native, reference
from mtkernels.ops.ema import EmaOptions

HALVES = (torch.float16, torch.bfloat16)
FLOATS = (torch.float32, torch.float64, *HALVES)
OTHERS = (torch.int64, torch.int16, torch.uint8, torch.bool, torch.complex64, torch.complex128)
FORMATS = {
    "plain": lambda t: t,
    "transposed": lambda t: t.transpose(0, -1).contiguous().transpose(0, -1) if t.dim() > 1 else t,
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t,
    "offset": lambda t: torch.cat([t.new_zeros(3), t.flatten()])[3:].view_as(t),
    "gaps": lambda t: torch.cat([t, t], -1)[..., : t.shape[-1]] if t.dim() > 1 and t.shape[-1] > 1 else t,
}
shapes = st.lists(st.sampled_from([0, 1, 1, 2, 3, 5, 8, 17]), max_size=4).map(tuple)
decays = st.one_of(
    st.sampled_from([0.0, 1.0, 0.5, 0.999, schedules.running_mean(0.9), schedules.cosine(0.9, steps=20)]),
    st.floats(0, 1).map(lambda value: round(value, 3)),
)
run = settings(deadline=None, derandomize=True, max_examples=40, database=None)


def _values(shape, dtype, generator):
    values = torch.randn(shape, dtype=torch.float64, generator=generator) * 3
    return (values.round() if not dtype.is_floating_point and not dtype.is_complex else values).to(dtype)


@st.composite
def lists(draw):
    """Students, teachers (all of the first average, then of the second ...), low-order parts, decays, options."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    averages = draw(st.integers(1, 3))
    students, teachers, lows = [], [[] for _ in range(averages)], [[] for _ in range(averages)]
    compensated = draw(st.booleans())
    for _ in range(draw(st.integers(1, 6))):
        shape, form = draw(shapes), FORMATS[draw(st.sampled_from(sorted(FORMATS)))]
        dtype = draw(st.sampled_from(FLOATS + OTHERS))
        from_dtype = draw(st.sampled_from(FLOATS)) if dtype.is_floating_point else dtype
        students.append(form(_values(shape, from_dtype, generator)))
        for k in range(averages):
            teachers[k].append(form(_values(shape, dtype, generator)))
            wants_low = compensated and dtype in HALVES
            low = (
                form((torch.randn(shape, generator=generator) * 1000).to(torch.int16)) if wants_low else None
            )
            if low is not None and dtype == torch.float16:
                low = form((torch.rand(shape, generator=generator) - 0.5).half().view(torch.int16))
            lows[k].append(low)
    tied = draw(st.booleans())
    if tied:
        at = draw(st.integers(0, len(students) - 1))
        students.append(students[at])
        for side in (*teachers, *lows):
            side.append(side[at])
    options = EmaOptions(
        step=draw(st.integers(1, 30) | st.integers(1, 30).map(torch.tensor)),
        low=list(chain(*lows)) if compensated else None,
        stochastic=draw(st.booleans()),
        seed=draw(st.integers(0, 2**63 - 1)),
        found_inf=draw(st.sampled_from([None, 0.0, 0.0, 1.0, torch.nan])),
        drift=torch.full((averages,), -1.0, dtype=torch.float64) if draw(st.booleans()) else None,
    )
    options = options._replace(
        found_inf=None if options.found_inf is None else torch.tensor(options.found_inf),
        **(
            {
                "every": draw(st.integers(1, 3)),
                "start": draw(st.integers(0, 10)),
                "advance": draw(st.booleans()),
            }
            if isinstance(options.step, torch.Tensor)
            else {}
        ),
    )
    chosen = [draw(decays) for _ in range(averages)]
    copied = draw(st.integers(0, 2)) if not (tied or compensated) else 0
    return (
        students,
        list(chain(*teachers)),
        chosen if averages > 1 else chosen[0],
        min(copied, len(students)),
        options,
    )


def _copy(case):
    """A deep copy in which one tensor stays one, and strides stay."""
    students, teachers, decay, copied, options = case
    known = {}

    def copy(tensor):
        if not isinstance(tensor, torch.Tensor):
            return tensor
        if id(tensor) not in known:
            whole = tensor.untyped_storage().clone()
            known[id(tensor)] = tensor.new_empty(0).set_(
                whole, tensor.storage_offset(), tensor.shape, tensor.stride()
            )
        return known[id(tensor)]

    low = options.low and [copy(part) for part in options.low]
    options = EmaOptions(*[copy(value) for value in options])._replace(low=low)
    return [copy(t) for t in students], [copy(t) for t in teachers], decay, copied, options


def _bits(tensors):
    return [t.untyped_storage().tolist() for t in tensors if isinstance(t, torch.Tensor)]


def _close(ours, theirs, low, their_low, before, student):
    """Equal up to two units in the last place of what was added: the reference does not contract products."""
    if not (ours.is_floating_point() or ours.is_complex()):
        return torch.equal(ours, theirs)
    if low is not None and low.numel():
        ours, theirs = reference.join(ours, low), reference.join(theirs, their_low)
    wide = torch.complex128 if ours.is_complex() else torch.float64
    arithmetic = torch.promote_types(torch.promote_types(ours.dtype, student.dtype), torch.float32)
    eps = torch.finfo(arithmetic).eps
    scale = before.to(wide).abs() + student.to(wide).abs()
    error = (ours.to(wide) - theirs.to(wide)).abs()
    tiny = 2.0**-24 if low is not None else 0.0  # fp16's low part has a smallest number
    if ours.dtype in HALVES:  # a rounding may fall to the other side of what was nearly a tie
        flips = error > 2 * eps * scale
        grain = torch.finfo(ours.dtype).eps * theirs.to(wide).abs() + torch.finfo(ours.dtype).tiny
        return bool((error <= grain).all()) and int(flips.sum()) <= 1 + ours.numel() // 1000
    grain = 2.0**-21 * scale if low is not None and before.dtype == torch.float16 else 0.0
    return bool((error <= 2 * eps * scale + grain + tiny).all())


@run
@given(lists())
def test_native_equals_reference(case):
    ours, theirs = _copy(case), _copy(case)
    native.ema_update(ours[1], ours[0], ours[2], ours[3], None, ours[4])
    reference.ema_update(theirs[1], theirs[0], theirs[2], theirs[3], None, theirs[4])
    assert _bits(ours[0]) == _bits(case[0]), "a student changed"
    count = len(case[0])
    for at, (to, expected) in enumerate(zip(ours[1], theirs[1], strict=True)):
        low, their_low = (side[4].low[at] if side[4].low else None for side in (ours, theirs))
        assert _close(to, expected, low, their_low, case[1][at], case[0][at % count]), at
    if ours[4].drift is not None:
        torch.testing.assert_close(ours[4].drift, theirs[4].drift, rtol=1e-3, atol=1e-6)
    if isinstance(ours[4].step, torch.Tensor):
        assert ours[4].step == theirs[4].step


@run
@given(lists())
def test_threads_and_plans_do_not_change_a_bit(case):
    """One thread, three, and the bound form."""
    results = []
    for threads in (1, 3):
        one = _copy(case)
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            native.ema_update(one[1], one[0], one[2], one[3], None, one[4])
        finally:
            torch.set_num_threads(before)
        results.append(_bits([*one[1], *one[4], *(one[4].low or [])]))
    one = _copy(case)
    averages = len(one[2]) if isinstance(one[2], list) else 1
    plan = _C.EmaPlan(one[1], one[0], averages, one[3], None, one[4].low)
    native.ema_update_plan(plan, one[2], one[4])
    results.append(_bits([*one[1], *one[4], *(one[4].low or [])]))
    assert results[0] == results[1] == results[2]


def _wrong(draw, case):
    """The case with one tensor made wrong, and what kind of fault it is."""
    students, teachers, decay, copied, options = case
    at = draw(st.integers(0, len(teachers) - 1))
    to, source = teachers[at], students[at % len(students)]
    faults = ["meta", "list", "shape", "grad"] + ["memory"] * (to.numel() > 0) + ["dtype"] * (to.numel() > 0)
    fault = draw(st.sampled_from(faults))
    bad = {
        "meta": lambda: to.to("meta"),
        "list": lambda: [1.0],
        "shape": lambda: to.new_zeros((*to.shape, 2)),
        "grad": lambda: torch.zeros(to.shape, requires_grad=True),
        "memory": lambda: source,
        "dtype": lambda: torch.empty_like(
            to, dtype=torch.int32 if to.is_floating_point() else torch.float8_e5m2
        ),
    }[fault]()
    return students, [*teachers[:at], bad, *teachers[at + 1 :]], decay, copied, options


@run
@given(lists(), st.data())
def test_one_wrong_tensor_is_refused_and_nothing_is_written(case, data):
    students, teachers, decay, copied, options = _wrong(data.draw, case)
    kept = [t for t in (*students, *teachers) if isinstance(t, torch.Tensor) and t.device.type == "cpu"]
    kept += [*(options.low or []), options.step, options.drift]
    before = _bits(kept)
    with pytest.raises((TypeError, ValueError, NotImplementedError), match=r"ema_update: .* must .*, got "):
        native.ema_update(teachers, students, decay, copied, None, options)
    assert _bits(kept) == before


@run
@given(lists())
def test_swapping_twice_gives_back_every_bit(case):
    students = case[0]
    teachers = [
        t.clone(memory_format=torch.preserve_format) if t.is_contiguous() else _copy_of(t) for t in students
    ]
    pairs = {id(s): t for s, t in zip(students, teachers, strict=True)}
    teachers = [pairs[id(s)].zero_() for s in students]
    values = [s.clone() for s in students]
    native.swap_(teachers, students)
    assert all(torch.equal(t, v) for t, v in zip(teachers, values, strict=True))
    assert not any(s.any() for s in students)
    native.swap_(teachers, students)
    assert all(torch.equal(s, v) for s, v in zip(students, values, strict=True))


def _copy_of(tensor):
    whole = tensor.untyped_storage().clone()
    return tensor.new_empty(0).set_(whole, tensor.storage_offset(), tensor.shape, tensor.stride())


@run
@given(
    st.lists(st.tuples(shapes, st.sampled_from(FLOATS + OTHERS), st.sampled_from(sorted(FORMATS)))), st.data()
)
def test_nonfinite_finds_the_one(kinds, data):
    generator = torch.Generator().manual_seed(0)
    tensors = [FORMATS[form](_values(shape, dtype, generator)) for shape, dtype, form in kinds]
    found = torch.zeros(())
    native.nonfinite_(found, tensors)
    assert found == 0
    places = [t for t in tensors if (t.is_floating_point() or t.is_complex()) and t.numel()]
    if places:
        tensor = data.draw(st.sampled_from(places))
        index = tuple(data.draw(st.integers(0, size - 1)) for size in tensor.shape)
        tensor[index] = data.draw(st.sampled_from([torch.inf, -torch.inf, torch.nan]))
        native.nonfinite_(found, tensors)
        assert found == 1
