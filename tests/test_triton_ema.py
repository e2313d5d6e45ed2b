"""The multi-tensor ops of the Triton backend in Triton's interpreter: each option of ema_update, swap_, nonfinite_."""

import gc
import itertools
import weakref

import pytest
import torch
from test_triton import (  # noqa: F401
    BF16,
    F16,
    F32,
    F64,
    SCHEDULES,
    _check,
    _module,
    bfloat16_to_nearest,
    interpreted,
    pytestmark,
)

from mtkernels import _C, schedules
from mtkernels.backends import native, reference
from mtkernels.ops.ema import EmaOptions
from mtkernels.testing import FLOATS, OPS

if interpreted:
    from mtkernels.backends import triton


# ---- ema_update


@pytest.mark.parametrize("decay", [0.99, 0.25])
@pytest.mark.parametrize("offset", [0, 1], ids=["aligned", "offset_by_one"])
def test_every_code_of_the_plan(offset, decay):
    """Averages and conversions of each pair of dtypes, copies of words and of bytes: one launch."""
    op = OPS["ema_update"]

    def make(seed):
        def tensors(side):
            pairs = [pair[side] for pair in itertools.product(FLOATS, FLOATS)]
            values = op.make(((1030 + offset,),) * 16, F64, seed=seed)[side]
            floats = [value.to(dtype)[offset:] for value, dtype in zip(values, pairs, strict=True)]
            integers = [
                torch.arange(n, dtype=dtype) * (side + 1)
                for n, dtype in ((37, torch.uint8), (40, torch.int64))
            ]
            return floats + integers + [value.clone() for value in floats]

        return tensors(0), tensors(1)

    outputs = op.call(triton, make(0), decay=decay, copied=16)
    expected = op.call(reference, make(0), decay=decay, copied=16)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(outputs[16:], expected[16:], strict=True))

    for doubles in (False, True):  # judged apart: they have yardsticks of their own

        def floats(seed, doubles=doubles):
            pairs = list(zip(*make(seed), strict=True))[:16]
            return tuple(
                zip(*(pair for pair in pairs if (F64 in {t.dtype for t in pair}) == doubles), strict=True)
            )

        _check(op, floats, decay=decay)
    torch.testing.assert_close(outputs[:16], expected[:16])


@pytest.mark.parametrize("decay_dtype", [F32, F64])
@pytest.mark.parametrize("dtype", [F32, F64])
def test_decay_in_memory_is_the_decay(dtype, decay_dtype):
    op = OPS["ema_update"]
    for value in (0.99, 0.3, 0.0, 1.0):
        decay = torch.tensor(value, dtype=decay_dtype)  # on the weights' device: read by the kernel
        inputs = op.make(((1500,),), dtype)
        ours, number = op.call(triton, inputs, decay=decay), op.call(triton, inputs, decay=decay.item())
        assert torch.equal(ours[0], number[0])


def test_the_table_is_uploaded_once():
    table = _module("table")
    teacher, student = [torch.zeros(50), torch.zeros(3)], [torch.ones(50), torch.ones(3)]
    for _ in range(3):
        misses = table._table_of.cache_info().misses
        triton.ema_update(teacher, student, 0.9)
    assert table._table_of.cache_info().misses == misses
    triton.ema_update([], [], 0.9)


# ---- its options

# Weights of powers of two: a fused and an unfused blend agree to the last bit, and so must the rounding.
_EXACT = [0.75, 0.5]
_HALVES = list(itertools.product((BF16, F16), FLOATS))
_INF, _NAN = torch.inf, torch.nan
# Around what bf16 and fp16 hold: zeros, subnormal halves, the largest numbers, and what is no number.
_SPECIAL = [
    0.0, -0.0, 1e-8, -3e-8, 6e-8, 5.9e-5, 6.1e-5, -6.2e-5, 2.0**-130, 65504, 65519, 65520, -65600, 3.39e38, -_INF, _INF,
    _NAN,
]  # fmt: skip


