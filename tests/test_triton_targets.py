"""The Triton kernels of multi_tensor_dot, temporal_ensemble_ and sharpen in the interpreter, beyond test_triton.py."""

import importlib
import os

import pytest
import torch

from mtkernels.backends import reference
from mtkernels.testing import FLOATS, OPS, random_lists
from tests.test_triton import bfloat16_to_nearest  # noqa: F401

pytest.importorskip("triton", reason="Triton is not installed")
interpreted = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = [
    pytest.mark.skipif(
        not interpreted, reason="TRITON_INTERPRET is not 1: test_ops.py runs the kernels on the GPU"
    ),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton"),
]
if interpreted:
    from mtkernels.backends import triton

F32, F64, F16, BF16 = FLOATS


def _module(name):
    return importlib.import_module(f"mtkernels.backends.triton.{name}")


def _ticket():
    return _module("launch").ticket_of(torch.device("cpu")).item()


# ---- multi_tensor_dot


def test_dot_of_mixed_dtypes_and_layouts():
    shapes = ((5, 7), (3000,), (), (0,), (4, 3, 2, 5), (1025,))
    first, second = random_lists(shapes, F64)
    kinds = (F32, F16, BF16, F64, F32, F16), (F16, F16, F32, F32, F32, BF16)
    first, second = (
        [tensor.to(dtype) for tensor, dtype in zip(side, dtypes, strict=True)]
        for side, dtypes in zip((first, second), kinds, strict=True)
    )
    for side in (first, second):
        side[4] = side[4].contiguous(memory_format=torch.channels_last)
        side[5] = torch.cat([side[5].new_zeros(1), side[5]])[1:]
        side[0] = torch.cat([side[0], side[0]], 1)[:, :7]
    wide = [[tensor.double() for tensor in side] for side in (first, second)]
    torch.testing.assert_close(
        triton.multi_tensor_dot(first, second, True), reference.multi_tensor_dot(*wide, True)
    )
    assert _ticket() == 0


def test_dot_passes_over_none_and_is_0_of_nothing():
    first, second = random_lists(((5,), (3, 2)), F32)
    expected = triton.multi_tensor_dot(first[:1], second[:1])
    assert torch.equal(triton.multi_tensor_dot([first[0], None], second), expected)
    for empty in ([], [None], [torch.ones(0)]):
        assert triton.multi_tensor_dot(empty, empty, True).tolist() == [0, 0, 0]


def test_dot_has_the_same_bits_again():
    lists = random_lists(((70_000,), *((300,),) * 20), F32)
    outputs = [triton.multi_tensor_dot(*lists, True) for _ in range(3)]
    assert all(torch.equal(later, outputs[0]) for later in outputs)


# ---- temporal_ensemble_


def visited(rows, classes):
    (student,), (ensemble,) = OPS["temporal_ensemble_"].make(((rows, classes),), F32)
    return ensemble, torch.arange(len(ensemble)).flip(0)[:rows].contiguous(), student


CLASSES = pytest.mark.parametrize("classes", [10, 1000, 17_000])


def _both(ensemble, index, student, *options):
    """Loss, gradient and ensemble of the reference and of Triton."""
    found = []
    for backend in (reference, triton):
        moved = ensemble.clone()
        found.append(
            (*backend.temporal_ensemble_(moved, index, student, *options, with_gradient=True), moved)
        )
    return found


@pytest.mark.parametrize("correction", ["bias", "renormalize", "none"])
@pytest.mark.parametrize("updates", [0, 1, 7, 10_000])
@pytest.mark.parametrize("alpha", [0.0, 0.6, 0.999])
def test_updates_on_the_device(correction, updates, alpha):
    """As the kernel reads them, and as the host gives them."""
    ensemble, index, student = visited(5, 10)
    for count in (updates, torch.tensor(updates), torch.tensor([updates], dtype=torch.int32)):
        expected, found = _both(ensemble, index.int(), student, alpha, count, correction, "none")
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("student_dtype", "dtype"), [(F64, BF16), (BF16, F64), (F64, F16), (F32, BF16)])
def test_ensemble_and_logits_of_two_dtypes(student_dtype, dtype):
    ensemble, index, student = visited(5, 1000)
    expected, found = _both(ensemble.to(dtype), index, student.to(student_dtype), 0.6, 3)
    torch.testing.assert_close(found, expected)  # of a gradient or an average: in their own dtype


