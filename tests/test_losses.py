"""What the losses' options mean, said once more in torch's own words; vmap, autocast, sizes past 2^31."""

import numpy
import pytest
import torch
import torch.nn.functional as F
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch.utils._python_dispatch import TorchDispatchMode

import mtkernels
from mtkernels.backends import native

SOFTMAX = ("softmax_mse", "softmax_kl", "softmax_reverse_kl", "softmax_js", "softmax_cross_entropy")
softmax = pytest.mark.parametrize("name", SOFTMAX)
family = pytest.mark.parametrize("name", (*SOFTMAX, "logit_mse"))


def logits(*shape, dtype=torch.float64):
    torch.manual_seed(0)
    return 2 * torch.randn(shape, dtype=dtype), 2 * torch.randn(shape, dtype=dtype)


def call(name, *args, **options):
    return getattr(mtkernels, name)(*args, **options)


@softmax
def test_temperatures_and_center_are_what_they_are_on_the_logits(name):
    student, teacher = logits(7, 12)
    center = torch.randn(12)
    expected = call(name, student / 0.5, (teacher - center) / 2.0)
    loss = call(name, student, teacher, student_temperature=0.5, teacher_temperature=2.0, center=center)
    torch.testing.assert_close(loss, expected)


@softmax
def test_sharpening_is_a_teachers_temperature(name):
    student, teacher = logits(7, 12)
    sharp = teacher.softmax(-1) ** 4
    sharp = (sharp / sharp.sum(-1, keepdim=True)).log()
    torch.testing.assert_close(
        call(name, student, teacher, teacher_temperature=0.25), call(name, student, sharp)
    )


@family
@pytest.mark.parametrize("classes", [5, 100])
def test_weights_count_rows(name, classes):
    student, teacher = logits(3, 4, classes)
    rows = call(name, student, teacher, reduction="none")
    weight = torch.rand(3, 4)
    weight[1, 2] = 0
    torch.testing.assert_close(call(name, student, teacher, weight=weight), (weight * rows).mean())
    torch.testing.assert_close(
        call(name, student, teacher, weight=weight, reduction="sum"), (weight * rows).sum()
    )
    student[1, 2], teacher[1, 2] = torch.nan, torch.inf  # weight 0: whatever it holds
    student.requires_grad_()
    loss = call(name, student, teacher, weight=weight)
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.isfinite() and gradient.isfinite().all() and not gradient[1, 2].any()


@softmax
@pytest.mark.parametrize("live", [False, True])
def test_threshold_leaves_out_uncertain_rows_and_tells_how_many_it_keeps(name, live):
    student, teacher = logits(64, 10)
    student.requires_grad_()
    confidence = (teacher / 0.7).softmax(-1).amax(-1)
    kept = confidence >= 0.6
    assert 10 < kept.sum() < 54
    options = {"teacher_temperature": 0.7, "threshold": torch.tensor(0.6) if live else 0.6}
    loss, utilization = call(name, student, teacher, return_utilization=True, **options)
    rows = call(name, student, teacher, teacher_temperature=0.7, reduction="none")
    torch.testing.assert_close(loss, (rows * kept).mean())
    assert utilization == kept.double().mean()
    (gradient,) = torch.autograd.grad(loss, student)
    assert torch.equal(gradient.any(-1), kept)
    assert torch.equal(call(name, student, teacher, **options), loss)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("classes", [10, 100])
def test_hard_labels_and_smoothing_equal_torchs_cross_entropy(smoothing, classes):
    student, teacher = logits(33, classes)
    student.requires_grad_()
    expected = F.cross_entropy(student, teacher.argmax(-1), label_smoothing=smoothing)
    loss = mtkernels.softmax_cross_entropy(student, teacher, hard=True, label_smoothing=smoothing)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, student), torch.autograd.grad(expected, student))
    soft = F.cross_entropy(student, teacher.softmax(-1), label_smoothing=smoothing)
    torch.testing.assert_close(
        mtkernels.softmax_cross_entropy(student, teacher, label_smoothing=smoothing), soft
    )


def test_the_first_of_equal_classes_is_the_hard_label():
    student = torch.randn(3, 40)
    loss = mtkernels.softmax_cross_entropy(student, torch.zeros(3, 40), hard=True, reduction="none")
    torch.testing.assert_close(
        loss, F.cross_entropy(student, torch.zeros(3, dtype=torch.long), reduction="none")
    )


