"""Every op on every backend that this machine runs, against the reference: dtypes, shapes, layouts, values."""

import importlib.util
import os

import pytest
import sanitize_gpu
import torch
from gpu_helpers import captured, devices, same
from gpu_helpers import launched as _launched

import mtkernels
from mtkernels.backends import WITHOUT_CUDA, native, reference
from mtkernels.testing import FLOATS, OPS, OTHERS, check, random_lists, refuses

HAS_TRITON = importlib.util.find_spec("triton") is not None


def _backend(name):
    if name != "triton":
        return {"native": native, "reference": reference}[name]
    from mtkernels.backends import triton

    return triton


TARGETS = [pytest.param("native", "cpu", id="native-cpu")]
TARGETS += [
    pytest.param(
        name,
        "cuda",
        id=f"{name}-cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not present, reason=f"no CUDA kernels in the {name} backend here"),
        ],
    )
    for name, present in (("native", native.HAS_CUDA), ("triton", HAS_TRITON))
]
targets = pytest.mark.parametrize(("backend", "device"), TARGETS)
# test_triton.py holds it against the reference.
INTERPRETED = pytest.param(
    "triton",
    "cpu",
    id="triton-interpreted",
    marks=pytest.mark.skipif(
        not HAS_TRITON or os.environ.get("TRITON_INTERPRET") != "1", reason="Triton is not interpreted here"
    ),
)
dtypes = pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: str(dtype).removeprefix("torch."))
LOSSES = [op for op in OPS.values() if op.name.startswith("softmax_") or op.name == "logit_mse"]
losses = pytest.mark.parametrize("op", LOSSES, ids=lambda op: op.name)


# On a GPU Triton compiles for each case, in seconds. What the interpreter has run is left out there where it makes the
# same program again: a width between two others, a layout or pair of dtypes of a loss whose loads are another's.
ONCE_MORE = ("one class", "tile edge", "row edge", "vector", "scalar", "one")
LOADS = ("softmax_kl", "logit_mse")
PAIRS = ("softmax_mse", "logit_mse", "mean_teacher_loss", "ema_update", "temporal_ensemble_")


def _needs_kernel(op, backend, device, repeats=False):
    if backend == "native" and device == "cuda" and op.name in WITHOUT_CUDA:
        pytest.skip("no CUDA kernel for this op: Triton's runs")
    if backend == "triton" and device == "cuda" and repeats:
        pytest.skip("the program of another case, and the interpreter has run this one")


def _rows():  # op and shapes of each case, and its number
    for op in OPS.values():
        for at, (case, shapes) in enumerate(op.cases.items()):
            yield pytest.param(op, shapes, at, case in ONCE_MORE, id=f"{op.name}-{case.replace(' ', '_')}")


def _options(op, case, dtype, backend):
    """Which of an op's. Every option meets every dtype in some case: of each three, one in a case, and the next in the
    next; of each six on Triton, which compiles for each. All of them in fp32 in every second case."""
    every = 6 if backend == "triton" else 3
    if op.name == "augment":  # whose many options and dtypes have little to do with each other
        return op.options[case % every :: every]
    if dtype is torch.float32 and backend != "triton" and case % 2 == 0:
        every = 1
    if op.name in OTHERS:
        return op.options[::every]
    return op.options[(FLOATS.index(dtype) + case) % min(every, len(op.options)) :: every]


@targets
@dtypes
@pytest.mark.parametrize(("op", "shapes", "case", "once_more"), list(_rows()))
def test_op_equals_reference(op, shapes, case, once_more, dtype, backend, device):
    _needs_kernel(op, backend, device, once_more)
    if op.name == "augment" and dtype is torch.float64:
        return  # which no view is
    large = max(torch.Size(shape).numel() for shape in shapes) > 100_000
    if large and op.name != "ema_update" and dtype in (torch.float64, torch.float16):
        return  # the path is float32's and bfloat16's
    for at, options in enumerate(op.options[:1] if large else _options(op, case, dtype, backend)):
        if refuses(op, shapes, options):
            continue
        # The largest error of few numbers is luck: the first options are drawn often, those that leave out rows, and
        # fp64, whose yardstick is an estimate.
        often = at == 0 or "threshold" in options or dtype is torch.float64
        draws = 64 if often and op.name != "augment" else 16
        least = 8 if large and op.name != "ema_update" else 2  # a few classes decide how exact a long row is
        make = lambda seed: op.make(shapes, dtype, device, seed)  # noqa: E731
        check(op, _backend(backend), make, draws=draws, least=least, **options)


