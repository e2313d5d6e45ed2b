"""mean_teacher_loss against the same objective in torch's own ops; its counts; registered, compiled, refused."""

import pytest
import torch
import torch.nn.functional as F

import mtkernels
from mtkernels.backends import native, reference

ROWS, CLASSES = 19, 11


def inputs(rows=ROWS, classes=CLASSES, dtype=torch.float64):
    torch.manual_seed(0)
    heads = [2 * torch.randn(rows, classes, dtype=dtype) for _ in range(3)]
    labels = torch.randint(classes, (rows,))
    labels[::3] = -1
    return *(head.requires_grad_(k < 2) for k, head in enumerate(heads)), labels


def objective(student, second, teacher, labels, weight, cost, kl, labeled):
    d = student if second is None else second
    distance = (
        F.kl_div(d.log_softmax(-1), teacher.softmax(-1), reduction="batchmean")
        if kl
        else F.mse_loss(d.softmax(-1), teacher.softmax(-1))
    )
    class_loss = F.cross_entropy(student, labels, ignore_index=-1, reduction="sum")
    class_loss = class_loss / ((labels >= 0).sum() if labeled else len(labels))
    return class_loss, weight * distance, cost * F.mse_loss(student, d)


@pytest.mark.parametrize("classes", [11, 200])
@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("kl", [False, True])
@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("labeled", [False, True])
def test_it_is_the_published_objective(heads, kl, labeled, live, classes):
    student, second, teacher, labels = inputs(classes=classes)
    second = second if heads == 2 else None
    expected = objective(student, second, teacher, labels, 7.0, 0.3, kl, labeled)
    weight, cost = (torch.tensor(number) if live else number for number in (7.0, 0.3))
    result = mtkernels.mean_teacher_loss(
        student,
        teacher,
        labels,
        second=second,
        consistency="kl" if kl else "mse",
        consistency_weight=weight,
        logit_distance_cost=cost,
        normalize="labeled" if labeled else "batch",
    )
    if live:  # float32
        torch.testing.assert_close(result[1:4], expected, rtol=1e-6, atol=1e-7)
    else:
        torch.testing.assert_close(result[1:4], expected)
    torch.testing.assert_close(result.total, sum(result[1:4]))
    learning = [head for head in (student, second) if head is not None]
    gradients = torch.autograd.grad(result.total, learning)
    torch.testing.assert_close(gradients, torch.autograd.grad(sum(expected), learning), rtol=1e-6, atol=1e-8)
    assert not any(part.requires_grad for part in result[1:])


@pytest.mark.parametrize("classes", [1, 3, 11, 300])
@pytest.mark.parametrize("ties", [False, True])
def test_it_counts_correct_predictions(classes, ties):
    student, _, teacher, labels = inputs(300, classes, torch.float32)
    with torch.no_grad():
        labels[3], student[3, labels[3]] = 0, torch.nan
        if ties:
            student.round_(), teacher.round_()
        result = mtkernels.mean_teacher_loss(student, teacher, labels)
    labeled = labels >= 0
    assert result.labeled == labeled.sum()
    for logits, top1, top5 in (
        (student, result.student_top1, result.student_top5),
        (teacher, result.teacher_top1, result.teacher_top5),
    ):
        order = logits.nan_to_num(-1e9).sort(dim=-1, descending=True, stable=True).indices
        right = (
            (order == labels.unsqueeze(-1)) & labeled.unsqueeze(-1) & ~logits.isnan().any(-1, keepdim=True)
        )
        assert (top1, top5) == (right[:, :1].sum(), right[:, :5].sum())


def test_a_dense_map():
    torch.manual_seed(0)
    student, second, teacher = (torch.randn(2, 5, 6, 7, requires_grad=k < 2) for k in range(3))
    labels = torch.randint(-1, 5, (2, 6, 7))
    flat = [logits.movedim(1, -1).reshape(-1, 5) for logits in (student, second, teacher)]
    expected = objective(*flat, labels.flatten(), 2.0, 0.5, False, False)
    result = mtkernels.mean_teacher_loss(
        student, teacher, labels.int(), second=second, dim=1, consistency_weight=2.0, logit_distance_cost=0.5
    )
    torch.testing.assert_close(result[1:4], expected)
    torch.testing.assert_close(
        torch.autograd.grad(result.total, (student, second)),
        torch.autograd.grad(sum(expected), (student, second)),
    )


def test_gradcheck():
    student, second, teacher, labels = inputs(5, 4)

    def total(a, d):
        return mtkernels.mean_teacher_loss(
            a, teacher, labels, second=d, consistency_weight=3.0, logit_distance_cost=0.7
        ).total

    assert torch.autograd.gradcheck(total, (student, second))