@family
@pytest.mark.parametrize("dim", [1, -1])
def test_gradcheck_of_both_sides(name, dim):
    student, teacher = (side.requires_grad_() for side in logits(3, 4, 5))
    options = {"weight": torch.rand((3, 5) if dim == 1 else (3, 4)), "dim": dim}
    if name in SOFTMAX:
        options |= {"student_temperature": 0.7, "teacher_temperature": 1.5}
        options["center"] = torch.randn(4 if dim == 1 else 5)
    if name == "softmax_cross_entropy":
        options["label_smoothing"] = 0.2
    for reduction in ("mean", "none"):

        def loss(a, b, reduction=reduction):
            return call(name, a, b, two_sided=True, reduction=reduction, **options)

        assert torch.autograd.gradcheck(loss, (student, teacher))


@family
def test_two_sided_with_one_side_that_learns(name):
    student, teacher = logits(6, 9)
    for first, second in ((True, False), (False, True)):
        sides = student.clone().requires_grad_(first), teacher.clone().requires_grad_(second)
        call(name, *sides, two_sided=True).backward()
        assert (sides[0].grad is not None) == first and (sides[1].grad is not None) == second
    assert call(name, student, teacher, two_sided=True).grad_fn is None


@softmax
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_shifted_logits_change_nothing(name, dtype):
    """Sums of eighths, which float32 holds exactly, also when shifted: nothing but the shift is left to differ."""
    student, teacher = ((8 * side).round() / 8 for side in logits(5, 30, dtype=dtype))
    for reduction in ("mean", "none"):
        shifted = call(name, student + 1000, teacher - 500, reduction=reduction)
        assert torch.equal(shifted, call(name, student, teacher, reduction=reduction))


def test_logits_that_are_shifted_together_change_nothing():
    student, teacher = ((8 * side).round() / 8 for side in logits(5, 30, dtype=torch.float32))
    shifted = mtkernels.logit_mse(student + 1000, teacher + 1000)
    assert torch.equal(shifted, mtkernels.logit_mse(student, teacher))


@softmax
@pytest.mark.parametrize("kind", [int, numpy.int64, numpy.float32, numpy.float64])
def test_temperatures_are_numbers_of_any_kind(name, kind):
    student, teacher = logits(5, 30)
    for number in (1, 2):
        options = {"student_temperature": number, "teacher_temperature": number}
        given = {option: kind(value) for option, value in options.items()}
        floats = {option: float(value) for option, value in options.items()}
        assert torch.equal(call(name, student, teacher, **given), call(name, student, teacher, **floats))