@targets
@pytest.mark.parametrize("student_dtype", FLOATS)
@dtypes
@pytest.mark.parametrize("op", [op for op in OPS.values() if op.name != "augment"], ids=lambda op: op.name)
def test_mixed_dtypes(op, dtype, student_dtype, backend, device):
    _needs_kernel(op, backend, device, repeats=op.name not in PAIRS)

    def make(seed):
        first, second = op.make(
            ((5, 100), (5, 7))[: 2 if op.name in ("ema_update", "multi_tensor_dot") else 1],
            dtype,
            device,
            seed,
        )
        return first, [tensor.to(student_dtype) for tensor in second]

    check(op, _backend(backend), make, draws=16, **op.options[0])


LAYOUTS = {
    "transposed": lambda t: t.transpose(1, 2).contiguous().transpose(1, 2),
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "offset": lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view_as(t),
    "gaps": lambda t: torch.stack([t, t], -1)[..., 0],
    "expanded": lambda t: t[:1].expand_as(t),
}


@targets
@pytest.mark.parametrize("teacher_layout", LAYOUTS)
@pytest.mark.parametrize("student_layout", LAYOUTS)
@pytest.mark.parametrize("dim", [1, -1])
@losses
def test_layouts_of_logits(op, dim, student_layout, teacher_layout, backend, device):
    _needs_kernel(op, backend, device, repeats=op.name not in LOADS)

    def make(seed):
        (student,), (teacher,) = op.make(((3, 6, 5, 4),), torch.float32, device, seed)
        return [LAYOUTS[student_layout](student)], [LAYOUTS[teacher_layout](teacher)]

    check(op, _backend(backend), make, draws=8, dim=dim)


@targets
@losses
def test_many_strided_classes(op, backend, device):
    """Past the tiles of the CPU and the shared memory of a GPU, with the classes strided."""

    def make(seed):
        student, teacher = op.make(((5000, 3),), torch.float32, device, seed)
        return [student[0].t()], [teacher[0].t()]

    check(op, _backend(backend), make, dim=-1)


@targets
@pytest.mark.parametrize("layout", ["transposed", "channels_last", "offset"])
@dtypes
def test_layouts_of_weights(layout, dtype, backend, device):
    """The same strides on both sides, whatever they are."""
    op = OPS["ema_update"]

    def make(seed):
        return tuple(
            [LAYOUTS[layout](tensor) for tensor in tensors]
            for tensors in op.make(((3, 6, 5, 4), (2, 7, 3, 3)), dtype, device, seed)
        )

    check(op, _backend(backend), make)


@targets
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool, torch.int8])
def test_integers_and_bools_are_copied(dtype, backend, device):
    teacher = [torch.zeros(size, dtype=dtype, device=device) for size in (1, 3, 33, 5000)]
    student = [torch.randint(0, 2, tensor.shape, device=device).to(dtype) for tensor in teacher]
    _backend(backend).ema_update(teacher, student, 0.9)
    assert all(torch.equal(t, s) for t, s in zip(teacher, student, strict=True))


@targets
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_weights(dtype, backend, device):
    teacher, student = torch.randn(2, 100, dtype=dtype, device=device)
    expected = 0.9 * teacher + 0.1 * student
    _backend(backend).ema_update([teacher], [student], 0.9)
    torch.testing.assert_close(teacher, expected)


@targets
@losses
def test_the_same_bits_again(op, backend, device):
    (student,), (teacher,) = op.make(((513, 200),), torch.float32, device)
    outputs = [op.call(_backend(backend), ([student], [teacher])) for _ in range(3)]
    assert all(
        torch.equal(ours, first)
        for later in outputs[1:]
        for ours, first in zip(later, outputs[0], strict=True)
    )


@losses
def test_the_same_bits_for_any_number_of_threads(op):
    inputs = op.make(((513, 200),), torch.float32)
    before, outputs = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            outputs.append(op.call(native, inputs))
    finally:
        torch.set_num_threads(before)
    for later in outputs[1:]:
        assert all(torch.equal(ours, first) for ours, first in zip(later, outputs[0], strict=True))


