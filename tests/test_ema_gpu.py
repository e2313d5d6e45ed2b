"""The options of ema_update, swap_ and nonfinite_ on a GPU, against the reference on copies in host memory."""

import pytest
import torch
from test_ops import TARGETS, _backend, _launched

from mtkernels import _C, schedules
from mtkernels.backends import reference
from mtkernels.ops.ema import EmaOptions
from mtkernels.testing import FLOATS, random_lists

gpu_targets = pytest.mark.parametrize(("backend", "device"), TARGETS[1:])
BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
SIZES = (1, 1000, 40_000, 4099)
SCHEDULES = [
    schedules.running_mean(0.99),
    schedules.ratio(0.9999),
    schedules.inverse_gamma(),
    schedules.switched(0.75, 0.5, at=3),
    schedules.cosine(0.99, steps=50),
    schedules.half_life(40, rampup=0.05),
    schedules.power_function(0.1),
    schedules.debiased(0.99),
]


def _at(values, offset, device):
    """The same on the device, `offset` elements past an aligned address."""
    place = values.new_zeros(offset + values.numel()).to(device)[offset:]
    return place.copy_(values)


def _weights(dtype, student_dtype, averages=1, seed=0):
    """Teachers and students for host memory; averages by 3/4 and by 1/2 of them are exact in fp32 for some steps."""
    generator = torch.Generator().manual_seed(seed)

    def values(dtype):
        return [(torch.randint(-127, 128, (size,), generator=generator) / 64).to(dtype) for size in SIZES]

    integers = [torch.arange(77)]
    teachers = [tensor for _ in range(averages) for tensor in [*values(dtype), -integers[0]]]
    return teachers, values(student_dtype) + integers


def _lows(teachers):
    """A low-order part for the first and the third 16-bit teacher of each average."""
    pairs = len(SIZES) + 1
    wanted = [i % pairs in (0, 2) and t.dtype in (BF16, F16) for i, t in enumerate(teachers)]
    return [
        torch.zeros_like(t, dtype=torch.int16) if w else None for t, w in zip(teachers, wanted, strict=True)
    ]


def _copies(tensors, device, offsets=(0,)):
    return [
        t if t is None else _at(t, offsets[i % len(offsets)], device) if t.dim() else t.to(device).clone()
        for i, t in enumerate(tensors)
    ]


def _same_bits(ours, expected):
    """By one transfer for each dtype: processes that share a GPU wait for each other at each."""
    assert [t is None for t in ours] == [t is None for t in expected]
    for dtype in {t.dtype for t in expected if t is not None}:
        both = (
            [t.flatten() for t in side if t is not None and t.dtype == dtype] for side in (ours, expected)
        )
        at_hand, wanted = (torch.cat(side).cpu() for side in both)
        assert torch.equal(at_hand, wanted)


@gpu_targets
@pytest.mark.parametrize(
    ("averages", "offsets"), [(1, (0,)), (3, (0, 1, 3))], ids=["one-aligned", "three-offset"]
)
@pytest.mark.parametrize("rounding", ["nearest", "stochastic", "low", "low_and_stochastic"])
@pytest.mark.parametrize(
    ("dtype", "student_dtype"), [(F32, F32), (BF16, BF16), (F16, F32), (BF16, F64), (F64, F16), (F16, F16)]
)
def test_options_of_ema_update(dtype, student_dtype, averages, rounding, offsets, backend, device):
    """Schedules, live decays, every, start, found_inf, drift; by lists and by a bound plan; the last pairs copied."""
    teachers, students = _weights(dtype, student_dtype, averages)
    lows = _lows(teachers) if rounding.startswith("low") else [None] * len(teachers)
    host, ours = (
        [_copies(teachers, place, offset), _copies(students, place), _copies(lows, place)]
        for place, offset in (("cpu", (0,)), (device, offsets))
    )

    def call(place, tensors):
        decay = [schedules.switched(0.75, 0.5, at=3), torch.tensor(0.75, device=place), 0.25][:averages]
        options = EmaOptions(
            step=torch.tensor(1, device=place),
            low=tensors[2],
            stochastic="stochastic" in rounding,
            seed=5 << 40 | 3,
            found_inf=torch.zeros((), device=place),
            drift=torch.zeros(averages, dtype=F64, device=place),
            every=2,
            start=1,
            advance=True,
        )
        return decay if averages > 1 else decay[0], options

    (decay, options), (host_decay, host_options) = call(device, ours), call("cpu", host)
    plan = _C.EmaPlan(ours[0], ours[1], averages, 2, None, ours[2])
    for launch in range(8):
        found = float(launch == 4)
        options.found_inf.fill_(found), host_options.found_inf.fill_(found)
        reference.ema_update(host[0], host[1], host_decay, 2, None, host_options)
        if launch % 3 == 0:
            _backend(backend).ema_update_plan(plan, decay, options)
        else:
            _backend(backend).ema_update(ours[0], ours[1], decay, 2, None, options)
        if launch not in (0, 3, 4, 7):
            continue
        for tensors, expected in zip(ours, host, strict=True):
            _same_bits(tensors, expected)
        assert options.step.item() == host_options.step.item()
        torch.testing.assert_close(options.drift.cpu(), host_options.drift, rtol=1e-6, atol=0)


