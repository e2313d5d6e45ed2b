"""multi_tensor_dot, temporal_ensemble_ and sharpen beyond test_ops.py: exactness, options, autograd, registration."""

import math

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

import mtkernels
from mtkernels.backends import native, reference
from mtkernels.testing import FLOATS, random_lists

F32, F64, F16, BF16 = FLOATS
SHAPES = ((16, 3, 3, 3), (16,), (), (0,), (4097,), (40_000,), (3, 0))
backends = pytest.mark.parametrize("backend", [native, reference], ids=["native", "reference"])
dtypes = pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: str(dtype).removeprefix("torch."))


# ---- multi_tensor_dot


def exact_dot(first, second) -> float:
    """math.fsum rounds once; products of two fp32 are exact in fp64."""
    return math.fsum(
        x
        for a, b in zip(first, second, strict=True)
        for x in (a.double().flatten() * b.double().flatten()).tolist()
    )


@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=str)
def test_dot_is_summed_in_float64(dtype):
    """No worse than twice torch's own float64 dot, where the sum nearly cancels."""
    ours = theirs = rounding = 0.0
    for seed in range(20):
        first, second = random_lists(((4097,), (300, 7)), dtype, seed=seed)
        first, second = [*first, *(-t for t in first)], [*second, *(t * 1.5 for t in second)]
        exact = exact_dot(first, second)
        yardstick = sum(
            torch.dot(a.double().flatten(), b.double().flatten()) for a, b in zip(first, second, strict=True)
        )
        ours = max(ours, abs(float(native.multi_tensor_dot(first, second)) - exact))
        theirs = max(theirs, abs(float(yardstick) - exact))
        rounding = max(rounding, abs(exact) * 2**-53)
    assert ours <= 2 * theirs + rounding


@backends
@dtypes
def test_norms_come_from_the_same_pairs(dtype, backend):
    first, second = random_lists(SHAPES, dtype)
    dot, first_norm, second_norm = backend.multi_tensor_dot(first, second, True)
    assert dot.dtype == F64 and dot.shape == ()
    for ours, tensors in ((first_norm, first), (second_norm, second)):
        expected = torch.cat([tensor.double().flatten() for tensor in tensors]).norm()
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(dot, backend.multi_tensor_dot(first, second))


@backends
def test_pairs_with_none_are_passed_over(backend):
    first, second = random_lists(((5,), (3, 2), (7,)), F32)
    expected = backend.multi_tensor_dot(first[:1], second[:1], True)
    with_none = [first[0], None, first[2], None], [second[0], second[1], None, None]
    assert torch.equal(backend.multi_tensor_dot(*with_none, True), expected)
    for empty in ([], [None], [torch.ones(0)]):
        assert backend.multi_tensor_dot(empty, empty).tolist() == 0
        assert backend.multi_tensor_dot(empty, empty, True).tolist() == [0, 0, 0]


@backends
def test_layouts_of_pairs(backend):
    """The same strides on both sides, whatever they are, also with gaps."""
    layouts = (
        lambda t: t.transpose(0, 3).contiguous().transpose(0, 3),
        lambda t: t.contiguous(memory_format=torch.channels_last),
        lambda t: torch.cat([t, t], 1)[:, : t.shape[1]],
        lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view_as(t),
    )
    first, second = random_lists(((3, 6, 5, 4),) * len(layouts), F32)
    expected = backend.multi_tensor_dot(first, second, True)
    first, second = ([make(t) for make, t in zip(layouts, side, strict=True)] for side in (first, second))
    torch.testing.assert_close(backend.multi_tensor_dot(first, second, True), expected)


@backends
def test_nan_and_infinity_show(backend):
    first, second = random_lists(((100,), (5000,)), F32)
    second[1][4000] = torch.inf
    assert backend.multi_tensor_dot(first, second).isinf()
    first[0][3] = torch.nan
    assert backend.multi_tensor_dot(first, second).isnan()


def test_products_past_float32_are_finite():
    large = [torch.full((10,), 3e38)]
    dot, norm, _ = mtkernels.multi_tensor_dot(large, large, with_norms=True)
    assert dot == 10 * float(large[0][0]) ** 2 and norm.isfinite()


