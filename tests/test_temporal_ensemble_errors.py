"""What bad input to temporal_ensemble_ gets: one sentence with op, argument, must and is, and nothing is written."""

import pytest
import torch

import mtkernels


def visited(requires_grad=False):
    """An ensemble of 10 samples, an index of 6 of them, and their logits."""
    torch.manual_seed(0)
    return torch.rand(10, 11), torch.randperm(10)[:6], torch.randn(6, 11, requires_grad=requires_grad)


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
    "updates past integers": (
        lambda z, i, s: ((z, i, s), {"updates": 2**64}),
        ValueError,
        f"updates must be at least 0 and below 2^63, got {2**64}",
    ),
    "alpha past floats": (
        lambda z, i, s: ((z, i, s), {"updates": 1, "alpha": 10**400}),
        ValueError,
        "alpha must be at least 0 and below 1, got a larger number than a float holds",
    ),
    "alpha in a tensor": (
        lambda z, i, s: ((z, i, s), {"updates": 1, "alpha": torch.tensor(0.5)}),
        TypeError,
        "alpha must be a number, got Tensor",
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
    "the ensemble's own rows as the student": (
        lambda z, i, s: ((z, i, z[4:]), {"updates": 1}),
        ValueError,
        "ensemble must lie in memory apart from student's, got memory that overlaps it",
    ),
    "the ensemble's memory, transposed": (
        lambda z, i, s: ((z, i, z.view(11, 10)[:, :6].t()), {"updates": 1}),
        ValueError,
        "ensemble must lie in memory apart from student's, got memory that overlaps it",
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


def test_ensemble_refuses_vmap_before_anything_is_written():
    ensemble, index, student = visited()
    before = ensemble.clone()
    with pytest.raises(NotImplementedError) as refused:
        torch.vmap(lambda s: mtkernels.temporal_ensemble_(ensemble, index[:1], s[None], updates=1))(student)
    assert str(refused.value) == TE + (
        "its tensors must not be mapped by torch.vmap (call it once on the rows of all samples), got a mapped one"
    )
    assert torch.equal(ensemble, before)


def test_the_registered_ensemble_refuses_what_it_would_guess():
    ensemble, index, student = visited(requires_grad=True)
    op = torch.ops.mtkernels.temporal_ensemble_
    with pytest.raises(ValueError) as refused:
        op(ensemble, index, student, 0.6, 1, torch.tensor(1), "bias", "mean", True)
    assert str(refused.value) == TE + "updates must be a number or a tensor, got both"
    loss, _ = op(ensemble, index, student, 0.6, 1, None, "bias", "mean", False)
    with pytest.raises(RuntimeError) as refused:
        loss.backward()
    assert str(refused.value) == TE + (
        "with_gradient must be True in the forward call of torch.ops.mtkernels, got False"
    )
