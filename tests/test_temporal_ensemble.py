"""temporal_ensemble_ beyond test_ops.py: whole epochs, layouts, autograd, registration, refusals."""

import numpy
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

import mtkernels
from mtkernels.backends import native, reference
from mtkernels.testing import FLOATS

F32, F64, F16, BF16 = FLOATS
backends = pytest.mark.parametrize("backend", [native, reference], ids=["native", "reference"])


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


@backends
def test_ensemble_beside_its_student_in_one_storage(backend):
    """They share a storage, but no memory."""
    ensemble, index, student = visited()
    expected = backend.temporal_ensemble_(ensemble.clone(), index, student, 0.6, 1)
    both = torch.cat([ensemble, student])
    found = backend.temporal_ensemble_(both[:10], index, both[10:], 0.6, 1)
    assert torch.equal(found[0], expected[0]) and torch.equal(both[10:], student)
    with pytest.raises(ValueError, match="ensemble must lie in memory apart"):
        backend.temporal_ensemble_(both[:10], index, both[9:15], 0.6, 1)


@pytest.mark.parametrize("kind", [int, numpy.float32, numpy.float64])
def test_alpha_is_a_number_of_any_kind(kind):
    ensemble, index, student = visited()
    for alpha in (0, kind(0.5)):
        copies = ensemble.clone(), ensemble.clone()
        for copy, number in zip(copies, (alpha, float(alpha)), strict=True):
            mtkernels.temporal_ensemble_(copy, index, student, alpha=number, updates=1)
        assert torch.equal(*copies)
