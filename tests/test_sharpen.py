"""sharpen beyond test_ops.py: range, layouts, registration, refusals."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import mtkernels
from mtkernels.backends import native, reference
from mtkernels.testing import FLOATS

F32, F64, F16, BF16 = FLOATS
backends = pytest.mark.parametrize("backend", [native, reference], ids=["native", "reference"])
dtypes = pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: str(dtype).removeprefix("torch."))


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
    "past floats": (
        (ROW, 10**400),
        ValueError,
        "temperature must be positive and finite, got a larger number than a float holds",
    ),
    "a word": (
        (ROW, "cold"),
        TypeError,
        "temperature must be a number or a torch.Tensor that holds one, got str",
    ),
    "several": ((ROW, torch.ones(2)), ValueError, "temperature must be a number or hold one, got shape [2]"),
    "integers": (
        (ROW, torch.ones(()).long()),
        TypeError,
        "temperature must be float32 or float64, got torch.int64",
    ),
    "dim": ((ROW, 0.5, 2), ValueError, "dim must be a dim of probs [2, 3], got 2"),
    "dim past integers": ((ROW, 0.5, 2**70), ValueError, f"dim must be a dim of probs [2, 3], got {2**70}"),
    "dim as a float": ((ROW, 0.5, 1.0), TypeError, "dim must be an int, got float"),
}


@pytest.mark.parametrize("case", SHARPEN_ERRORS)
def test_sharpen_refuses(case):
    arguments, kind, message = SHARPEN_ERRORS[case]
    with pytest.raises(kind) as refused:
        mtkernels.sharpen(*arguments[:2], **({"dim": arguments[2]} if len(arguments) > 2 else {}))
    assert str(refused.value) == "sharpen: " + message