def test_dot_has_the_same_bits_for_any_number_of_threads():
    first, second = random_lists(((70_001,), (300, 333), *((16,),) * 50), F32)
    before, outputs = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            outputs.append(mtkernels.multi_tensor_dot(first, second, with_norms=True))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for later in outputs for a, b in zip(later, outputs[0], strict=True))


def test_dot_has_the_same_bits_at_any_address():
    first, second = random_lists(((5000,),), F32)
    expected = mtkernels.multi_tensor_dot(first, second)
    for offset in (1, 3, 7):
        moved = [[torch.cat([t.new_zeros(offset), t])[offset:] for t in side] for side in (first, second)]
        assert torch.equal(mtkernels.multi_tensor_dot(*moved), expected)


def test_public_functions_of_dot():
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    net(torch.randn(5, 3)).sum().backward()
    gradients = [parameter.grad for parameter in net.parameters()]
    flat = torch.cat([gradient.flatten() for gradient in gradients]).double()
    dot, norm, weight_norm = mtkernels.multi_tensor_dot(gradients, net.parameters(), with_norms=True)
    torch.testing.assert_close(mtkernels.multi_tensor_norm(p.grad for p in net.parameters()), flat.norm())
    torch.testing.assert_close(norm, flat.norm())
    torch.testing.assert_close(
        mtkernels.multi_tensor_cosine(gradients, net.parameters()), dot / norm / weight_norm
    )
    assert not dot.requires_grad
    assert mtkernels.multi_tensor_cosine(gradients, [torch.zeros_like(g) for g in gradients]) == 0
    assert mtkernels.multi_tensor_cosine(gradients, gradients) == pytest.approx(1)