def test_no_labels_no_rows_and_masked_rows():
    student, second, teacher, labels = inputs(dtype=torch.float32)
    for normalize in ("batch", "labeled"):
        nothing = mtkernels.mean_teacher_loss(
            student, teacher, torch.full_like(labels, -1), consistency_weight=0.0, normalize=normalize
        )
        assert nothing.total == 0 and nothing.labeled == 0
        empty = mtkernels.mean_teacher_loss(student[:0], teacher[:0], labels[:0], normalize=normalize)
        assert empty.total == 0 and not torch.autograd.grad(empty.total, student, allow_unused=True)[0].any()
    with torch.no_grad():
        student[1], teacher[2], second[4] = -torch.inf, -torch.inf, -torch.inf
    options = {"consistency_weight": 3.0, "logit_distance_cost": 0.0}
    result = mtkernels.mean_teacher_loss(student, teacher, labels, second=second, **options)
    gradients = torch.autograd.grad(result.total, (student, second))
    assert result.total.isfinite() and all(gradient.isfinite().all() for gradient in gradients)
    assert not gradients[0][1].any() and not gradients[1][[2, 4]].any()


def test_a_term_of_weight_0_does_not_look_at_its_logits():
    student, _, teacher, labels = inputs(dtype=torch.float32)
    teacher[0] = torch.nan
    result = mtkernels.mean_teacher_loss(student, teacher, labels, consistency_weight=0.0)
    (gradient,) = torch.autograd.grad(result.total, student)
    assert result.total.isfinite() and gradient.isfinite().all()


@pytest.mark.parametrize("live", [False, True])
def test_registered_and_compiled(live):
    student, second, teacher, labels = inputs()
    numbers = (None, None, torch.tensor(3.0), torch.tensor(0.5)) if live else (3.0, 0.5, None, None)
    arguments = (student, teacher, labels, second, -1, *numbers, True, False, -1, True)
    torch.library.opcheck(torch.ops.mtkernels.mean_teacher_loss.default, arguments)
    weight = torch.tensor(3.0) if live else 3.0

    def step(a, d):
        result = mtkernels.mean_teacher_loss(a * 2, teacher, labels, second=d, consistency_weight=weight)
        return result.total * 3, result.student_top1

    total, top1 = torch.compile(step, fullgraph=True)(student, second)
    expected, expected_top1 = step(student, second)
    torch.testing.assert_close(total, expected)
    assert top1 == expected_top1
    torch.testing.assert_close(
        torch.autograd.grad(total, (student, second)), torch.autograd.grad(expected, (student, second))
    )


def test_functorch_grad():
    student, second, teacher, labels = inputs()

    def total(a):
        return mtkernels.mean_teacher_loss(a, teacher, labels, second=second.detach()).total

    torch.testing.assert_close(
        torch.func.grad(total)(student.detach()), torch.autograd.grad(total(student), student)[0]
    )


def test_the_same_bits_for_any_number_of_threads():
    student, second, teacher, labels = inputs(513, 200, torch.float32)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(
                native.mean_teacher_loss(
                    student, teacher, labels, second, -1, 1.0, 1.0, False, False, -1, True
                )
            )
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for later in results[1:] for a, b in zip(later, results[0], strict=True))