@targets
def test_decay_may_be_a_tensor(backend, device):
    for dtype in (torch.float32, torch.float64):
        for place in {"cpu", device}:
            teacher, student = random_lists(((1000,), (3, 3)), torch.float32, device)
            expected = [t.clone() for t in teacher]
            reference.ema_update(expected, student, float(torch.tensor(0.99, dtype=dtype)))
            _backend(backend).ema_update(teacher, student, torch.tensor(0.99, dtype=dtype, device=place))
            for ours, theirs in zip(teacher, expected, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


@targets
def test_an_average_of_a_constant_stays(backend, device):
    for decay in (0.999, 0.5, 0.1):
        teacher = [torch.full((1000,), 0.1, device=device)]
        student = [teacher[0].clone()]
        for _ in range(10):
            _backend(backend).ema_update(teacher, student, decay)
        assert torch.equal(teacher[0], student[0])


@targets
@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9, 1.0])
def test_infinite_weights(decay, backend, device):
    """A causal mask that both sides hold as a buffer stays; decay 0 and 1 give one side, whatever the other is."""
    mask = torch.full((40, 40), -torch.inf, device=device).triu(1)
    sides = torch.tensor([torch.inf, torch.nan, 1.0], device=device)
    teacher = [mask.clone(), sides.clone(), sides.flip(0).contiguous()]
    student = [mask.clone(), sides.flip(0).contiguous(), sides.clone()]
    expected = [tensor.clone() for tensor in teacher]
    reference.ema_update(expected, student, decay)
    _backend(backend).ema_update(teacher, student, decay)
    assert torch.equal(teacher[0], mask)
    for ours, theirs in zip(teacher, expected, strict=True):
        assert torch.equal(ours.nan_to_num(7.0, 8.0, 9.0), theirs.nan_to_num(7.0, 8.0, 9.0))
    if decay in (0.0, 1.0):
        kept = sides if decay else sides.flip(0)
        assert torch.equal(teacher[1].nan_to_num(7.0), kept.nan_to_num(7.0))


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_a_pair_listed_twice_counts_once(backend):
    teacher, student = torch.zeros(9), torch.ones(9)
    _backend(backend).ema_update([teacher, teacher], [student, student], 0.75)
    assert torch.equal(teacher, torch.full((9,), 0.25))


@targets
@dtypes
def test_scale(dtype, backend, device):
    factor_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    for size in (0, 1, 7, 5000, 100_001):
        data = torch.randn(size + 1, device=device).to(dtype)[1:]
        for value in (1.0, 0.3):
            scaled, factor = data.clone(), torch.tensor(value, dtype=factor_dtype, device=device)
            _backend(backend).scale_(scaled, factor)
            expected = (data.double() * factor.double()).to(dtype)
            torch.testing.assert_close(scaled, expected)


# ---- on a GPU; on a CPU the same, smaller: gpu_helpers.py


@devices
@losses
def test_losses_replay_in_a_cuda_graph(op, device):
    (student,), (teacher,) = op.make(((64, 1000),), torch.float32, device)
    student.requires_grad_()
    function = getattr(mtkernels, op.name)

    def call():
        loss = function(student, teacher)
        return loss, *torch.autograd.grad(3 * loss, student)

    outputs, replay = captured(call, device)
    before = outputs[0].item()
    teacher.copy_(torch.randn_like(teacher))
    replay()
    assert same(outputs, call()) and outputs[0] != before


@targets
def test_ema_update_replays_in_a_cuda_graph_with_a_live_decay(backend, device):
    teacher, student = random_lists(((1000,), (64, 3, 3, 3), ()), torch.float32, device)
    decay = torch.tensor(0.5, device=device)

    def call():
        _backend(backend).ema_update(teacher, student, decay)
        return ()

    # Triton's table cannot be uploaded in a capture. Native: the first call for these tensors is the captured one.
    _, replay = captured(call, device, first=backend == "triton")
    for value in (0.9, 0.1):
        decay.fill_(value)
        expected = [t.clone() for t in teacher]
        _backend(backend).ema_update(expected, student, decay)
        replay()
        assert same(teacher, expected)


@pytest.mark.parametrize(("backend", "device"), [*TARGETS, INTERPRETED])
def test_one_launch_and_no_sync(backend, device):
    """Whatever the number of tensors; a loss and its gradient likewise."""
    many, shape = (((1000,),) * 300 + ((),) * 20 + ((512, 512, 3, 3),), (64, 1000))
    if device == "cpu":
        many, shape = (((10,),) * 3 + ((),) * 2, (8, 10))
    teacher, student = random_lists(many, torch.float32, device)
    (logits,), (targets,) = OPS["softmax_mse"].make((shape,), torch.float32, device)
    labels = torch.arange(len(logits), device=device) % shape[1] - 1

    calls = {
        "ema_update": lambda: _backend(backend).ema_update(teacher, student, 0.99),
        **{
            op.name: lambda op=op: getattr(_backend(backend), op.name)(logits, targets, -1, "mean", 3)
            for op in LOSSES
        },
        "mean_teacher_loss": lambda: _backend(backend).mean_teacher_loss(
            logits, targets, labels, targets, -1, 1.0, 0.0, False, False, -1, True
        ),
    }
    for name, call in calls.items():
        on_device = _launched(call, device)
        assert len(on_device) == 1, (name, on_device)


def test_what_the_sanitizer_runs():
    sanitize_gpu.main("cpu")
