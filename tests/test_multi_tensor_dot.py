"""multi_tensor_dot beyond test_ops.py: exactness, layouts, registration, refusals."""

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


def test_dot_refuses_vmap():
    rows = torch.randn(2, 3)
    with pytest.raises(NotImplementedError) as refused:
        torch.vmap(lambda row: mtkernels.multi_tensor_dot([row], [ONE]))(rows)
    assert str(refused.value) == (
        "multi_tensor_dot: its tensors must not be mapped by torch.vmap (call it once for each sample), "
        "got a mapped one"
    )
    scaled = torch.vmap(lambda row: row.sum() * mtkernels.multi_tensor_dot([ONE], [ONE]))(rows)
    torch.testing.assert_close(scaled, 3 * rows.sum(1).double())  # what is not mapped is taken