A, B, LABELS = torch.randn(3, 4), torch.randn(3, 4), torch.tensor([0, -1, 3])
REFUSED = {
    "label": (
        (A, B, torch.tensor([0, -1, 4])),
        {},
        ValueError,
        "labels[2] must be a class from 0 to 3 or ignore_index (-1), got 4",
    ),
    "negative label": (
        (A, B, torch.tensor([-2, 0, 1])),
        {},
        ValueError,
        "labels[0] must be a class from 0 to 3 or ignore_index (-1), got -2",
    ),
    "label dtype": (
        (A, B, LABELS.double()),
        {},
        TypeError,
        "labels must be int64 or int32, got torch.float64",
    ),
    "label shape": (
        (A, B, LABELS[:2]),
        {},
        ValueError,
        "labels must have shape [3], one number for each row, got [2]",
    ),
    "no labels": ((A, B, None), {}, TypeError, "labels must be a torch.Tensor, got NoneType"),
    "second shape": (
        (A, B, LABELS),
        {"second": torch.ones(3, 5)},
        ValueError,
        "second must have the shape of student [3, 4], got [3, 5]",
    ),
    "second dtype": (
        (A, B, LABELS),
        {"second": LABELS},
        TypeError,
        "second must be float16, bfloat16, float32 or float64, got torch.int64",
    ),
    "weight": (
        (A, B, LABELS),
        {"consistency_weight": -1.0},
        ValueError,
        "consistency_weight must be at least 0 and finite, got -1.0",
    ),
    "infinite cost": (
        (A, B, LABELS),
        {"logit_distance_cost": float("inf")},
        ValueError,
        "logit_distance_cost must be at least 0 and finite, got inf",
    ),
    "cost of no kind": (
        (A, B, LABELS),
        {"logit_distance_cost": "1"},
        TypeError,
        "logit_distance_cost must be a number or a torch.Tensor that holds one, got str",
    ),
    "weight that learns": (
        (A, B, LABELS),
        {"consistency_weight": torch.ones((), requires_grad=True)},
        ValueError,
        "consistency_weight must not require grad (it is a constant: detach it), got requires_grad=True",
    ),
    "consistency": (
        (A, B, LABELS),
        {"consistency": "js"},
        ValueError,
        "consistency must be 'mse' or 'kl', got 'js'",
    ),
    "normalize": (
        (A, B, LABELS),
        {"normalize": "mean"},
        ValueError,
        "normalize must be 'batch' or 'labeled', got 'mean'",
    ),
    "ignore_index": (
        (A, B, LABELS),
        {"ignore_index": None},
        TypeError,
        "ignore_index must be an int, got NoneType",
    ),
    "ignore_index past integers": (
        (A, B, LABELS),
        {"ignore_index": 2**63},
        ValueError,
        f"ignore_index must be at least -2^63 and below 2^63, got {2**63}",
    ),
    "ignore_index below integers": (
        (A, B, LABELS),
        {"ignore_index": -(2**63) - 1},
        ValueError,
        f"ignore_index must be at least -2^63 and below 2^63, got {-(2**63) - 1}",
    ),
    "cost past floats": (
        (A, B, LABELS),
        {"logit_distance_cost": 10**400},
        ValueError,
        "logit_distance_cost must be at least 0 and finite, got a larger number than a float holds",
    ),
    "teacher that learns": (
        (A, B.clone().requires_grad_(), LABELS),
        {},
        ValueError,
        "teacher must not require grad (it is a constant: detach it), got requires_grad=True",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    arguments, options, error, message = REFUSED[case]
    with pytest.raises(error) as caught:
        mtkernels.mean_teacher_loss(*arguments, **options)
    assert str(caught.value) == f"mean_teacher_loss: {message}"


def test_backends_have_the_same_defaults():
    found, expected = (backend.mean_teacher_loss(A, B, LABELS) for backend in (native, reference))
    torch.testing.assert_close(found, expected)
    explicit = native.mean_teacher_loss(A, B, LABELS, None, -1, 1.0, 0.0, False, False, -1, False)
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(found, explicit, strict=True))
    assert found[3] is found[4] is None


def test_the_last_ignore_index():
    last = 2**63 - 1
    labels = torch.where(LABELS == -1, last, LABELS)
    found = mtkernels.mean_teacher_loss(A, B, labels, ignore_index=last)
    assert all(map(torch.equal, found, mtkernels.mean_teacher_loss(A, B, LABELS)))


def test_vmap_is_refused():
    with pytest.raises(NotImplementedError) as caught:
        torch.vmap(lambda a, b, label: mtkernels.mean_teacher_loss(a, b, label).total)(A, B, LABELS)
    assert str(caught.value) == (
        "mean_teacher_loss: its tensors must not be mapped by torch.vmap (call it once on the whole batch, with dim), "
        "got a mapped one"
    )
    scaled = torch.vmap(lambda a: a.sum() * mtkernels.mean_teacher_loss(A, B, LABELS).total)(A)
    torch.testing.assert_close(scaled, A.sum(1) * mtkernels.mean_teacher_loss(A, B, LABELS).total)


def test_the_registered_op_refuses_what_it_would_guess():
    op = torch.ops.mtkernels.mean_teacher_loss
    live = torch.tensor(1.0)
    for name, numbers in (
        ("consistency_weight", (1.0, 0.0, live, None)),
        ("logit_distance_cost", (1.0, 0.0, None, live)),
    ):
        with pytest.raises(ValueError) as caught:
            op(A, B, LABELS, None, -1, *numbers, False, False, -1, False)
        assert str(caught.value) == f"mean_teacher_loss: {name} must be a number or a tensor, got both"
    student = A.clone().requires_grad_()
    total, *_ = op(student, B, LABELS, None, -1, 1.0, 0.0, None, None, False, False, -1, False)
    with pytest.raises(RuntimeError) as caught:
        total.backward()
    assert str(caught.value) == (
        "mean_teacher_loss: with_gradient must be True in the forward call of torch.ops.mtkernels, got False"
    )
