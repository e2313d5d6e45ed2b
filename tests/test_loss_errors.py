"""What bad input to the losses gets: one sentence with op, argument, must and is, and nothing is written."""

import pytest
import torch

import mtkernels
from mtkernels import _C
from mtkernels._options import LossOptions
from mtkernels.backends import native, reference

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
        "student_temperature must be between 1e-30 and 1e30, got 0.0",
    ),
    "infinite temperature": (
        {"teacher_temperature": float("inf")},
        ValueError,
        "teacher_temperature must be between 1e-30 and 1e30, got inf",
    ),
    "temperature that is 0 in float32": (
        {"student_temperature": 1e-40},
        ValueError,
        "student_temperature must be between 1e-30 and 1e30, got 1e-40",
    ),
    "temperature that leaves nothing": (
        {"teacher_temperature": 1e300},
        ValueError,
        "teacher_temperature must be between 1e-30 and 1e30, got 1e+300",
    ),
    "temperature past floats": (
        {"teacher_temperature": 10**400},
        ValueError,
        "teacher_temperature must be between 1e-30 and 1e30, got a larger number than a float holds",
    ),
    "student's temperature in a tensor": (
        {"student_temperature": torch.tensor(1.0)},
        TypeError,
        "student_temperature must be a number, got Tensor",
    ),
    "teacher's temperature in a tensor": (
        {"teacher_temperature": torch.tensor(1.0)},
        TypeError,
        "teacher_temperature must be a number, got Tensor",
    ),
    "temperature of no kind": (
        {"teacher_temperature": "1"},
        TypeError,
        "teacher_temperature must be a number, got str",
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
    "smoothing in a tensor": (
        {"label_smoothing": torch.tensor(0.0)},
        TypeError,
        "label_smoothing must be a number, got Tensor",
    ),
    "hard of no kind": ({"hard": 1}, TypeError, "hard must be a bool, got int"),
    "hard labels that learn": (
        {"hard": True, "two_sided": True},
        ValueError,
        "hard must be False where two_sided is True (labels have no gradient), got True",
    ),
}


OF_TARGETS = {"hard", "label_smoothing"}  # only softmax_cross_entropy has them
OPTION_CASES = [
    (name, case)
    for name in SOFTMAX_LOSSES
    for case, (options, *_) in OPTION.items()
    if name == "softmax_cross_entropy" or not options.keys() & OF_TARGETS
]


@pytest.mark.parametrize(("name", "case"), OPTION_CASES)
def test_losses_refuse_options(name, case):
    options, error, message = OPTION[case]
    with pytest.raises(error) as caught:
        getattr(mtkernels, name)(L.clone().requires_grad_(), L, **options)
    assert str(caught.value) == f"{name}: {message}"


OF_LOGITS = [
    (name, option)
    for name in [*SOFTMAX_LOSSES, "logit_mse"]
    for option in LossOptions._fields
    if (option in OF_TARGETS and name != "softmax_cross_entropy")
    or (option != "weight" and name == "logit_mse")
]
FOREIGN = {
    "student_temperature": (2.0, "1", "2.0"),
    "teacher_temperature": (0.5, "1", "0.5"),
    "center": (torch.ones(3), "None", "a tensor"),
    "threshold": (0.9, "None", "0.9"),
    "hard": (True, "False", "True"),
    "label_smoothing": (0.1, "0", "0.1"),
}


@pytest.mark.parametrize("backend", [native, reference], ids=["native", "reference"])
@pytest.mark.parametrize(("name", "option"), OF_LOGITS)
def test_backends_refuse_options_that_a_loss_does_not_have(name, option, backend):
    value, must, got = FOREIGN[option]
    with pytest.raises(ValueError) as caught:
        getattr(backend, name)(L, L, -1, "mean", 0, LossOptions(**{option: value}))
    assert str(caught.value) == f"{name}: {option} must be {must}, as this loss has no such option, got {got}"


@pytest.mark.parametrize("name", [*SOFTMAX_LOSSES, "logit_mse"])
@pytest.mark.parametrize(
    ("gradients", "error", "message"),
    [
        (9, ValueError, "0 (none), 1 (the student's), 2 (the teacher's) or 3 (both), got 9"),
        (-1, ValueError, "0 (none), 1 (the student's), 2 (the teacher's) or 3 (both), got -1"),
        (2**70, ValueError, f"0 (none), 1 (the student's), 2 (the teacher's) or 3 (both), got {2**70}"),
        ("1", TypeError, "an int, got str"),
    ],
)
def test_gradients_are_of_one_side_or_both(name, gradients, error, message):
    calls = (
        lambda: getattr(native, name)(L, L, -1, "mean", gradients),
        lambda: _C.check_consistency(name, L, L, -1, "mean", None, gradients),
    )
    for call in calls:
        with pytest.raises(error) as caught:
            call()
        assert str(caught.value) == f"{name}: gradients must be {message}"


def test_the_registered_op_refuses_what_it_would_guess():
    op = torch.ops.mtkernels.softmax_mse
    with pytest.raises(ValueError, match=r"^softmax_mse: gradients must be 0 .*, got 9$"):
        op(L, L, -1, "mean", 9, 1.0, 1.0, None, None, None, None, False, 0.0)
    with pytest.raises(ValueError) as caught:
        op(L, L, -1, "mean", 0, 1.0, 1.0, None, None, 0.5, torch.tensor(0.5), False, 0.0)
    assert str(caught.value) == "softmax_mse: threshold must be a number or a tensor, got both"


def test_a_dim_of_thousands_of_digits():
    with pytest.raises(ValueError) as caught:
        mtkernels.softmax_mse(L, L, dim=10**5000)
    message = "softmax_mse: dim must be a dim of student [4, 3], got an int of thousands of digits"
    assert str(caught.value) == message


def test_a_temperature_in_a_tensor_does_not_compile():
    torch._dynamo.reset()

    @torch.compile(fullgraph=True)
    def loss(temperature):
        return mtkernels.softmax_mse(L, L, student_temperature=temperature)

    with pytest.raises(torch._dynamo.exc.Unsupported) as caught:
        loss(torch.tensor(1.0))
    assert "student_temperature must be a number, got Tensor" in str(caught.value)


VMAP = {
    "center": (
        lambda a, b: mtkernels.softmax_mse(a, b, center=a[0]),
        "center must not be mapped by torch.vmap, got in_dim 0",
    ),
    "threshold": (
        lambda a, b: mtkernels.softmax_mse(a, b, threshold=0.5),
        "threshold must be None under torch.vmap (call it once on the whole batch, with dim), got 0.5",
    ),
    "live threshold": (
        lambda a, b: mtkernels.softmax_mse(a, b, threshold=torch.tensor(0.5)),
        "threshold must be None under torch.vmap (call it once on the whole batch, with dim), got a tensor",
    ),
}


@pytest.mark.parametrize("case", VMAP)
def test_vmap_refuses(case):
    function, message = VMAP[case]
    with pytest.raises(NotImplementedError) as caught:
        torch.vmap(function)(torch.randn(2, 4, 3), torch.randn(2, 4, 3))
    assert str(caught.value) == f"softmax_mse: {message}"