@CLASSES
@pytest.mark.parametrize("correction", ["bias", "renormalize"])
def test_masked_nan_and_untargeted_rows(correction, classes):
    ensemble, index, student = visited(6, classes)
    student[1], student[2, 3:] = -torch.inf, -torch.inf
    student[3, 2] = torch.nan
    student[4] *= 1e4
    ensemble[index[5]] = 0
    expected, found = _both(ensemble, index, student, 0.6, 2, correction, "none")
    torch.testing.assert_close(found, expected, equal_nan=True)
    assert found[0][1] == 0 and not found[1][1].any() and torch.equal(found[2][index[1]], ensemble[index[1]])
    assert (found[0][5] == 0) == (correction == "renormalize")


@CLASSES
@pytest.mark.parametrize("outside", [-1, 9, 2**40])
def test_a_row_outside_the_ensemble_is_neither_read_nor_written(outside, classes, monkeypatch):
    """On a GPU nobody looks at the index; here the check that the CPU makes is taken away."""
    module = _module("temporal_ensemble")
    ensemble, index, student = visited(6, classes)
    index[2] = outside
    monkeypatch.setattr(module._C, "check_temporal_ensemble", lambda *arguments: None)
    moved = ensemble.clone()
    losses, gradient = triton.temporal_ensemble_(moved, index, student, 0.6, 2, "bias", "none", True)
    rest = [0, 1, 3, 4, 5]
    kept = ensemble.clone()
    monkeypatch.undo()
    expected = reference.temporal_ensemble_(kept, index[rest], student[rest], 0.6, 2, "bias", "none", True)
    assert losses[2].isnan() and gradient[2].isnan().all()
    torch.testing.assert_close((losses[rest], gradient[rest], moved), (*expected, kept))


def test_layouts_of_ensemble_and_logits():
    ensemble, index, student = visited(40, 70)
    wide = torch.cat([ensemble, ensemble], 1)[:, :70]
    strided = torch.stack([index, index], -1)[:, 0]
    expected, found = _both(ensemble, index, student.t().contiguous().t(), 0.6, 1, "bias", "mean")
    torch.testing.assert_close(found, expected)
    loss, gradient = triton.temporal_ensemble_(wide, strided, student, 0.6, 1, "bias", "mean", True)
    torch.testing.assert_close((loss, gradient, wide), expected)


def test_several_tiles_to_a_program(monkeypatch):
    ensemble, index, student = visited(300, 200)
    for programs in (4096, 7):
        monkeypatch.setattr(_module("layout"), "_PROGRAMS", programs)
        expected, found = _both(ensemble, index, student, 0.6, 2, "bias", "mean")
        torch.testing.assert_close(found, expected)
        again = _both(ensemble, index, student, 0.6, 2, "bias", "mean")[1]
        assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True)) and _ticket() == 0


# ---- sharpen


@CLASSES
def test_sharpen_rows_and_temperatures(classes):
    """Zeros, subnormal and huge numbers, and what is negative or NaN; temperatures in memory, near 0 and large."""
    probs = torch.rand(6, classes)
    probs[0], probs[1] = 0, probs[1] * 1e-38
    probs[2, 3], probs[3, 1] = -0.5, torch.nan
    probs[4], probs[5] = 0, probs[5] * 1e30
    probs[4, 0] = -1
    for temperature in (
        0.5,
        1.0,
        10.0,
        1e-30,
        1e30,
        1e-300,
        1e300,
        torch.tensor(0.4),
        torch.tensor(3.0, dtype=F64),
    ):
        torch.testing.assert_close(
            triton.sharpen(probs, temperature, -1), reference.sharpen(probs, temperature, -1), equal_nan=True
        )


def test_sharpen_layouts():
    for make in (
        lambda t: t.transpose(1, 2).contiguous().transpose(1, 2),
        lambda t: t.contiguous(memory_format=torch.channels_last),
        lambda t: torch.stack([t, t], -1)[..., 0],
        lambda t: t[:1].expand_as(t),
    ):
        probs = make(torch.rand(3, 6, 5, 4))
        for dim in (0, 1, -1):
            found = triton.sharpen(probs, 0.5, dim)
            torch.testing.assert_close(found, reference.sharpen(probs, 0.5, dim))
            assert found.stride() == torch.empty_like(probs).stride()
    with pytest.raises(
        NotImplementedError, match="sharpen: probs must have rows along at most 4 dims that lie"
    ):
        triton.sharpen(torch.rand((4,) * 6)[(slice(None, None, 2),) * 5], 0.5)
