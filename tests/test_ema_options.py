"""ema_update's options on the CPU: stochastic rounding, low-order parts, drift, flags, schedules, patterns."""

import copy

import pytest
import torch
from torch import nn

import mtkernels
from mtkernels import _C, schedules
from mtkernels.backends import native, reference
from mtkernels.ops.ema import EmaOptions

BF16, FP16 = torch.bfloat16, torch.float16
halves = pytest.mark.parametrize("dtype", [BF16, FP16], ids=["bfloat16", "float16"])


def _copy(tensor):
    """Gaps stay."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype).copy_(tensor)


def stochastic(teacher, student, decay=0.9, *, step=1, seed=0, backend=native):
    averages = len(decay) if isinstance(decay, list) else 1
    results = [_copy(t) for _ in range(averages) for t in teacher]
    backend.ema_update(results, student, decay, 0, None, EmaOptions(step=step, stochastic=True, seed=seed))
    return results


def bits(tensors):
    return torch.cat([t.flatten().view(torch.int16) for t in tensors])


def for_threads(function):
    """What the function gives with 1, 2 and 3 threads."""
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(function())
    finally:
        torch.set_num_threads(before)
    return results


# ---- stochastic rounding


@halves
@pytest.mark.parametrize("scale", [1.0, 3e-7, 2e4])
@pytest.mark.parametrize("student_dtype", [torch.float32, torch.float64, BF16])
def test_stochastic_equals_the_reference(dtype, scale, student_dtype):
    """Except where the reference, which contracts no products, lies on the other side of a random number."""
    torch.manual_seed(0)
    teacher = [(torch.randn(size) * scale).to(dtype) for size in (1, 7, 4097, 30_000)]
    student = [(torch.randn(t.shape) * scale).to(student_dtype) for t in teacher]
    for step, seed in ((1, 0), (2**40, 2**62 + 12345)):
        ours = stochastic(teacher, student, step=step, seed=seed)
        theirs = stochastic(teacher, student, step=step, seed=seed, backend=reference)
        apart = (bits(ours).int() - bits(theirs).int()).abs()
        assert (apart == 0).double().mean() > 0.999
        largest = torch.cat(
            [t.double().abs() + s.double().abs() for t, s in zip(teacher, student, strict=True)]
        )
        difference = (torch.cat(ours).double() - torch.cat(theirs).double()).abs()
        assert ((apart <= 1) | (difference <= 2.0**-22 * largest)).all()  # neighbours, or what cancels out


@halves
@pytest.mark.parametrize("value", [1.0, -3.7, 1e-30, 2.0**-25, 1e-6, 0.3 * 2.0**-14])
def test_the_mean_of_many_draws_is_the_value(dtype, value):
    """decay 1/2 of 0 and of 2 * value, in float32, is the value; each draw is one of its two neighbours."""
    student, count = torch.full((100_000,), 2 * value), 0
    exact, total = torch.tensor(value), 0.0
    for step in range(1, 5):
        (drawn,) = stochastic([torch.zeros(100_000, dtype=dtype)], [student], 0.5, step=step)
        total, count = total + drawn.double().sum(), count + drawn.numel()
        assert len(drawn.unique()) <= 2
    grain = (drawn.double().max() - drawn.double().min()).item() or torch.finfo(dtype).eps * abs(value)
    assert abs(total / count - exact.double()) <= 5 * 0.5 * grain / count**0.5 + 2.0**-41 * (dtype == FP16)


@halves
def test_stochastic_special_values(dtype):
    """What is exact stays, infinities and NaN too; nothing finite becomes infinite that rounding to nearest keeps."""
    limit = torch.finfo(dtype)
    exact = torch.tensor(
        [0.0, -0.0, 1.0, -2.5, limit.max, limit.min, torch.inf, -torch.inf, limit.tiny, limit.eps]
    )
    for step in range(1, 50):
        (drawn,) = stochastic([exact.to(dtype)], [exact.clone()], step=step)
        assert torch.equal(drawn.float(), exact) and torch.equal(drawn.signbit(), exact.signbit())
    (drawn,) = stochastic([torch.tensor([torch.nan, 1.0], dtype=dtype)], [torch.tensor([1.0, torch.nan])])
    assert drawn.isnan().all()
    past = torch.full(
        (1000,), limit.max * (1 + limit.eps / 8)
    )  # nearer to the largest number than to the next
    (drawn,) = stochastic([torch.zeros(1000, dtype=dtype)], [past], 0.0)
    assert (drawn == limit.max).all()
    if dtype == FP16:
        (drawn,) = stochastic([torch.zeros(9, dtype=dtype)], [torch.full((9,), -65520.0)], 0.0)
        assert (drawn == -torch.inf).all()


@halves
def test_stochastic_bits_belong_to_elements(dtype):
    """The same for any number of threads and for a tensor in two parts; others for another seed, step or average."""
    torch.manual_seed(0)
    teacher, student = torch.randn(200_005).to(dtype), torch.randn(200_005)
    runs = for_threads(lambda: bits(stochastic([teacher], [student])))
    assert torch.equal(runs[0], runs[1]) and torch.equal(runs[0], runs[2])
    for cut in (8, 4096, 100_000):
        parts = stochastic([teacher[:cut], teacher[cut:]], [student[:cut], student[cut:]])
        assert torch.equal(bits(parts), runs[0])
    both = stochastic([teacher], [student], [0.9, 0.9])
    assert torch.equal(bits(both[:1]), runs[0])
    nearest = [teacher.clone()]
    native.ema_update(nearest, [student], 0.9)
    others = [
        both[1:],
        stochastic([teacher], [student], seed=1),
        stochastic([teacher], [student], step=2),
        nearest,
    ]
    for other in others:
        assert 0.1 < (bits(other) != runs[0]).double().mean() < 0.6


@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_gaps_and_half_complex_under_stochastic_rounding():
    torch.manual_seed(0)
    whole, source = torch.randn(6, 40).to(BF16), torch.randn(6, 40)
    ours, theirs = (stochastic([whole[:, :13]], [source[:, :13]], backend=b)[0] for b in (native, reference))
    assert torch.equal(ours, theirs)
    teacher = torch.randn(100, dtype=torch.complex64).to(torch.complex32)
    student = torch.randn(100, dtype=torch.complex64)
    ours, theirs = (stochastic([teacher], [student], backend=b)[0] for b in (native, reference))
    assert torch.equal(torch.view_as_real(ours), torch.view_as_real(theirs))
    assert not torch.equal(torch.view_as_real(ours), torch.view_as_real(teacher))


# ---- low-order parts


@pytest.mark.parametrize("student_dtype", [torch.float32, BF16, FP16])
@pytest.mark.parametrize("decay", [0.999, 0.5, 0.1])
def test_bfloat16_with_its_low_part_is_a_float32(student_dtype, decay):
    """Bit for bit the float32 average, over 50 steps; the bf16 part is that rounded to nearest, ties away from zero."""
    torch.manual_seed(0)
    high, low, wide = (torch.zeros(3000, dtype=dtype) for dtype in (BF16, torch.int16, torch.float32))
    for _ in range(50):
        student = (torch.randn(3000) * torch.randn(3000).exp()).to(student_dtype)
        mtkernels.ema_update([high], [student], decay, low=[low])
        mtkernels.ema_update([wide], [student], decay)
        assert torch.equal(reference.join(high, low).view(torch.int32), wide.view(torch.int32))
        ties = (wide.view(torch.int32) & 0xFFFF) == 0x8000
        assert torch.equal(high[~ties], wide.bfloat16()[~ties])


def test_float16_with_its_low_part_has_22_bits():
    torch.manual_seed(0)
    high, low = torch.zeros(3000, dtype=FP16), torch.zeros(3000, dtype=torch.int16)
    for _ in range(3):
        student = torch.randn(3000)
        wide = reference.join(high, low)
        native.ema_update([wide], [student], 0.9)
        mtkernels.ema_update([high], [student], 0.9, low=[low])
        joined = reference.join(high, low)
        assert ((joined - wide).abs() <= 2.0**-22 * wide.abs() + 2.0**-36).all()
        assert torch.equal(high, wide.half())


@halves
def test_low_parts_of_special_values(dtype):
    limit = torch.finfo(dtype)
    values = torch.tensor([torch.inf, -torch.inf, torch.nan, limit.max, 1e-8, -0.0, 3.3e38])
    for backend in (native, reference):
        high, low = torch.ones(7, dtype=dtype), torch.full((7,), 99, dtype=torch.int16)
        backend.ema_update([high], [values], 0.0, 0, None, EmaOptions(low=[low]))
        assert high[:3].nan_to_num(7, 8, 9).tolist() == [8, 9, 7] and not low[:3].any()
        joined = reference.join(high, low)
        assert (joined[3], joined[5]) == (limit.max, 0)
        assert abs(joined[4] - 1e-8) <= 2.0**-36
        assert joined[6] == (values[6] if dtype == BF16 else torch.inf)


# ---- drift


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, BF16, FP16, torch.complex64])
def test_drift_is_the_norm_and_has_the_same_bits_for_any_number_of_threads(dtype):
    torch.manual_seed(0)
    student = [torch.randn(shape).to(dtype) for shape in ((300_001,), (0,), (), (17, 33))]
    counter, start = torch.tensor(3), [torch.randn(s.shape).to(dtype) for s in student]

    def run():
        teacher = [t.clone() for t in (*start, *start)] + [counter.clone() for _ in "ab"]
        teacher = [*teacher[:4], teacher[8], *teacher[4:8], teacher[9]]
        drift = torch.zeros(2, dtype=torch.float64)
        native.ema_update(teacher, [*student, counter], [0.9, 0.2], 0, None, EmaOptions(drift=drift))
        return drift, teacher

    runs = for_threads(run)
    drift, teacher = runs[0]
    wide = torch.complex128 if dtype.is_complex else torch.float64
    for k in (0, 1):
        pairs = zip(teacher[5 * k :][:4], student, strict=False)
        exact = sum((t.to(wide) - s.to(wide)).abs().square().sum() for t, s in pairs).sqrt()
        torch.testing.assert_close(drift[k], exact, rtol=1e-6, atol=0)  # sums of 256 squares in float32
    assert all(torch.equal(drift, other) for other, _ in runs[1:])


def test_drift_counts_a_tied_weight_once_and_no_copies():
    teacher, student, other = torch.zeros(9), torch.ones(9), torch.zeros(9)
    for backend in (native, reference):
        drift = torch.zeros((), dtype=torch.float64)
        lists = [teacher.zero_(), teacher, other.zero_()], [student, student, student]
        backend.ema_update(*lists, 0.5, 1, None, EmaOptions(drift=drift))
        assert drift == 1.5


# ---- when it moves


@pytest.mark.parametrize("flag", [1.0, torch.nan, torch.inf, -1.0])
def test_found_inf_leaves_all_as_it_is(flag):
    teacher, drift, step = [torch.zeros(5), torch.tensor(3)], torch.tensor([7.0]).double(), torch.tensor(4)
    options = EmaOptions(step=step, found_inf=torch.tensor([flag]), drift=drift, advance=True)
    for backend in (native, reference):
        backend.ema_update(teacher, [torch.ones(5), torch.tensor(9)], 0.5, 0, None, options)
        assert not teacher[0].any() and teacher[1] == 3 and drift == 7 and step == 4


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, BF16, FP16, torch.complex64])
def test_skip_nonfinite(bad, dtype):
    teacher, student, flag = [torch.zeros(3, 4)], [torch.ones(3, 8, dtype=dtype)[:, :4]], torch.zeros(())
    teacher = [torch.zeros(3, 8, dtype=dtype)[:, :4]]
    student[0][1, 2] = bad
    mtkernels.ema_update(teacher, student, 0.5, skip_nonfinite=True, found_inf=flag)
    assert not teacher[0].any() and flag == 0
    student[0][1, 2] = 1
    mtkernels.ema_update(teacher, student, 0.5, skip_nonfinite=True, found_inf=flag + 1)
    assert not teacher[0].any()
    mtkernels.ema_update(teacher, student, 0.5, skip_nonfinite=True, found_inf=flag)
    assert (teacher[0] == 0.5).all()


def test_every_start_and_advance():
    """Copies up to start, then every second one with t from 1 on; the step in memory counts all."""
    for backend in (native, reference):
        step, teacher, seen = torch.tensor(0), [torch.zeros(1)], []
        options = EmaOptions(step=step, every=2, start=3, advance=True)
        for number in range(1, 9):
            backend.ema_update(
                teacher, [torch.tensor([float(number)])], schedules.running_mean(1.0), 0, None, options
            )
            seen.append(round(teacher[0].item(), 4))
        at_4 = 2 + (4 - 2) * 1 / 2
        at_6 = at_4 + (6 - at_4) / 4
        at_8 = at_6 + (8 - at_6) / 6
        assert seen == [round(x, 4) for x in (0, 2, 2, at_4, at_4, at_6, at_6, at_8)]
        assert step == 8


def test_a_schedule_by_number_and_by_tensor_has_the_same_bits():
    student = torch.randn(100)
    for schedule in (schedules.running_mean(0.9), schedules.inverse_gamma(), schedules.power_function(0.1)):
        for number in (1, 2, 1000):
            results = []
            for step, decay in (
                (number, schedule),
                (torch.tensor([number]), schedule),
                (None, schedule(number)),
            ):
                teacher = [torch.zeros(100)]
                mtkernels.ema_update(teacher, [student], decay, step=step)
                results.append(teacher[0])
            assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


# ---- which tensors


def test_include_and_exclude():
    teacher, student = {"a.w": 0, "a.b": 0, "head.w": 0}, {"a.w": 1, "a.b": 1, "head.w": 1}
    for options, moved in (
        ({"include": "a.*"}, "a.w a.b"),
        ({"exclude": ["*.b", "head.*"]}, "a.w"),
        ({"include": ["*.w"], "exclude": lambda name: name.startswith("head")}, "a.w"),
    ):
        sides = [{name: torch.tensor(float(x)) for name, x in side.items()} for side in (teacher, student)]
        mtkernels.ema_update(*sides, 0.5, **options)
        assert {name for name, x in sides[0].items() if x} == set(moved.split())


@pytest.mark.parametrize("wrapped", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize("wrap_student", [False, True])
def test_several_averages_of_data_parallel_models(wrapped, wrap_student):
    student = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    teachers = [copy.deepcopy(student).requires_grad_(False) for _ in range(2)]
    for tensor in student.parameters():
        tensor.data.add_(1)
    expected = [copy.deepcopy(t) for t in teachers]
    for one, decay in zip(expected, (0.9, 0.5), strict=True):
        mtkernels.ema_update(one, student, decay)
    given = [nn.DataParallel(t) if k in wrapped else t for k, t in enumerate(teachers)]
    mtkernels.ema_update(given, nn.DataParallel(student) if wrap_student else student, [0.9, 0.5])
    for ours, theirs in zip(teachers, expected, strict=True):
        for name, tensor in theirs.state_dict().items():
            assert torch.equal(ours.state_dict()[name], tensor)


def test_a_plan_follows_tensors_that_move():
    teacher, student = nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 2)
    plan = _C.EmaPlan(list(teacher.parameters()), list(student.parameters()))
    for shape in ((2, 2), (3, 2), (2, 2, 1, 1, 1, 1, 1)):
        teacher.weight.data, student.weight.data = torch.zeros(shape), torch.ones(shape)
        plan.update(0.5)
        assert torch.equal(teacher.weight, torch.full(shape, 0.5))
    student.weight.data = torch.ones(5)
    with pytest.raises(ValueError, match=r"teacher\[0\] must have the shape of its student \[5\]"):
        plan.update(0.5)
    student.weight.data = torch.zeros(shape)
    plan.update(0.5)
    assert torch.equal(teacher.weight, torch.full(shape, 0.25))
