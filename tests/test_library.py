"""The registered ops: opcheck, torch.compile, export, fake tensors, functorch; and that eager goes past them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import mtkernels


def _js(a, b):
    p, q = a.softmax(-1), b.softmax(-1)
    m = ((p + q) / 2).log()
    return (F.kl_div(m, p, reduction="batchmean") + F.kl_div(m, q, reduction="batchmean")) / 2


LOSSES = {
    "softmax_mse": lambda a, b: F.mse_loss(a.softmax(-1), b.softmax(-1)),
    "softmax_kl": lambda a, b: F.kl_div(a.log_softmax(-1), b.softmax(-1), reduction="batchmean"),
    "softmax_reverse_kl": lambda a, b: F.kl_div(b.log_softmax(-1), a.softmax(-1), reduction="batchmean"),
    "softmax_js": _js,
    "softmax_cross_entropy": lambda a, b: F.cross_entropy(a, b.softmax(-1)),
    "logit_mse": F.mse_loss,
}
losses = pytest.mark.parametrize("name", LOSSES)
two = pytest.mark.parametrize("name", list(LOSSES)[:2])  # where what is tested is common to all, and slow


def registered(student, teacher, dim=-1, reduction="mean", gradients=1, *, options=()):
    """The arguments of torch.ops.mtkernels.<loss>."""
    return (
        student,
        teacher,
        dim,
        reduction,
        gradients,
        *(options or (1.0, 1.0, None, None, None, None, False, 0.0)),
    )


def logits(rows=6, classes=11, *, requires_grad=True):
    torch.manual_seed(0)
    return torch.randn(rows, classes, requires_grad=requires_grad), torch.randn(rows, classes)


@losses
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_opcheck_of_losses(name, reduction):
    student, teacher = logits()
    op = getattr(torch.ops.mtkernels, name).default
    torch.library.opcheck(op, registered(student, teacher, -1, reduction))
    if reduction == "mean":
        torch.library.opcheck(op, registered(student.detach(), teacher, 0, "none", 0))
        options = (0.5, 2.0, torch.ones(11), torch.ones(6), 0.3, None, False, 0.0)
        if name == "logit_mse":  # which has a weight alone
            options = (1.0, 1.0, None, torch.ones(6), None, None, False, 0.0)
        torch.library.opcheck(op, registered(student, teacher.requires_grad_(), gradients=3, options=options))


@pytest.mark.parametrize("decay", [0.9, torch.tensor(0.9)], ids=["float", "tensor"])
def test_opcheck_of_ema_update(decay):
    teacher, student = [torch.randn(3, 4), torch.randn(5)], [torch.randn(3, 4), torch.randn(5)]
    op = torch.ops.mtkernels.ema_update
    op = op.tensor if isinstance(decay, torch.Tensor) else op.default
    torch.library.opcheck(op, (teacher, student, decay, 1))


@two
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_losses_compile_to_a_full_graph(name, reduction):
    function = getattr(mtkernels, name)
    student, teacher = logits()

    def step(student, teacher):
        return (3 * function(student * 2, teacher, reduction=reduction)).sum()

    compiled = torch.compile(step, fullgraph=True)
    (expected,) = torch.autograd.grad(step(student, teacher), student)
    (gradient,) = torch.autograd.grad(compiled(student, teacher), student)
    torch.testing.assert_close(gradient, expected)
    torch.testing.assert_close(compiled(student, teacher), step(student, teacher))


def test_ema_update_of_modules_compiles_to_a_full_graph():
    student = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    teachers = [nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).requires_grad_(False) for _ in range(2)]
    teachers[1].load_state_dict(teachers[0].state_dict())

    @torch.compile(fullgraph=True)
    def step(teacher, student):
        mtkernels.ema_update(teacher, student, 0.75)
        return teacher[0].weight * 2

    doubled = step(teachers[0], student)
    mtkernels.ema_update(teachers[1], student, 0.75)
    for ours, expected in zip(
        teachers[0].state_dict().values(), teachers[1].state_dict().values(), strict=True
    ):
        assert torch.equal(ours, expected)
    assert torch.equal(doubled, teachers[1][0].weight * 2)


@losses
def test_losses_export(name):
    class Loss(nn.Module):
        def forward(self, student, teacher):
            return getattr(mtkernels, name)(student, teacher)

    inputs = logits(requires_grad=False)
    exported = torch.export.export(Loss(), inputs)
    assert any(name in str(node.target) for node in exported.graph.nodes)
    torch.testing.assert_close(exported.module()(*inputs), Loss()(*inputs))


@losses
def test_fake_tensors_take_the_registered_op(name):
    with FakeTensorMode():
        student, teacher = torch.randn(5, 3, dtype=torch.bfloat16), torch.randn(5, 3)
        loss = getattr(mtkernels, name)(student, teacher, reduction="none")
        assert loss.shape == (5,) and loss.dtype == torch.float32
        mtkernels.ema_update([student], [student.clone()], 0.5)
    assert getattr(mtkernels, name)(student, teacher).shape == ()  # also outside their mode


@losses
def test_functorch_grad(name):
    student, teacher = logits()
    function = getattr(mtkernels, name)
    gradient = torch.func.grad(lambda s: function(s, teacher))(student.detach())
    (expected,) = torch.autograd.grad(function(student, teacher), student)
    torch.testing.assert_close(gradient, expected)


@losses
def test_eager_does_not_pay_for_the_registered_op(name):
    student, teacher = logits()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        getattr(mtkernels, name)(student, teacher).backward()
        mtkernels.ema_update([teacher], [student], 0.9)
    assert not [event.name for event in profile.events() if event.name.startswith("mtkernels::")]


@losses
def test_gradient_equals_torchs(name):
    student, teacher = logits(7, 19)
    (expected,) = torch.autograd.grad(3 * LOSSES[name](student, teacher), student)
    (gradient,) = torch.autograd.grad(3 * getattr(mtkernels, name)(student, teacher), student)
    torch.testing.assert_close(gradient, expected)


@losses
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_gradcheck(name, reduction, dim):
    torch.manual_seed(1)
    student = torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(4, 3, 5, dtype=torch.float64)
    function = getattr(mtkernels, name)
    assert torch.autograd.gradcheck(lambda s: function(s, teacher, dim=dim, reduction=reduction), student)


@losses
def test_a_retained_graph_gives_the_same_gradient_again(name):
    student, teacher = logits()
    loss = 7 * getattr(mtkernels, name)(student, teacher)
    (first,) = torch.autograd.grad(loss, student, retain_graph=True)
    (again,) = torch.autograd.grad(loss, student, retain_graph=True)
    (last,) = torch.autograd.grad(loss, student)
    assert torch.equal(first, again)
    torch.testing.assert_close(first, last)


@losses
def test_second_derivatives_are_refused(name):
    student, teacher = logits()
    with pytest.raises(
        NotImplementedError, match=f"{name}: its gradient has no derivative, got create_graph=True"
    ):
        torch.autograd.grad(getattr(mtkernels, name)(student, teacher), student, create_graph=True)
    with pytest.raises(
        NotImplementedError,
        match=f"{name}: torch.func transforms must not be nested but for vmap, got 2 levels",
    ):
        gradient = torch.func.grad(lambda s: getattr(mtkernels, name)(s, teacher))
        torch.func.grad(lambda s: gradient(s).sum())(student.detach())


@losses
def test_second_derivatives_are_refused_by_the_registered_op(name):
    student, teacher = logits()
    loss, *_ = getattr(torch.ops.mtkernels, name)(*registered(student * 2, teacher))
    with pytest.raises(NotImplementedError, match=f"{name}: its gradient has no derivative"):
        torch.autograd.grad(loss, student, create_graph=True)


LABELS, INDEX, FORWARD = torch.arange(6), torch.arange(6), torch.autograd.forward_ad
MEMORY = torch.zeros(6, 11)
FORWARD_CALLS = {
    **{
        name: (lambda s, t, name=name: getattr(mtkernels, name)(s, t, two_sided=False), "student")
        for name in LOSSES
    },
    "mean_teacher_loss": (lambda s, t: mtkernels.mean_teacher_loss(s, t, LABELS).total, "student"),
    "temporal_ensemble_": (
        lambda s, t: mtkernels.temporal_ensemble_(MEMORY, INDEX, s, updates=1),
        "student",
    ),
    "sharpen": (lambda s, t: mtkernels.sharpen(s, 0.5), "probs"),
    "augment": (lambda s, t: mtkernels.augment(s[None, None], None, torch.zeros(1, 1, 2, 3)), "images"),
}


def refusal_of_forward_mode(op, name):
    return f"{op}: {name} must have no tangent (forward mode is not supported: use reverse mode), got a dual number"


@pytest.mark.parametrize("op", FORWARD_CALLS)
@pytest.mark.parametrize("grad_mode", [False, True])
def test_forward_mode_is_refused(op, grad_mode):
    student, teacher = logits(requires_grad=False)
    call, name = FORWARD_CALLS[op]

    def one(s):
        return call(s, teacher)

    def dual(s):
        with FORWARD.dual_level():
            return one(FORWARD.make_dual(s, torch.ones_like(s)))

    runs = (
        lambda: dual(student),
        lambda: torch.func.jvp(one, (student,), (student,)),
        lambda: torch.func.jacfwd(one)(student),
        lambda: torch.func.linearize(one, student)[1](student),  # which first calls it without tangents
    )
    before = MEMORY.clone()
    for run in runs:
        assert torch.equal(MEMORY, before)
        with torch.set_grad_enabled(grad_mode), pytest.raises(NotImplementedError) as caught:
            run()
        assert str(caught.value) == refusal_of_forward_mode(op, name)


@losses
def test_forward_mode_is_refused_for_what_is_constant_and_below_vmap(name):
    student, teacher = logits(requires_grad=False)
    function = getattr(mtkernels, name)
    runs = {
        "teacher": lambda t: function(student, t),
        "weight": lambda t: function(student, teacher, weight=t[:, 0]),
        "student": lambda s: torch.vmap(function)(s, teacher).sum(),
    }
    for argument, run in runs.items():
        with pytest.raises(NotImplementedError) as caught:
            torch.func.jvp(run, (teacher,), (teacher,))
        assert str(caught.value) == refusal_of_forward_mode(name, argument)


@losses
def test_forward_mode_is_refused_by_the_registered_op(name):
    student, teacher = logits(requires_grad=False)
    with FORWARD.dual_level(), pytest.raises(NotImplementedError) as caught:
        dual = FORWARD.make_dual(student, torch.ones_like(student))
        getattr(torch.ops.mtkernels, name)(*registered(dual, teacher))
    assert str(caught.value) == refusal_of_forward_mode(name, "each tensor")


def test_numbers_that_carry_no_tangent_are_taken_beside_forward_mode():
    student, teacher = logits(requires_grad=False)
    expected = mtkernels.softmax_mse(student, teacher)
    value, tangent = torch.func.jvp(
        lambda s: s.sum() * mtkernels.softmax_mse(student, teacher), (student,), (torch.ones_like(student),)
    )
    torch.testing.assert_close(value, student.sum() * expected)
    torch.testing.assert_close(tangent, student.numel() * expected)


@losses
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_jit_trace_records_the_op(name):
    student, teacher = logits(requires_grad=False)
    traced = torch.jit.trace(lambda s, t: getattr(mtkernels, name)(s, t), (student, teacher))
    other = logits(requires_grad=False)[1]
    torch.testing.assert_close(traced(other, teacher), getattr(mtkernels, name)(other, teacher))


@losses
def test_batched_incoming_gradients(name):
    student, teacher = logits()
    loss = getattr(mtkernels, name)(student, teacher)
    (batched,) = torch.autograd.grad(loss, student, torch.tensor([1.0, 3.0]), is_grads_batched=True)
    (single,) = torch.autograd.grad(getattr(mtkernels, name)(student, teacher), student)
    torch.testing.assert_close(batched, torch.stack([single, 3 * single]))


@losses
def test_fp16_gradients_survive_a_loss_scale(name):
    """A row's gradient below fp16's smallest number comes back when the incoming gradient is a GradScaler's 65536."""
    torch.manual_seed(0)
    student, teacher = torch.randn(4096, 100), torch.randn(4096, 100)
    half = student.half().requires_grad_()
    (gradient,) = torch.autograd.grad(65536 * getattr(mtkernels, name)(half, teacher.half()), half)
    exact = half.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(65536 * LOSSES[name](exact, teacher.half().double()), exact)
    assert gradient.dtype == torch.float16
    torch.testing.assert_close(gradient.double(), expected, rtol=2e-3, atol=1e-7)


def test_ema_update_bumps_version_counters():
    weight = torch.ones(3)
    loss = (torch.ones(3, requires_grad=True) * weight).sum()
    mtkernels.ema_update([weight], [torch.zeros(3)], 0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
