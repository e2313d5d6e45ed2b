"""The losses of equal sides, of masked, huge and NaN logits, on every backend that this machine runs."""

import pytest
import torch
from test_ops import TARGETS, _backend, dtypes, losses, targets

from mtkernels.testing import NAN_OPTIONS, check, check_empty_heads, check_ignored_weights, check_nan_rows

and_reference = pytest.mark.parametrize(
    ("backend", "device"), [pytest.param("reference", "cpu", id="reference"), *TARGETS]
)
INFINITE = ("softmax_kl", "softmax_cross_entropy", "logit_mse")  # where the student alone excludes a class


@targets
@dtypes
@losses
def test_equal_sides_give_exactly_zero(op, dtype, backend, device):
    for classes in (10, 100, 5000):
        (student,), _ = op.make(((7, classes),), dtype, device)
        loss, *gradients = op.call(_backend(backend), ([student], [student.clone()]), gradients=3)
        if (
            op.name == "softmax_cross_entropy"
        ):  # the loss is the teacher's entropy, which the teacher's gradient lowers
            assert not gradients[0].any()
        else:
            assert loss == 0 and not any(gradient.any() for gradient in gradients)


@targets
@losses
def test_large_and_masked_logits(op, backend, device):
    def make(seed):
        (student,), (teacher,) = op.make(((6, 50),), torch.float32, device, seed)
        student[0], teacher[0] = student[0] * 1e4, teacher[0] * -1e4
        student[1, :20] = teacher[1, :20] = -torch.inf
        teacher[2, 3:] = -torch.inf
        student[3], teacher[3, 7:] = -torch.inf, -torch.inf
        teacher[4] = -torch.inf
        student[4, 1], teacher[3, 2] = torch.nan, torch.nan  # opposite a masked row
        return [student], [teacher]

    for reduction in ("none", "sum"):
        check(op, _backend(backend), make, reduction=reduction)
    losses, gradient = op.call(_backend(backend), make(0), reduction="none")
    excluded = op.name in (
        "softmax_reverse_kl",
        "logit_mse",
    )  # infinite where the teacher alone excludes a class
    finite = [0, 1, 3, 4, 5] if excluded else slice(None)
    assert losses[finite].isfinite().all() and gradient[finite].isfinite().all()
    assert losses[2].isinf() == excluded
    assert not losses[3:5].any() and not gradient[3:5].any()


@targets
@losses
def test_a_student_that_excludes_the_teachers_class(op, backend, device):
    """KL is infinite there, as torch's; NaN logits give NaN, in their row only."""
    (student,), (teacher,) = op.make(((3, 60),), torch.float32, device)
    student[0, 5], student[1, 7] = -torch.inf, torch.nan
    losses, gradient = op.call(_backend(backend), ([student], [teacher]), reduction="none")
    assert losses[0].isinf() if op.name in INFINITE else losses[0].isfinite()
    assert losses[1].isnan() and gradient[1].isnan().any()
    assert losses[2].isfinite() and gradient[2].isfinite().all()
    assert op.name == "logit_mse" or (gradient[0].isfinite().all() and gradient[1].isnan().all())


@and_reference
@dtypes
@losses
def test_a_nan_shows_in_its_row_and_in_no_other(op, dtype, backend, device):
    for classes in (10, 100, 3001) if dtype is torch.float32 else (10, 100):
        for options in NAN_OPTIONS[op.name]:
            check_nan_rows(op, _backend(backend), dtype, classes, device, **options)


@and_reference
@pytest.mark.parametrize("classes", [10, 100])
@losses
def test_the_weight_of_a_row_that_does_not_count_may_be_anything(op, classes, backend, device):
    check_ignored_weights(op, _backend(backend), classes, device)


@and_reference
@pytest.mark.parametrize("kl", [False, True])
def test_a_head_that_is_masked_throughout_has_no_distance(kl, backend, device):
    for classes in (10, 100):
        check_empty_heads(_backend(backend), kl, classes, device)