@softmax
@pytest.mark.parametrize("temperature", [1e-30, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_last_temperatures_give_numbers(name, temperature, dtype):
    """A class that both sides mask stays out, whatever the temperature."""
    student, teacher = logits(4, 12, dtype=dtype)
    student[:, 3] = teacher[:, 3] = -torch.inf
    student.requires_grad_()
    options = {"student_temperature": temperature, "teacher_temperature": temperature}
    loss = call(name, student, teacher, **options)
    (gradient,) = torch.autograd.grad(loss, student)
    assert not loss.isnan() and not gradient.isnan().any() and not gradient[:, 3].any()


@family
def test_vmap(name):
    student, teacher = logits(4, 6, 7)
    weight = torch.rand(6)

    def one(a, b):
        return call(name, a, b, weight=weight)

    expected = torch.stack([one(a, b) for a, b in zip(student, teacher, strict=True)])
    torch.testing.assert_close(torch.vmap(one)(student, teacher), expected)
    torch.testing.assert_close(
        torch.vmap(one, in_dims=(1, None))(student.movedim(0, 1), teacher[0]),
        torch.stack([one(a, teacher[0]) for a in student]),
    )
    gradients = torch.vmap(torch.func.grad(one))(student, teacher)
    torch.testing.assert_close(
        gradients, torch.stack([torch.func.grad(one)(a, b) for a, b in zip(student, teacher, strict=True)])
    )


@family
def test_vmap_computes_a_gradient_where_one_is_asked_for(name):
    student, teacher = logits(4, 6, 7)

    def gradients_wanted(function, *arguments):
        with Seen(name) as seen:
            function(*arguments)
        return seen.gradients

    def one(a, b):
        return call(name, a, b, two_sided=False)

    learning = student.clone().requires_grad_()
    mapped = torch.vmap(one)
    assert gradients_wanted(mapped, student, teacher) == [0]
    assert gradients_wanted(mapped, learning, teacher) == [1]
    with torch.no_grad():
        assert gradients_wanted(mapped, learning, teacher) == [0]
    assert gradients_wanted(torch.vmap(torch.func.grad(one)), student, teacher) == [1]
    assert gradients_wanted(torch.func.grad(lambda a: mapped(a, teacher).sum()), student) == [1]
    (gradient,) = torch.autograd.grad(mapped(learning, teacher).sum(), learning)
    torch.testing.assert_close(gradient, torch.func.grad(lambda a: mapped(a, teacher).sum())(student))
    with pytest.raises(ValueError, match="teacher must not require grad"):
        torch.func.grad(lambda b: mapped(student, b).sum())(teacher)


class Seen(TorchDispatchMode):
    """The `gradients` of each call of a registered op."""

    def __init__(self, name):
        super().__init__()
        self.op, self.gradients = getattr(torch.ops.mtkernels, name).default, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is self.op:
            self.gradients.append(args[4])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["softmax_mse", "logit_mse"])  # what is tested is common to all, and slow
@pytest.mark.filterwarnings("error:There is a performance drop")
def test_vmap_compiles_to_one_launch(name):
    student, teacher = logits(4, 6, 7)
    student.requires_grad_()
    torch._dynamo.reset()
    mapped = torch.vmap(lambda a, b: call(name, a, b, two_sided=False))
    graphs = []

    def backend(graph, inputs):
        def record(graph, inputs):
            graphs.append([str(node.target) for node in graph.graph.nodes])
            return make_boxed_func(graph)

        return aot_autograd(fw_compiler=record)(graph, inputs)

    compiled = torch.compile(mapped, fullgraph=True, backend=backend)
    found, expected = compiled(student, teacher), mapped(student, teacher)
    torch.testing.assert_close(found, expected)
    (gradient,), (expected,) = (torch.autograd.grad(loss.sum(), student) for loss in (found, expected))
    torch.testing.assert_close(gradient, expected)
    assert sum(target.startswith("mtkernels.") for target in graphs[0]) == 1


@family
def test_autocast_keeps_the_precision_of_the_accumulator(name):
    """Half logits come out of an autocast network: the loss is taken in float32, with no cast of them."""
    student, teacher = (side.bfloat16() for side in logits(6, 9))
    with torch.autocast("cpu", torch.bfloat16):
        loss = call(name, student.requires_grad_(), teacher)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, call(name, student, teacher))


def test_the_peak_of_memory_is_the_gradient():
    """Nothing of the logits' size is allocated but the gradient that is returned."""
    student, teacher = logits(64, 4096, dtype=torch.float32)
    student.requires_grad_()
    for name in SOFTMAX:
        with torch.profiler.profile(
            profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]
        ) as profile:
            call(name, student, teacher).backward()
        allocated = sum(max(event.self_cpu_memory_usage, 0) for event in profile.key_averages())
        assert allocated < 1.1 * student.nbytes, name


def test_rows_past_two_to_the_31_elements():
    """Memory that is never touched costs nothing: two rows, more than 2^31 elements apart."""
    torch.use_deterministic_algorithms(False)
    apart = (1 << 31) + 100
    storage = torch.empty(apart + 64, dtype=torch.bfloat16)
    far = storage.as_strided((2, 40), (apart, 1))
    near, teacher = (side.bfloat16() for side in logits(2, 40))
    far.copy_(near)
    for name in (*SOFTMAX, "logit_mse"):
        loss, gradient, *_ = getattr(native, name)(far, teacher, -1, "none", 1)
        expected, close, *_ = getattr(native, name)(near, teacher, -1, "none", 1)
        assert torch.equal(loss, expected) and torch.equal(gradient, close)


def test_more_than_two_to_the_31_elements():
    """Expanded rows: one in memory, 70,000 times."""
    student, teacher = logits(1, 32768, dtype=torch.bfloat16)
    rows = 70_000
    loss = native.logit_mse(student.expand(rows, -1), teacher.expand(rows, -1), -1, "mean", 0)[0]
    torch.testing.assert_close(loss, native.logit_mse(student, teacher, -1, "mean", 0)[0])