@gpu_targets
@pytest.mark.parametrize("step", [1, 2, 7, 60, 5000])
def test_schedules_evaluated_by_the_kernel(step, backend, device):
    teachers = [torch.ones(3, dtype=F64, device=device) for _ in SCHEDULES]
    options = EmaOptions(step=torch.tensor(step, device=device))
    student = [torch.zeros(3, dtype=F64, device=device)]
    _backend(backend).ema_update(teachers, student, SCHEDULES, 0, None, options)
    expected = torch.tensor([schedule(step) for schedule in SCHEDULES], dtype=F64)
    torch.testing.assert_close(
        torch.stack(teachers).cpu(), expected[:, None].expand(-1, 3), rtol=1e-12, atol=1e-14
    )


@gpu_targets
def test_a_step_advances_where_there_is_nothing_to_average(backend, device):
    step, drift = torch.tensor(3, device=device), torch.ones(1, dtype=F64, device=device)
    options = EmaOptions(step=step, advance=True, drift=drift)
    _backend(backend).ema_update(
        [torch.zeros(0, device=device)], [torch.zeros(0, device=device)], 0.5, 0, None, options
    )
    assert step.item() == 4 and drift.item() == 0


@gpu_targets
@pytest.mark.parametrize("rounding", ["nearest", "stochastic", "low"])
def test_options_replay_in_a_cuda_graph(rounding, backend, device):
    """A live decay, step and found_inf: the same bits as outside of the graph."""
    teachers, students = _weights(BF16, F32, averages=2)
    lows = _lows(teachers) if rounding == "low" else [None] * len(teachers)
    live = torch.tensor(0.9, device=device)
    runs = []
    for _ in range(2):
        tensors = [_copies(list_, device) for list_ in (teachers, students, lows)]
        options = EmaOptions(
            step=torch.tensor(0, device=device),
            low=tensors[2],
            stochastic=rounding == "stochastic",
            found_inf=torch.zeros((), device=device),
            drift=torch.zeros(2, dtype=F64, device=device),
            advance=True,
        )
        runs.append((tensors, options))

    def call(run):
        (teacher, student, _), options = run
        _backend(backend).ema_update(teacher, student, [live, schedules.ratio(0.99)], 1, None, options)

    for run in runs:  # Triton's table cannot be uploaded in a capture
        call(run)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call(runs[0])
    for value, found in ((0.9, 0.0), (0.1, 1.0), (0.3, 0.0), (0.7, 0.0)):
        live.fill_(value)
        for _, options in runs:
            options.found_inf.fill_(found)
        graph.replay()
        call(runs[1])
        for ours, expected in zip(runs[0][0], runs[1][0], strict=True):
            _same_bits(ours, expected)
        _same_bits([runs[0][1].step, runs[0][1].drift], [runs[1][1].step, runs[1][1].drift])
    assert runs[0][1].step.item() == 4


@gpu_targets
@pytest.mark.parametrize("offsets", [(0,), (0, 1, 3)], ids=["aligned", "offset"])
def test_swap_and_nonfinite(offsets, backend, device):
    for dtype in (*FLOATS, torch.int64, torch.uint8, torch.bool):
        a, b = ([torch.randint(0, 2, (size,)).to(dtype) for size in SIZES] for _ in range(2))
        ours, theirs = _copies(a, device, offsets), _copies(b, device)
        _backend(backend).swap_(ours, theirs)
        _same_bits(ours + theirs, b + a)
        for value, index in ((0.0, 0), (torch.inf, 0), (torch.nan, 2), (-torch.inf, 3)):
            found = torch.zeros((), device=device)
            for tensor in ours:
                tensor.zero_()
            ours[index][-1] = value if dtype.is_floating_point else 1
            _backend(backend).nonfinite_(found, ours)
            assert found.item() == float(value != 0 and dtype.is_floating_point)


@gpu_targets
def test_one_launch_and_no_sync_with_options(backend, device):
    """However many tensors, averages and options."""
    teachers, students = random_lists(((1000,),) * 300 + ((),) * 20, BF16, device)
    teachers = [t.clone() for _ in range(3) for t in teachers]
    lows = [torch.zeros_like(t, dtype=torch.int16) for t in teachers]
    found = torch.zeros((), device=device)
    step = torch.tensor(1, device=device)
    drift = torch.zeros(3, dtype=F64, device=device)
    several = [schedules.ratio(0.99), torch.tensor(0.9, device=device), 0.5]

    def update(**options):
        _backend(backend).ema_update(teachers, students, several, 0, None, EmaOptions(**options))

    calls = {
        "several averages": lambda: update(step=step),
        "stochastic": lambda: update(step=step, stochastic=True, advance=True),
        "everything": lambda: update(
            step=step, low=lows, found_inf=found, drift=drift, every=2, advance=True
        ),
        "swap_": lambda: _backend(backend).swap_(teachers[:320], teachers[320:640]),
        "nonfinite_": lambda: _backend(backend).nonfinite_(found, students),
    }
    for name, call in calls.items():
        on_device = _launched(call)
        assert len(on_device) == 1, (name, on_device)
