"""The losses of the Triton backend in Triton's interpreter, which takes a tenth of a second for a small call."""

import itertools

import pytest
import torch
from test_triton import (  # noqa: F401
    BF16,
    F16,
    F32,
    F64,
    LOSSES,
    OBJECTIVE,
    _check,
    _module,
    bfloat16_to_nearest,
    dtypes,
    interpreted,
    pytestmark,
)

from mtkernels._options import LossOptions
from mtkernels.backends import reference
from mtkernels.testing import NAN_OPTIONS, OPS, check_empty_heads, check_ignored_weights, check_nan_rows

if interpreted:
    from mtkernels.backends import triton

losses = pytest.mark.parametrize("op", LOSSES, ids=lambda op: op.name)
family = pytest.mark.parametrize("op", [*LOSSES, OBJECTIVE], ids=lambda op: op.name)
# How a row is read: once, in one block; or several times, in blocks made short for the test.
walks = pytest.mark.parametrize("blocks", [False, True], ids=["one_block", "blocks"], indirect=True)


@pytest.fixture(autouse=True)
def one_thread():
    """The yardstick's tensors are small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def blocks(request, monkeypatch):
    layout = _module("layout")
    if request.param:
        monkeypatch.setattr(layout, "_ONE_BLOCK", 32)
        monkeypatch.setattr(layout, "_ONE_STRIDED_BLOCK", 8)
        layout.layout.cache_clear()
    yield request.param
    layout.layout.cache_clear()


def _rows():
    for op in (*LOSSES, OBJECTIVE):
        for options in op.options:
            name = "-".join(f"{key}_{value}" for key, value in options.items())
            yield pytest.param(op, options, id=f"{op.name}-{name or 'plain'}")


@walks
@pytest.mark.parametrize(("op", "options"), list(_rows()))
def test_options(op, options, blocks):
    _check(op, lambda seed: op.make(((17, 45),), F32, seed=seed), draws=1, **options)


CASES = {
    name: shapes for name, shapes in OBJECTIVE.cases.items() if name not in ("tile edge", "131072 classes")
}


@pytest.mark.parametrize("case", CASES)
@family
def test_sizes(op, case):
    options = {} if op is OBJECTIVE else {"gradients": 3}
    _check(op, lambda seed: op.make(CASES[case], F32, seed=seed), draws=1, **options)


def test_rows_too_long_for_a_block():
    op = OPS["softmax_js"]
    _check(op, lambda seed: op.make(((1, 20000),), F32, seed=seed), draws=1)


@pytest.mark.parametrize("dtype", [F64, F16, BF16], ids=str)
@family
def test_dtypes(op, dtype):
    _check(op, lambda seed: op.make(((9, 30),), dtype, seed=seed), draws=1)


@pytest.mark.parametrize(("student", "teacher"), [(F16, F32), (BF16, F16), (F32, F64), (F64, BF16)])
@pytest.mark.parametrize("name", ["softmax_js", "logit_mse", "mean_teacher_loss"])
def test_mixed_dtypes(name, student, teacher):
    op = OPS[name]

    def make(seed):
        a, b = op.make(((5, 20),), F64, seed=seed)
        return [tensor.to(student) for tensor in a], [tensor.to(teacher) for tensor in b]

    _check(op, make, draws=1, **({} if op is OBJECTIVE else {"gradients": 3}))


LAYOUTS = {
    "contiguous": lambda t: t,
    "transposed": lambda t: t.transpose(1, 2).contiguous().transpose(1, 2),
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "offset": lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view_as(t),
    "gaps": lambda t: torch.stack([t, t], -1)[..., 0],
    "expanded": lambda t: t[:1].expand_as(t),
}


@pytest.mark.parametrize("student_layout", LAYOUTS)
@pytest.mark.parametrize("name", ["softmax_mse", "logit_mse", "mean_teacher_loss"])
def test_layouts_of_logits(name, student_layout):
    op = OPS[name]
    options = {} if op is OBJECTIVE else {"reduction": "none", "gradients": 3, "weight": True}
    for teacher_layout, dim in ((student_layout, 1), ("transposed", -1)):

        def make(seed, teacher_layout=teacher_layout):
            students, teachers = op.make(((2, 6, 3, 4),), F32, seed=seed)
            return [LAYOUTS[student_layout](t) for t in students], [
                LAYOUTS[teacher_layout](t) for t in teachers
            ]

        _check(op, make, draws=1, dim=dim, **options)
    if op is not OBJECTIVE:
        (student,), (teacher,) = make(0)
        _, dstudent, dteacher, _ = getattr(triton, name)(student, teacher, 1, "mean", 3)
        assert dstudent.stride() == torch.empty_like(student).stride()
        assert dteacher.stride() == torch.empty_like(teacher).stride()


def test_strided_weights_center_and_labels():
    (student,), (teacher,) = OPS["softmax_kl"].make(((4, 9, 3, 2),), F32)
    weight, center = torch.rand(2, 3, 4).permute(2, 1, 0), torch.randn(9, 2)[:, 0]
    ours, theirs = (
        backend.softmax_kl(student, teacher, 1, "none", 3, LossOptions(2.0, 0.5, center, weight, 0.2))
        for backend in (triton, reference)
    )
    torch.testing.assert_close(ours, theirs)
    labels = torch.randint(-1, 9, (2, 3, 4)).permute(2, 1, 0)
    ours, theirs = (
        backend.mean_teacher_loss(student, teacher, labels, dim=1, by_labeled=True, with_gradient=True)
        for backend in (triton, reference)
    )
    torch.testing.assert_close(ours, theirs)


@losses
def test_row_dims_that_lie_apart(op):
    def make(dims):
        return lambda seed: tuple(
            [tensor[(slice(None, None, 2),) * dims]]
            for (tensor,) in op.make(((4,) * dims + (5,),), F32, seed=seed)
        )

    if op.name == "softmax_mse":
        _check(op, make(4), draws=1, reduction="none")
    with pytest.raises(
        NotImplementedError, match=f"{op.name}: student must have rows along at most 4 dims that lie"
    ):
        op.call(triton, make(5)(0))


@walks
@pytest.mark.parametrize("dim", [-1, 0])
@losses
def test_large_and_masked_logits(op, dim, blocks):
    def make(seed):
        (student,), (teacher,) = op.make(((7, 50) if dim else (50, 7),), F32, seed=seed)
        a, b = student.movedim(dim, -1), teacher.movedim(dim, -1)
        a[0], b[0] = a[0] * 1e4, b[0] * -1e4
        a[1, :20] = b[1, :20] = -torch.inf
        b[2, 3:] = -torch.inf
        a[3], b[3, 7:] = -torch.inf, -torch.inf
        b[4] = -torch.inf
        a[5] += 40 * torch.arange(50)  # p and q far apart in every class
        return [student], [teacher]

    _check(op, make, draws=1, dim=dim, reduction="none")
    row_losses, dstudent, dteacher, _ = getattr(triton, op.name)(*(x for (x,) in make(0)), dim, "none", 3)
    for gradient in (dstudent, dteacher):
        assert not row_losses[3:5].any() and not gradient.movedim(dim, -1)[3:5].any()


@walks
@losses
def test_infinite_and_nan_logits_stay_in_their_row(op, blocks):
    (student,), (teacher,) = op.make(((6, 50),), F32)
    student[0, 5], student[1, 7] = -torch.inf, torch.nan
    row_losses, dstudent, dteacher, _ = getattr(triton, op.name)(student, teacher, -1, "none", 3)
    infinite = op.name in ("softmax_kl", "softmax_cross_entropy", "logit_mse")
    assert row_losses[0].isinf() if infinite else row_losses[0].isfinite()
    assert row_losses[1].isnan() and row_losses[2:].isfinite().all()
    if op.name != "logit_mse":
        assert dstudent[0].isfinite().all() and dstudent[1].isnan().all() and dteacher[1].isnan().all()
    assert dstudent[2:].isfinite().all() and dteacher[2:].isfinite().all()


@walks
@losses
def test_a_nan_shows_in_its_row_and_in_no_other(op, blocks):
    for options in NAN_OPTIONS[op.name]:
        check_nan_rows(op, triton, F32, 50, **options)


@walks
@losses
def test_the_weight_of_a_row_that_does_not_count_may_be_anything(op, blocks):
    check_ignored_weights(op, triton, 50)


@walks
@pytest.mark.parametrize("options", [None, LossOptions(0.3, 0.3)], ids=["plain", "temperature"])
@losses
def test_equal_sides_give_exactly_zero(op, options, blocks):
    if options and op.name == "logit_mse":
        pytest.skip("no temperature")
    for dtype, dim in ((F32, -1), (BF16, 0)):
        (student,), _ = op.make(((6, 50),), dtype)
        loss, *gradients, _ = getattr(triton, op.name)(student, student.clone(), dim, "mean", 3, options)
        if op.name == "softmax_cross_entropy":  # the entropy, and its gradient for the teacher
            assert not gradients[0].any()
        else:
            assert loss == 0 and not gradients[0].any() and not gradients[1].any()


@walks
@losses
def test_a_row_of_factor_0_counts_for_nothing_whatever_it_holds(op, blocks):
    (student,), (teacher,) = op.make(((6, 50),), F32)
    weight = torch.tensor([1.0, 0.0, 2.0, 0.0, 0.5, 0.0])
    expected = getattr(reference, op.name)(student, teacher, -1, "mean", 3, LossOptions(weight=weight))
    student[1], teacher[3, 4], student[5, 7] = torch.nan, torch.inf, torch.inf
    outputs = getattr(triton, op.name)(student, teacher, -1, "mean", 3, LossOptions(weight=weight))
    torch.testing.assert_close(outputs, expected)


@walks
def test_thresholds(blocks):
    """A number, or one that lies beside the logits; what cannot be told is kept, and masked rows are not."""
    (student,), (teacher,) = OPS["softmax_kl"].make(((40, 50),), F32)
    teacher[3, 1], teacher[4], teacher[5] = torch.nan, -torch.inf, 0
    for threshold in (0.3, torch.tensor(0.3), torch.tensor([0.3], dtype=F64)):
        for reduction in ("none", "sum"):
            arguments = (student, teacher, -1, reduction, 3, LossOptions(threshold=threshold))
            torch.testing.assert_close(
                triton.softmax_kl(*arguments), reference.softmax_kl(*arguments), equal_nan=True
            )
    loss, _, _, utilization = triton.softmax_kl(
        student[:0], teacher[:0], -1, "none", 0, LossOptions(threshold=0.3)
    )
    assert loss.shape == (0,) and utilization == 0


@walks
def test_hard_targets_are_the_first_largest(blocks):
    """NaN counts as largest, and a tie may lie across blocks."""
    (student,), (teacher,) = OPS["softmax_cross_entropy"].make(((6, 50),), F32)
    teacher = teacher.round()
    teacher[0] = 1
    teacher[1, [3, 30]], teacher[2, [11, 40]], teacher[3, [0, 47]] = (
        50,
        torch.nan,
        torch.tensor([torch.inf, torch.nan]),
    )
    options = LossOptions(hard=True, teacher_temperature=0.5)
    outputs = triton.softmax_cross_entropy(student, teacher, -1, "none", 1, options)
    torch.testing.assert_close(
        outputs, reference.softmax_cross_entropy(student, teacher, -1, "none", 1, options)
    )


@pytest.mark.parametrize("temperature", [1e-30, 0.07, 3.0, 1e30])
def test_temperatures_of_any_size(temperature):
    (student,), (teacher,) = OPS["softmax_kl"].make(((6, 50),), F32)
    student[1, 3] = teacher[1, 3] = -torch.inf
    teacher[2, 5:9] = -torch.inf
    arguments = (student, teacher, -1, "none", 0, LossOptions(temperature, temperature))
    torch.testing.assert_close(triton.softmax_kl(*arguments)[0], reference.softmax_kl(*arguments)[0])


@family
def test_the_same_bits_again_and_the_ticket_back_at_zero(op, monkeypatch):
    """Also with several tiles to a program, which the size of no quick test asks for."""
    layout = _module("layout")
    inputs = op.make(((20, 200),), F32)
    options = {"by_labeled": True} if op is OBJECTIVE else {"gradients": 3}
    expected = op.call(reference, inputs, **options)
    for programs in (4096, 2):
        monkeypatch.setattr(layout, "_PROGRAMS", programs)
        outputs = [op.call(triton, inputs, **options) for _ in range(2)]
        for later in outputs:
            torch.testing.assert_close(later, expected)
            assert all(torch.equal(ours, first) for ours, first in zip(later, outputs[0], strict=True))
        assert _module("launch").ticket_of(torch.device("cpu")).item() == 0


def test_gradients_are_left_out_unless_asked_for():
    (student,), (teacher,) = OPS["softmax_kl"].make(((3, 20),), F32)
    for name in (op.name for op in LOSSES):
        loss, dstudent, dteacher, utilization = getattr(triton, name)(student, teacher)
        assert dstudent is dteacher is utilization is None
        assert torch.equal(loss, getattr(triton, name)(student, teacher, gradients=3)[0])


# ---- mean_teacher_loss


def _objective(classes=23, rows=19):
    (student, second), (teacher, _) = OBJECTIVE.make(((rows, classes),), F32)
    labels = torch.arange(rows) % (classes + 1) - 1
    return student, teacher, labels, second


@walks
@pytest.mark.parametrize("kl", [False, True])
@pytest.mark.parametrize("heads", [1, 2])
def test_objective_of_masked_infinite_and_tied_logits(heads, kl, blocks):
    student, teacher, labels, second = _objective(classes=45, rows=23)
    student.round_(), teacher.round_()
    student[2], teacher[3], second[4] = -torch.inf, -torch.inf, -torch.inf
    student[5, 7:20] = second[5, 7:20] = teacher[5, 7:20] = -torch.inf
    student[6, labels[6]], teacher[7, labels[7]] = -torch.inf, torch.nan
    arguments = (student, teacher, labels, second if heads == 2 else None, -1, 2.0, 0.5, kl, True, -1)
    ours, theirs = (backend.mean_teacher_loss(*arguments, True) for backend in (triton, reference))
    torch.testing.assert_close(ours, theirs, equal_nan=True)
    for weightless in (
        0.0,
        torch.zeros(()),
    ):  # 0, whatever the logits hold; read by the kernel where it lies there
        outputs = triton.mean_teacher_loss(*arguments[:5], weightless, weightless, *arguments[7:], True)
        assert not outputs[1][1:].any() and outputs[3][7].isfinite().all()


@walks
@pytest.mark.parametrize("kl", [False, True])
def test_a_head_that_is_masked_throughout_has_no_distance(kl, blocks):
    check_empty_heads(triton, kl, 50)


@pytest.mark.parametrize("launches", [1, 2])
def test_labeled_rows_are_counted_first(launches, monkeypatch):
    module = _module("mean_teacher_loss")
    monkeypatch.setattr(module, "_COUNTED", 1 << 20 if launches == 1 else 0)
    monkeypatch.setattr(module, "PARTIALS", 16)
    student, teacher, labels, _ = _objective(rows=137)
    for labels_dtype, ignored in ((torch.int64, -1), (torch.int32, 5)):
        arguments = (
            student,
            teacher,
            labels.to(labels_dtype) % 23,
            None,
            -1,
            torch.tensor(3.0),
            0.0,
            False,
            True,
        )
        ours, theirs = (
            backend.mean_teacher_loss(*arguments, ignored, True) for backend in (triton, reference)
        )
        torch.testing.assert_close(ours, theirs)
    none = torch.full_like(labels, -1)
    outputs = triton.mean_teacher_loss(student, teacher, none, by_labeled=True, with_gradient=True)
    assert outputs[1][0] == 0 and not outputs[2].any()


@walks
@pytest.mark.parametrize("label", [23, -2, 2**31 - 1, -(2**31)])
def test_a_label_that_is_no_class_is_not_followed(label, blocks, monkeypatch):
    """On a GPU nobody looks at the labels before the kernel: as here, where the check is taken away."""
    module = _module("mean_teacher_loss")
    monkeypatch.setattr(module, "_C", type("Unchecked", (), {"check_mean_teacher_loss": lambda *_: None}))
    student, teacher, labels, second = _objective()
    labels[4] = label
    total, parts, counts, dstudent, _ = triton.mean_teacher_loss(
        student, teacher, labels, second, with_gradient=True
    )
    assert total.isnan() and parts[0].isnan() and parts[1:].isfinite().all()
    assert counts[0] == (labels != -1).sum()
    others = torch.arange(len(labels)) != 4
    assert dstudent[4].isnan().all() and dstudent[others].isfinite().all()


def test_equal_objectives_whatever_the_gradient():
    student, teacher, labels, second = _objective()
    for second_, kl in itertools.product((None, second), (False, True)):
        arguments = (student, teacher, labels, second_, -1, 1.5, 0.5, kl)
        with_, without = (
            triton.mean_teacher_loss(*arguments, with_gradient=wanted) for wanted in (True, False)
        )
        assert all(torch.equal(a, b) for a, b in zip(with_[:3], without[:3], strict=True))
        assert without[3] is without[4] is None and (with_[4] is None) == (second_ is None)
