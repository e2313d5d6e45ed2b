"""What bad input to the losses gets: one sentence with op, argument, must and is, and nothing is written."""

import pytest
import torch

import mtkernels

L = torch.randn(4, 3)
LOSS = {
    "shape": (
        lambda: (L, torch.ones(4, 2)),
        {},
        ValueError,
        "teacher must have the shape of student [4, 3], got [4, 2]",
    ),
    "student dtype": (
        lambda: (torch.ones(4, 3, dtype=torch.int64), L),
        {},
        TypeError,
        "student must be float16, bfloat16, float32 or float64, got torch.int64",
    ),
    "teacher dtype": (
        lambda: (L, L.to(torch.complex64)),
        {},
        TypeError,
        "teacher must be float16, bfloat16, float32 or float64, got torch.complex64",
    ),
    "no tensor": (lambda: (None, L), {}, TypeError, "student must be a torch.Tensor, got NoneType"),
    "teacher no tensor": (lambda: (L, 3.0), {}, TypeError, "teacher must be a torch.Tensor, got float"),
    "0-d": (
        lambda: (L[0, 0], L[0, 0]),
        {},
        ValueError,
        "student must have a dim of classes, got a 0-d tensor",
    ),
    "no class": (
        lambda: (L[:, :0], L[:, :0]),
        {},
        ValueError,
        "student must have at least one class, got shape [4, 0]",
    ),
    "dim": (lambda: (L, L), {"dim": 2}, ValueError, "dim must be a dim of student [4, 3], got 2"),
    "dim past integers": (
        lambda: (L, L),
        {"dim": 2**70},
        ValueError,
        f"dim must be a dim of student [4, 3], got {2**70}",
    ),
    "negative dim": (lambda: (L, L), {"dim": -3}, ValueError, "dim must be a dim of student [4, 3], got -3"),
    "dim of no kind": (lambda: (L, L), {"dim": "x"}, TypeError, "dim must be an int, got str"),
    "reduction": (
        lambda: (L, L),
        {"reduction": "avg"},
        ValueError,
        "reduction must be 'mean', 'sum' or 'none', got 'avg'",
    ),
    "reduction of no kind": (
        lambda: (L, L),
        {"reduction": None},
        ValueError,
        "reduction must be 'mean', 'sum' or 'none', got None",
    ),
    "teacher that learns": (
        lambda: (L, L.clone().requires_grad_()),
        {},
        ValueError,
        "teacher must not require grad (it is a constant: detach it), got requires_grad=True",
    ),
    "sparse": (
        lambda: (L.to_sparse(), L),
        {},
        TypeError,
        "student must be a dense tensor in memory, got layout torch.sparse_coo, dtype torch.float32 on cpu",
    ),
    "neg": (
        lambda: (L, torch.ones(4, 3, dtype=torch.complex64).conj().imag),
        {},
        TypeError,
        "teacher must hold its values in memory (use resolve_neg()), got a lazy neg view",
    ),
}


SOFTMAX_LOSSES = ["softmax_mse", "softmax_kl", "softmax_reverse_kl", "softmax_js", "softmax_cross_entropy"]


@pytest.mark.parametrize("case", LOSS)
@pytest.mark.parametrize("name", [*SOFTMAX_LOSSES, "logit_mse"])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_losses_refuse(name, case, requires_grad):
    make, options, error, message = LOSS[case]
    student, teacher = make()
    if requires_grad and isinstance(student, torch.Tensor) and student.is_floating_point():
        student = student.clone().requires_grad_()
    if name == "logit_mse":
        options = {"two_sided": False, **options}
    with pytest.raises(error) as caught:
        getattr(mtkernels, name)(student, teacher, **options)
    assert str(caught.value) == f"{name}: {message}"


OPTION = {
    "temperature": (
        {"student_temperature": 0.0},
        ValueError,
        "student_temperature must be positive and finite, got 0.0",
    ),
    "infinite temperature": (
        {"teacher_temperature": float("inf")},
        ValueError,
        "teacher_temperature must be positive and finite, got inf",
    ),
    "temperature of no kind": (
        {"teacher_temperature": "1"},
        TypeError,
        "teacher_temperature must be a number, got str",
    ),
    "temperature that divides to infinity": (
        {"student_temperature": 1e-320},
        ValueError,
        "student_temperature must be positive and finite, got 1e-320",
    ),
    "center shape": (
        {"center": torch.ones(4)},
        ValueError,
        "center must have shape [3], one number for each class, got [4]",
    ),
    "center dtype": (
        {"center": torch.ones(3, dtype=torch.int64)},
        TypeError,
        "center must be float16, bfloat16, float32 or float64, got torch.int64",
    ),
    "center of no kind": ({"center": 1.0}, TypeError, "center must be a torch.Tensor, got float"),
    "center that learns": (
        {"center": torch.ones(3, requires_grad=True)},
        ValueError,
        "center must not require grad (it is a constant: detach it), got requires_grad=True",
    ),
    "weight shape": (
        {"weight": torch.ones(4, 1)},
        ValueError,
        "weight must have shape [4], one number for each row, got [4, 1]",
    ),
    "weight dtype": (
        {"weight": torch.ones(4, dtype=torch.bool)},
        TypeError,
        "weight must be float16, bfloat16, float32 or float64, got torch.bool",
    ),
    "threshold": ({"threshold": 1.5}, ValueError, "threshold must be between 0 and 1, got 1.5"),
    "threshold NaN": ({"threshold": float("nan")}, ValueError, "threshold must be between 0 and 1, got nan"),
    "threshold of two": (
        {"threshold": torch.ones(2)},
        ValueError,
        "threshold must be a number or hold one, got shape [2]",
    ),
    "threshold of integers": (
        {"threshold": torch.ones((), dtype=torch.int64)},
        TypeError,
        "threshold must be float32 or float64, got torch.int64",
    ),
    "utilization without a threshold": (
        {"return_utilization": True},
        ValueError,
        "threshold must be given where return_utilization is True, got None",
    ),
    "smoothing": (
        {"label_smoothing": 1.0},
        ValueError,
        "label_smoothing must be at least 0 and below 1, got 1.0",
    ),
    "smoothing of no kind": (
        {"label_smoothing": None},
        TypeError,
        "label_smoothing must be a number, got NoneType",
    ),
    "hard of no kind": ({"hard": 1}, TypeError, "hard must be a bool, got int"),
    "hard labels that learn": (
        {"hard": True, "two_sided": True},
        ValueError,
        "hard must be False where two_sided is True (labels have no gradient), got True",
    ),
}


@pytest.mark.parametrize("case", OPTION)
@pytest.mark.parametrize("name", SOFTMAX_LOSSES)
def test_losses_refuse_options(name, case):
    options, error, message = OPTION[case]
    if name != "softmax_cross_entropy" and options.keys() & {"hard", "label_smoothing"}:
        return  # no such option
    with pytest.raises(error) as caught:
        getattr(mtkernels, name)(L.clone().requires_grad_(), L, **options)
    assert str(caught.value) == f"{name}: {message}"