def test_dot_is_the_directional_derivative_of_meta_pseudo_labels():
    """<grad of the labeled loss at the moved student, grad of the unlabeled loss>: by autograd, of the labeled loss
    along the student's step, -d/d eta CE_l(theta - eta g)."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    names = [name for name, _ in net.named_parameters()]
    parameters = list(net.parameters())
    unlabeled, labeled = torch.randn(2, 10, 6, dtype=F64)
    pseudo, labels = torch.randint(0, 3, (2, 10))
    step = torch.autograd.grad(F.cross_entropy(net(unlabeled), pseudo), parameters)

    def labeled_loss(eta):
        moved = {n: p.detach() - eta * g for n, p, g in zip(names, parameters, step, strict=True)}
        return F.cross_entropy(torch.func.functional_call(net, moved, (labeled,)), labels)

    eta = torch.tensor(0.1, dtype=F64, requires_grad=True)
    (expected,) = torch.autograd.grad(labeled_loss(eta), eta)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter -= 0.1 * gradient
    after = torch.autograd.grad(F.cross_entropy(net(labeled), labels), parameters)
    torch.testing.assert_close(mtkernels.multi_tensor_dot(after, step), -expected)


@pytest.mark.parametrize("with_norms", [False, True])
def test_dot_registered(with_norms):
    first, second = random_lists(((3, 4), (5,)), F32)
    torch.library.opcheck(torch.ops.mtkernels.multi_tensor_dot.default, (first, second, with_norms))

    def step(first, second):
        found = mtkernels.multi_tensor_dot([first[0] * 2, None], [second[0], first[1]], with_norms=with_norms)
        return found.dot / found.first_norm if with_norms else found

    torch.testing.assert_close(torch.compile(step, fullgraph=True)(first, second), step(first, second))
    with FakeTensorMode():
        fake = [torch.randn(3), torch.randn(2, 2)]
        assert mtkernels.multi_tensor_norm(fake).dtype == F64
    gradient = torch.func.grad(lambda a: a.sum() * mtkernels.multi_tensor_dot([a], second[:1]).float())(
        first[0]
    )
    torch.testing.assert_close(
        gradient, mtkernels.multi_tensor_dot(first[:1], second[:1]).float().expand_as(first[0])
    )


def test_dot_exports():
    class Product(nn.Module):
        def forward(self, a, b):
            return mtkernels.multi_tensor_dot([a], [b])

    inputs = torch.randn(2, 7), torch.randn(2, 7)
    exported = torch.export.export(Product(), inputs)
    assert any("multi_tensor_dot" in str(node.target) for node in exported.graph.nodes)
    torch.testing.assert_close(exported.module()(*inputs), Product()(*inputs))


ONE = torch.ones(3)
DOT_ERRORS = {
    "no list": (
        (ONE, [ONE]),
        TypeError,
        "multi_tensor_dot: first must be a sequence of tensors, got Tensor",
    ),
    "a number": (([ONE], 3), TypeError, "multi_tensor_dot: second must be a sequence of tensors, got int"),
    "length": (
        ([ONE, ONE], [ONE]),
        ValueError,
        "multi_tensor_dot: second must have as many tensors as first (2), got 1",
    ),
    "no tensor": (
        ([ONE], ["a"]),
        TypeError,
        "multi_tensor_dot: second[0] must be a torch.Tensor, got str",
    ),
    "integers": (
        ([ONE, ONE.long()], [ONE, ONE]),
        TypeError,
        "multi_tensor_dot: first[1] must be float16, bfloat16, float32 or float64, got torch.int64",
    ),
    "complex": (
        ([ONE], [ONE.to(torch.complex64)]),
        TypeError,
        "multi_tensor_dot: second[0] must be float16, bfloat16, float32 or float64, got torch.complex64",
    ),
    "shape": (
        ([None, torch.ones(2, 3)], [ONE, torch.ones(3, 2)]),
        ValueError,
        "multi_tensor_dot: second[1] must have the shape of its first [2, 3], got [3, 2]",
    ),
    "memory format": (
        ([torch.ones(2, 3)], [torch.ones(3, 2).t()]),
        ValueError,
        "multi_tensor_dot: second[0] must have the memory format of its first, strides [3, 1], got [1, 2]",
    ),
    "strides without a run": (
        ([torch.ones(6)[::2]], [torch.ones(6)[::2]]),
        ValueError,
        "multi_tensor_dot: first[0] must have a dim of stride 1, got strides [2]",
    ),
    "meta": (
        ([ONE], [torch.ones(3, device="meta")]),
        TypeError,
        "multi_tensor_dot: second[0] must be a dense tensor in memory, "
        "got layout torch.strided, dtype torch.float32 on meta",
    ),
}


@backends
@pytest.mark.parametrize("case", DOT_ERRORS)
def test_dot_refuses(case, backend):
    arguments, kind, message = DOT_ERRORS[case]
    for function in (mtkernels.multi_tensor_dot, backend.multi_tensor_dot):
        with pytest.raises(kind) as refused:
            function(*arguments)
        assert str(refused.value) == message


def test_dot_refuses_a_flag_that_is_none():
    with pytest.raises(TypeError, match="multi_tensor_dot: with_norms must be a bool, got int"):
        mtkernels.multi_tensor_dot([ONE], [ONE], with_norms=1)


# ---- temporal_ensemble_


def visited(rows=6, classes=11, samples=10, dtype=F32, requires_grad=False):
    """Logits, an ensemble as it is after some updates, and an index."""
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(rows, classes, dtype=F64, generator=generator).to(dtype)
    ensemble = 0.7 * torch.randn(samples, classes, dtype=F64, generator=generator).softmax(-1).to(dtype)
    index = torch.randperm(samples, generator=generator)[:rows]
    return ensemble, index, student.requires_grad_(requires_grad)


def in_torch(ensemble, index, student, alpha=0.6, updates=3, correction="bias"):
    p, z = student.softmax(-1), ensemble[index]
    target = {"bias": lambda: z / (1 - alpha**updates), "renormalize": lambda: z / z.sum(-1, keepdim=True)}
    loss = F.mse_loss(p, target.get(correction, lambda: z)())
    ensemble[index] = alpha * z + (1 - alpha) * p.detach()
    return loss


@pytest.mark.parametrize("correction", ["bias", "renormalize", "none"])
@pytest.mark.parametrize("index_dtype", [torch.int64, torch.int32])
def test_ensemble_equals_torch(correction, index_dtype):
    ensemble, index, student = visited(requires_grad=True)
    expected_ensemble = ensemble.clone()
    expected = in_torch(expected_ensemble, index, student, correction=correction)
    (expected_gradient,) = torch.autograd.grad(3 * expected, student)
    strided = torch.stack([index, index], -1).to(index_dtype)[:, 0]
    loss = mtkernels.temporal_ensemble_(ensemble, strided, student, updates=3, correction=correction)
    (gradient,) = torch.autograd.grad(3 * loss, student)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, expected_gradient)
    torch.testing.assert_close(ensemble, expected_ensemble)
    assert torch.equal(ensemble[index].sum(-1) != 0, torch.ones(6, dtype=torch.bool))


@pytest.mark.parametrize("partly", [False, True], ids=["every row", "some rows an epoch"])
def test_some_epochs_of_temporal_ensembling(partly):
    """The paper's algorithm 2, which updates Z once an epoch: with all rows visited once, batches do the same."""
    torch.manual_seed(0)
    inputs, alpha, batch = torch.randn(40, 5), 0.6, 8
    nets = [nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 4)) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    optimizers = [torch.optim.SGD(net.parameters(), 0.5) for net in nets]
    ensemble, z, targets = torch.zeros(40, 4), torch.zeros(40, 4), torch.zeros(40, 4)
    for epoch in range(4):
        order = torch.randperm(40)[: 24 if partly else 40]
        outputs = z.new_full(z.shape, torch.nan)
        for index in order.split(batch):
            loss = mtkernels.temporal_ensemble_(
                ensemble,
                index,
                nets[0](inputs[index]),
                alpha=alpha,
                updates=None if partly else epoch,
                correction="renormalize" if partly else "bias",
            )
            predicted = nets[1](inputs[index]).softmax(-1)
            outputs[index] = predicted.detach()
            rows = (predicted - targets[index]).square() * (targets[index].sum(-1, keepdim=True) > 0)
            for optimizer, each in zip(optimizers, (loss, rows.mean()), strict=True):
                optimizer.zero_grad()
                each.backward()
                optimizer.step()
            torch.testing.assert_close(loss, rows.mean())
        z[order] = alpha * z[order] + (1 - alpha) * outputs[order]
        targets = z / z.sum(-1, keepdim=True).clamp(min=1e-30) if partly else z / (1 - alpha ** (epoch + 1))
        torch.testing.assert_close(ensemble, z)
    for ours, theirs in zip(*(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@backends
@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize(
    "options", [{"updates": 0}, {"correction": "renormalize"}, {"updates": torch.tensor(0)}], ids=str
)
def test_rows_without_a_target(options, classes, backend):
    ensemble, index, student = visited(5, classes)
    ensemble[index[:2]] = 0
    before = ensemble.clone()
    arguments = {"updates": None, "correction": "bias"} | options
    losses, gradient = backend.temporal_ensemble_(
        ensemble, index, student, 0.6, **arguments, reduction="none", with_gradient=True
    )
    without = slice(0, 2) if "correction" in options else slice(None)
    assert not losses[without].any() and not gradient[without].any()
    assert "correction" not in options or (losses[2:] > 0).all()
    torch.testing.assert_close(ensemble[index], 0.6 * before[index] + 0.4 * student.softmax(-1))
    others = [row for row in range(10) if row not in index.tolist()]
    assert torch.equal(ensemble[others], before[others])


@backends
@pytest.mark.parametrize("classes", [10, 100])
def test_masked_and_nan_logits_stay_in_their_row(classes, backend):
    ensemble, index, student = visited(5, classes)
    student[1], student[2, 3:] = -torch.inf, -torch.inf
    student[3, 2] = torch.nan
    student[4] *= 1e4
    ensemble[index[1], 0] = torch.nan  # behind a masked row
    before = ensemble.clone()
    losses, gradient = backend.temporal_ensemble_(ensemble, index, student, 0.6, 2, "bias", "none", True)
    assert losses[1] == 0 and not gradient[1].any()
    assert torch.equal(ensemble[index[1]].nan_to_num(9), before[index[1]].nan_to_num(9))
    assert losses[3].isnan() and gradient[3].isnan().all() and ensemble[index[3]].isnan().all()
    rest = [0, 2, 4]
    assert losses[rest].isfinite().all() and gradient[rest].isfinite().all()
    assert ensemble[index[rest]].isfinite().all()


@backends
def test_layouts_of_ensemble_and_logits(backend):
    """Strided logits; an ensemble with room between its rows."""
    ensemble, index, student = visited(7, 70)
    expected = backend.temporal_ensemble_(ensemble.clone(), index, student, 0.6, 1, "bias", "mean", True)
    wide = torch.cat([ensemble, ensemble], 1)[:, :70]
    transposed = student.t().contiguous().t()
    found = backend.temporal_ensemble_(wide, index, transposed, 0.6, 1, "bias", "mean", True)
    torch.testing.assert_close(found, expected)
    assert found[1].stride() == transposed.stride()


def test_ensemble_has_the_same_bits_for_any_number_of_threads():
    ensemble, index, student = visited(500, 90, 600)
    before, outputs = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            moved = ensemble.clone()
            outputs.append(
                (*native.temporal_ensemble_(moved, index, student, 0.6, 2, "bias", "mean", True), moved)
            )
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for later in outputs for a, b in zip(later, outputs[0], strict=True))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("correction", ["bias", "renormalize", "none"])
def test_ensemble_gradcheck(reduction, correction):
    ensemble, index, student = visited(4, 5, dtype=F64, requires_grad=True)

    def loss(logits):
        return mtkernels.temporal_ensemble_(
            ensemble.clone(), index, logits, updates=2, correction=correction, reduction=reduction
        )

    assert torch.autograd.gradcheck(loss, student)


def test_ensemble_in_autograd():
    ensemble, index, student = visited(requires_grad=True)
    saved = (torch.ones(10, 11, requires_grad=True) * ensemble).sum()
    loss = 7 * mtkernels.temporal_ensemble_(ensemble, index, student, updates=1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        saved.backward()
    (first,) = torch.autograd.grad(loss, student, retain_graph=True)
    (again,) = torch.autograd.grad(loss, student, torch.ones(()), retain_graph=True)
    (batched,) = torch.autograd.grad(
        loss, student, torch.tensor([1.0, 2.0]), is_grads_batched=True, retain_graph=True
    )
    assert torch.equal(first, again)
    torch.testing.assert_close(batched, torch.stack([first, 2 * first]))
    with pytest.raises(NotImplementedError, match="temporal_ensemble_: its gradient has no derivative"):
        torch.autograd.grad(loss, student, create_graph=True)
    with torch.no_grad():
        assert not mtkernels.temporal_ensemble_(ensemble, index, student, updates=1).requires_grad


def test_ensemble_fp16_gradients_survive_a_loss_scale():
    ensemble, index, student = visited(1000, 100, 1000)
    half = student.half().requires_grad_()
    loss = 65536 * mtkernels.temporal_ensemble_(ensemble.clone(), index, half, updates=2)
    (gradient,) = torch.autograd.grad(loss, half)
    exact = half.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(65536 * in_torch(ensemble.double(), index, exact, updates=2), exact)
    assert gradient.dtype == F16
    torch.testing.assert_close(gradient.double(), expected, rtol=2e-3, atol=1e-7)


@pytest.mark.parametrize("with_gradient", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("updates", [(2, None), (None, torch.tensor(2))], ids=["int", "tensor"])
def test_ensemble_opcheck(updates, reduction, with_gradient):
    ensemble, index, student = visited(requires_grad=with_gradient)
    arguments = ensemble, index, student, 0.6, *updates, "bias", reduction, with_gradient
    torch.library.opcheck(torch.ops.mtkernels.temporal_ensemble_.default, arguments)


def test_ensemble_compiles_to_a_full_graph():
    ensemble, index, student = visited(requires_grad=True)
    updates = torch.tensor(2)

    def step(ensemble, student):
        loss = mtkernels.temporal_ensemble_(ensemble, index, student * 2, updates=updates)
        return 3 * loss, ensemble.sum()

    copies = ensemble.clone(), ensemble.clone()
    found, expected = torch.compile(step, fullgraph=True)(copies[0], student), step(copies[1], student)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*copies)
    assert not torch.equal(copies[0], ensemble)
    (gradient,), (expected_gradient,) = (torch.autograd.grad(each[0], student) for each in (found, expected))
    torch.testing.assert_close(gradient, expected_gradient)


def test_ensemble_exports():
    class Loss(nn.Module):
        def __init__(self, ensemble):
            super().__init__()
            self.register_buffer("ensemble", ensemble)

        def forward(self, index, student):
            return mtkernels.temporal_ensemble_(self.ensemble, index, student, updates=2)

    ensemble, index, student = visited()
    exported = torch.export.export(Loss(ensemble.clone()), (index, student)).module()
    expected = Loss(ensemble.clone())
    torch.testing.assert_close(exported(index, student), expected(index, student))
    torch.testing.assert_close(exported.ensemble, expected.ensemble)


def test_ensemble_takes_fake_tensors_and_functorch():
    with FakeTensorMode():
        student = torch.randn(5, 3, dtype=BF16)
        loss = mtkernels.temporal_ensemble_(
            torch.zeros(9, 3), torch.arange(5), student, updates=1, reduction="none"
        )
        assert loss.shape == (5,) and loss.dtype == F32
    ensemble, index, student = visited()
    moved = ensemble.clone()
    gradient = torch.func.grad(lambda s: mtkernels.temporal_ensemble_(moved, index, s, updates=2))(student)
    expected = ensemble.clone(), student.clone().requires_grad_()
    (expected_gradient,) = torch.autograd.grad(
        in_torch(expected[0], index, expected[1], updates=2), expected[1]
    )
    torch.testing.assert_close(gradient, expected_gradient)
    torch.testing.assert_close(moved, expected[0])


TE = "temporal_ensemble_: "
ENSEMBLE_ERRORS = {
    "gradient of the ensemble": (
        lambda z, i, s: ((z.requires_grad_(), i, s), {"updates": 1}),
        ValueError,
        "ensemble must not require grad (it is a constant: detach it), got requires_grad=True",
    ),
    "no tensor": (
        lambda z, i, s: ((z, i, [1.0]), {"updates": 1}),
        TypeError,
        "student must be a torch.Tensor, got list",
    ),
    "no updates": (
        lambda z, i, s: ((z, i, s), {}),
        ValueError,
        "updates must be given where correction is 'bias', got None",
    ),
    "updates of floats": (
        lambda z, i, s: ((z, i, s), {"updates": torch.tensor(1.0)}),
        TypeError,
        "updates must be an int, or one int64 or int32 in a tensor, got torch.float32",
    ),
    "updates as a float": (
        lambda z, i, s: ((z, i, s), {"updates": 1.0}),
        TypeError,
        "updates must be an int, or one int64 or int32 in a tensor, got float",
    ),
    "several updates": (
        lambda z, i, s: ((z, i, s), {"updates": torch.ones(2).long()}),
        ValueError,
        "updates must hold one number, got shape [2]",
    ),
    "negative updates": (
        lambda z, i, s: ((z, i, s), {"updates": -1}),
        ValueError,
        "updates must be at least 0 and below 2^63, got -1",
    ),
    "alpha": (
        lambda z, i, s: ((z, i, s), {"updates": 1, "alpha": 1}),
        ValueError,
        "alpha must be at least 0 and below 1, got 1.0",
    ),
    "alpha as a word": (
        lambda z, i, s: ((z, i, s), {"updates": 1, "alpha": "a"}),
        TypeError,
        "alpha must be a number, got str",
    ),
    "correction": (
        lambda z, i, s: ((z, i, s), {"correction": "biased"}),
        ValueError,
        "correction must be 'bias', 'renormalize' or 'none', got 'biased'",
    ),
    "reduction": (
        lambda z, i, s: ((z, i, s), {"updates": 1, "reduction": "average"}),
        ValueError,
        "reduction must be 'mean', 'sum' or 'none', got 'average'",
    ),
    "dtype": (
        lambda z, i, s: ((z, i, s.long()), {"updates": 1}),
        TypeError,
        "student must be float16, bfloat16, float32 or float64, got torch.int64",
    ),
    "dims": (
        lambda z, i, s: ((z, i, s[0]), {"updates": 1}),
        ValueError,
        "student must have shape [rows, classes], got [11]",
    ),
    "no classes": (
        lambda z, i, s: ((z, i, s[:, :0]), {"updates": 1}),
        ValueError,
        "student must have at least one class, got shape [6, 0]",
    ),
    "classes": (
        lambda z, i, s: ((z[:, :5].contiguous(), i, s), {"updates": 1}),
        ValueError,
        "ensemble must have as many classes as student (11), got 5",
    ),
    "dims of the ensemble": (
        lambda z, i, s: ((z[0], i, s), {"updates": 1}),
        ValueError,
        "ensemble must have shape [samples, classes], got [11]",
    ),
    "strides of the ensemble": (
        lambda z, i, s: ((z.t().contiguous().t(), i, s), {"updates": 1}),
        ValueError,
        "ensemble must have rows that lie one after the other, each without gaps, got strides [1, 10]",
    ),
    "index of floats": (
        lambda z, i, s: ((z, i.float(), s), {"updates": 1}),
        TypeError,
        "index must be int64 or int32, got torch.float32",
    ),
    "rows of the index": (
        lambda z, i, s: ((z, i[:3], s), {"updates": 1}),
        ValueError,
        "index must have shape [6], one for each row of student, got [3]",
    ),
    "index outside": (
        lambda z, i, s: ((z, torch.tensor([0, 1, 2, 10, 4, 5]), s), {"updates": 1}),
        ValueError,
        "index[3] must be a row of ensemble, from 0 to 9, got 10",
    ),
    "negative index": (
        lambda z, i, s: ((z, torch.tensor([0, 1, 2, 3, 4, -1]), s), {"updates": 1}),
        ValueError,
        "index[5] must be a row of ensemble, from 0 to 9, got -1",
    ),
    "repeated index": (
        lambda z, i, s: ((z, torch.tensor([0, 7, 2, 3, 7, 5]), s), {"updates": 1}),
        ValueError,
        "index[4] must be a row that is visited once, got 7, as index[1] is",
    ),
}


@pytest.mark.parametrize("case", ENSEMBLE_ERRORS)
def test_ensemble_refuses(case):
    make, kind, message = ENSEMBLE_ERRORS[case]
    ensemble, index, student = visited()
    before = ensemble.clone()
    arguments, options = make(ensemble, index, student)
    with pytest.raises(kind) as refused:
        mtkernels.temporal_ensemble_(*arguments, **options)
    assert str(refused.value) == TE + message
    assert torch.equal(ensemble, before)


# ---- sharpen


def test_sharpen_equals_torch():
    probs = torch.randn(4, 7, 3).softmax(1)
    powers = probs ** (1 / 0.4)
    torch.testing.assert_close(mtkernels.sharpen(probs, 0.4, dim=1), powers / powers.sum(1, keepdim=True))
    for temperature in (torch.tensor(0.4), torch.tensor([0.4], dtype=F64)):
        torch.testing.assert_close(
            mtkernels.sharpen(probs, temperature, dim=1), mtkernels.sharpen(probs, 0.4, dim=1)
        )


@backends
@dtypes
@pytest.mark.parametrize("classes", [4, 100])
def test_no_temperature_overflows(classes, dtype, backend):
    """Near 0 all goes to the largest, shared among equals; large ones spread over all that are not 0."""
    probs = torch.full((2, classes), 0.01, dtype=dtype)
    probs[0, :2] = 0.3
    probs[1, 0], probs[1, 1] = 0, 0.2
    for temperature in (1e-3, 1e-30, 1e-300):
        cold = backend.sharpen(probs, temperature, -1)
        assert cold[0].tolist() == [0.5, 0.5] + [0] * (classes - 2) and cold[1, 1] == 1
    for temperature in (1e30, 1e300):
        hot = backend.sharpen(probs, temperature, -1)
        torch.testing.assert_close(hot[0], torch.full_like(hot[0], 1 / classes))
        assert hot[1, 0] == 0
        torch.testing.assert_close(hot[1, 1:], torch.full_like(hot[1, 1:], 1 / (classes - 1)))


@backends
@pytest.mark.parametrize("temperature", [0.5, 1.0, 0.3, 10.0])
@pytest.mark.parametrize("classes", [5, 100])
def test_rows_of_sharpen(classes, temperature, backend):
    """Zeros stay; small numbers count; a negative one is NaN in its row only; sums that are not 1."""
    probs = torch.rand(6, classes)
    probs[0], probs[1] = 0, probs[1] * 1e-38  # of which the smallest are subnormal
    probs[2, 3], probs[3, 1] = -0.5, torch.nan
    probs[4] = 0
    probs[4, 0] = -1
    probs[5] *= 1e30
    found = backend.sharpen(probs, temperature, -1)
    assert not found[0].any()
    assert found[2:5].isnan().all()
    wide = probs[[1, 5]].double()
    powers = (wide / wide.amax(-1, keepdim=True)) ** (1 / temperature)
    torch.testing.assert_close(found[[1, 5]], (powers / powers.sum(-1, keepdim=True)).float())


def test_sharpen_keeps_layouts():
    layouts = (
        lambda t: t.transpose(1, 2).contiguous().transpose(1, 2),
        lambda t: t.contiguous(memory_format=torch.channels_last),
        lambda t: torch.stack([t, t], -1)[..., 0],
        lambda t: t[:1].expand_as(t),
    )
    for make in layouts:
        probs = make(torch.rand(3, 6, 5, 4))
        for dim in (0, 1, -1):
            found = mtkernels.sharpen(probs, 0.5, dim=dim)
            torch.testing.assert_close(
                found, mtkernels.sharpen(probs.contiguous(), 0.5, dim=dim), rtol=1e-6, atol=0
            )
            assert found.stride() == torch.empty_like(probs).stride()


def test_sharpen_registered():
    probs = torch.rand(3, 5)
    for overload, temperature in (("default", 0.5), ("tensor", torch.tensor(0.5))):
        torch.library.opcheck(getattr(torch.ops.mtkernels.sharpen, overload), (probs, temperature, -1))

    def step(probs, temperature):
        return mtkernels.sharpen(probs * 2, 0.4) + mtkernels.sharpen(probs, temperature, dim=0)

    inputs = probs, torch.tensor(0.7)
    torch.testing.assert_close(torch.compile(step, fullgraph=True)(*inputs), step(*inputs))
    with FakeTensorMode():
        assert mtkernels.sharpen(torch.rand(3, 5, dtype=BF16), 0.5).dtype == BF16
    with torch.no_grad():
        assert not mtkernels.sharpen(torch.rand(3, 5, requires_grad=True), 0.5).requires_grad


ROW = torch.ones(2, 3)
SHARPEN_ERRORS = {
    "gradient": (
        (ROW.clone().requires_grad_(), 0.5),
        ValueError,
        "probs must not require grad (it is a constant: detach it), got requires_grad=True",
    ),
    "no tensor": (([0.5], 0.5), TypeError, "probs must be a torch.Tensor, got list"),
    "dtype": (
        (ROW.long(), 0.5),
        TypeError,
        "probs must be float16, bfloat16, float32 or float64, got torch.int64",
    ),
    "0-d": ((torch.ones(()), 0.5), ValueError, "probs must have a dim of classes, got a 0-d tensor"),
    "zero": ((ROW, 0), ValueError, "temperature must be positive and finite, got 0.0"),
    "negative in a tensor": (
        (ROW, torch.tensor(-1.0)),
        ValueError,
        "temperature must be positive and finite, got -1.0",
    ),
    "infinite": ((ROW, float("inf")), ValueError, "temperature must be positive and finite, got inf"),
    "a word": ((ROW, "cold"), TypeError, "temperature must be a number or a torch.Tensor, got str"),
    "several": ((ROW, torch.ones(2)), ValueError, "temperature must be a number or hold one, got shape [2]"),
    "integers": (
        (ROW, torch.ones(()).long()),
        TypeError,
        "temperature must be float32 or float64, got torch.int64",
    ),
    "dim": ((ROW, 0.5, 2), ValueError, "dim must be a dim of probs [2, 3], got 2"),
    "dim as a float": ((ROW, 0.5, 1.0), TypeError, "dim must be an int, got float"),
}


@pytest.mark.parametrize("case", SHARPEN_ERRORS)
def test_sharpen_refuses(case):
    arguments, kind, message = SHARPEN_ERRORS[case]
    with pytest.raises(kind) as refused:
        mtkernels.sharpen(*arguments[:2], **({"dim": arguments[2]} if len(arguments) > 2 else {}))
    assert str(refused.value) == "sharpen: " + message