def _values(dtype, seed=0):
    """[2100]: numbers of a small, a usual and a large size, special ones beside any others and beside each other."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(2100, dtype=F64, generator=generator)
    values[700:1400] *= 2e-6
    values[1400:] *= 1e4
    special = torch.tensor(_SPECIAL, dtype=F64)
    values[100 * seed : 100 * seed + len(special)] = special
    values[600 : 600 + len(special)] = special * (1 - seed / 2)
    return values.to(dtype)


def _equal(ours, theirs):
    """By bits, but for those of NaN."""
    ours, theirs = (t.nan_to_num(7.0, torch.inf, -torch.inf).view(torch.int16) for t in (ours, theirs))
    return torch.equal(ours, theirs)


def _run(backend, pairs, decays, averages=2, low=False, **options):
    """All tensors that an update of fresh pairs has written: teachers, low-order parts, drift, step."""
    students = [_values(student, 1) for _, student in pairs]
    teachers = [_values(teacher) for _ in range(averages) for teacher, _ in pairs]
    lows = [torch.zeros(2100, dtype=torch.int16) for _ in teachers] if low else None
    if low:
        lows[1] = None
    options = EmaOptions(low=lows, **options)
    for _ in range(2):
        backend.ema_update(teachers, students, decays if averages > 1 else decays[0], 0, None, options)
    return teachers, [part for part in lows or [] if part is not None]


@pytest.mark.parametrize("step", [3, torch.tensor(2**33 + 5)], ids=["number", "in_memory"])
@pytest.mark.parametrize("averages", [1, 2])
def test_stochastic_rounding_has_the_bits_of_native(averages, step):
    options = {"averages": averages, "stochastic": True, "step": step, "seed": 2**62 + 2**40 + 7}
    ours, _ = _run(triton, _HALVES, _EXACT, **options)
    theirs, _ = _run(native, _HALVES, _EXACT, **options)
    nearest, _ = _run(native, _HALVES, _EXACT, averages=averages)
    assert all(_equal(*pair) for pair in zip(ours, theirs, strict=True))
    assert not any(_equal(*pair) for pair in zip(ours, nearest, strict=True))


@pytest.mark.parametrize("averages", [1, 2])
def test_low_order_parts_are_those_of_native(averages):
    """Also beside one that is None, which is rounded at random."""
    for stochastic in (False, True):
        options = {"averages": averages, "low": True, "stochastic": stochastic, "step": 1}
        ours, theirs = (_run(backend, _HALVES, _EXACT, **options) for backend in (triton, native))
        assert all(_equal(*pair) for pair in zip(ours[0], theirs[0], strict=True))
        assert all(torch.equal(*pair) for pair in zip(ours[1], theirs[1], strict=True))


def _small(seed=0, averages=2):
    """Pairs of each kind with rows of several blocks, of one and of none; two are copied."""
    generator = torch.Generator().manual_seed(seed)

    def tensors():
        shapes = ((3000,), (7, 5), (), (0, 2), (9,), (40,))
        floats = [torch.randn(shape, dtype=F64, generator=generator) for shape in shapes]
        return [x.to(d) for x, d in zip(floats, (F32, F64, F16, F32, F32, BF16), strict=True)] + [
            torch.randint(9, (33,), generator=generator),
            torch.randn(5, 2, dtype=torch.complex64, generator=generator),
        ]

    return [tensor for _ in range(averages) for tensor in tensors()], tensors()


def _clone(tensors):
    return [tensor.clone() for tensor in tensors]


@pytest.mark.parametrize("backend", [native, reference], ids=lambda backend: backend.__name__.split(".")[-1])
def test_every_option_together_through_a_run(backend):
    """Skips, copies, averages: what every, start, advance and found_inf say, for three averages and their drift."""
    decays = [0.97, torch.tensor(0.3, dtype=F64), schedules.running_mean(0.8)]
    states = []
    for which in (triton, backend):
        teacher, student = _small(averages=3)
        step, drift, found_inf = torch.zeros((), dtype=torch.int64), torch.zeros(3, dtype=F64), torch.zeros(1)
        options = EmaOptions(step, None, False, 0, found_inf, drift, every=2, start=3, advance=True)
        history = []
        for turn in range(8):
            found_inf.fill_([0.0, torch.inf, 0.0, 0.0, 1.0, torch.nan, 0.0, 0.0][turn])
            for tensor in student[:6]:
                tensor.mul_(-0.5)
            which.ema_update(teacher, student, decays, 2, None, options)
            history.append([*_clone(teacher), step.clone(), drift.clone()])
        states.append(history)
    for ours, theirs in zip(*states, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert ours[-2] == 5 and ours[-1].all()
    assert _module("launch").ticket_of(torch.device("cpu")).item() == 0


def test_drift_is_the_same_again():
    teacher, student = _small()
    drifts = torch.zeros(2, 2, dtype=F64)
    for drift in drifts:
        triton.ema_update(_clone(teacher), student, [0.9, 0.5], 0, None, EmaOptions(drift=drift))
    assert torch.equal(*drifts) and drifts.all()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_schedules_at_a_step_in_memory(schedule):
    for t in (1, 2, 39, 40, 1000, 10**6, 2**33 + 1):
        for dtype, accuracy in ((F64, 1e-12), (F32, 1e-7)):
            teacher, student = [torch.ones(3, dtype=dtype)], [torch.zeros(3, dtype=dtype)]
            triton.ema_update(teacher, student, schedule, 0, None, EmaOptions(torch.tensor(t)))
            assert abs(teacher[0][0].item() - schedule(t)) <= accuracy, t
            number = [torch.ones(3, dtype=dtype)]
            triton.ema_update(number, student, schedule, 0, None, EmaOptions(t))
            assert abs(number[0][0].item() - schedule(t)) <= min(accuracy, 6e-8), t


def test_numbers_reach_the_kernel_in_double_precision():
    parts = _module("decay").parts
    for x in (0.0, 0.1, 1 - 2**-53, 1 / 3, 1e300, torch.inf, -torch.inf, 2.0**-60, 123456789.123456789):
        assert abs(x) > 1e38 or sum(parts(x)) == x, x
        assert abs(x) != torch.inf or parts(x)[0] == x


def test_a_step_advances_where_all_tensors_are_empty():
    step, drift = torch.zeros((), dtype=torch.int64), torch.ones(1, dtype=F64)
    empty = [torch.zeros(0)]
    triton.ema_update(empty, empty, 0.9, 0, None, EmaOptions(step, drift=drift, advance=True))
    assert step == 1 and drift == 0


# ---- bound plans


def test_a_bound_plan_uploads_its_table_once(monkeypatch):
    table = _module("table")
    uploads, upload = [], table._upload
    monkeypatch.setattr(table, "_upload", lambda *arguments: uploads.append(1) or upload(*arguments))
    teacher, student = _small()
    low = [torch.zeros_like(t, dtype=torch.int16) if t.dtype in (F16, BF16) else None for t in teacher]
    expected, expected_low = _clone(teacher), [part if part is None else part.clone() for part in low]
    plan = _C.EmaPlan(teacher, student, 2, 2, None, low)
    options = EmaOptions(torch.tensor(3))
    for turn in range(4):
        if turn == 2:
            student[0].set_(student[0].clone())  # moves
        triton.ema_update_plan(plan, _EXACT, options)
        native.ema_update(expected, student, _EXACT, 2, None, options._replace(low=expected_low))
    assert len(uploads) == 2
    torch.testing.assert_close(teacher, expected)
    assert all(torch.equal(*pair) for pair in zip(low, expected_low, strict=True) if pair[0] is not None)
    rows = weakref.ref(table._PLANS[plan][1].rows)
    del plan
    gc.collect()
    assert rows() is None
    triton.ema_update_plan(_C.EmaPlan([], []), 0.9)


def test_tables_under_the_capture_of_a_graph(monkeypatch):
    """New ones are refused; those that a graph reads are kept for good."""
    table = _module("table")
    plan = _C.EmaPlan([torch.zeros(5)], [torch.ones(5)])
    triton.ema_update_plan(plan, 0.5)
    monkeypatch.setattr(table, "is_capturing", lambda device: True)
    triton.ema_update_plan(plan, 0.5)
    rows = weakref.ref(table._PLANS[plan][1].rows)
    del plan
    gc.collect()
    assert rows() is not None
    found, new = torch.zeros(()), [torch.zeros(2)]
    for op, call in (
        ("ema_update", lambda: triton.ema_update(new, [torch.ones(2)], 0.5)),
        ("ema_update", lambda: triton.ema_update_plan(_C.EmaPlan(new, [torch.ones(2)]), 0.5)),
        ("swap_", lambda: triton.swap_(new, [torch.ones(2)])),
        ("nonfinite_", lambda: triton.nonfinite_(found, new)),
    ):
        with pytest.raises(
            RuntimeError, match=f"^{op}: .* must have been given to Triton once before the capture of a graph"
        ):
            call()


# ---- swap_ and nonfinite_


@pytest.mark.parametrize("offset", [0, 1], ids=["aligned", "offset_by_one"])
def test_swap(offset):
    def side(seed):
        floats = [_values(dtype, seed)[offset:] for dtype in FLOATS]
        others = [
            torch.arange(n, dtype=dtype) + seed for n, dtype in ((37, torch.uint8), (3000, torch.int64))
        ]
        return floats + others + [torch.zeros(0)]

    (teacher, student), (expected_student, expected_teacher) = map(side, (0, 1)), map(side, (0, 1))
    triton.swap_(teacher, student)
    for ours, theirs in zip(teacher + student, [*expected_teacher, *expected_student], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
    triton.swap_([], [])


@pytest.mark.parametrize("dtype", [*FLOATS, torch.complex64], ids=str)
def test_nonfinite(dtype):
    tensors = [torch.ones(3, dtype=torch.int64), torch.full((2500,), 3.0, dtype=dtype)[1:], torch.zeros(0)]
    found = torch.zeros(1)
    triton.nonfinite_(found, tensors)
    triton.nonfinite_(found, [])
    assert found == 0
    limit = torch.finfo(dtype).max
    for at, value in ((0, torch.inf), (2498, -torch.inf), (1030, torch.nan), (2047, torch.inf), (5, limit)):
        found.zero_()
        tensors[1][at] = value
        triton.nonfinite_(found, tensors)
        assert found.item() == (value != limit)
        if value != limit:
            tensors[1][at] = 1
            triton.nonfinite_(found, tensors)
            assert found == 1  # as it was
