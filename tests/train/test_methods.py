"""What the losses teach, whom they teach, and how the teacher moves."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mtkernels.train.data import NO_LABEL, Batch, Counts, load_dataset
from mtkernels.train.loop import make_batches, make_method
from mtkernels.train.methods.consistency import trusting_kl
from mtkernels.train.methods.method import class_loss
from mtkernels.train.ramps import sigmoid_rampup
from mtkernels.train.step import Step

VIEWS = list(torch.rand(2, 30, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
LABELS = torch.cat([torch.full((20,), NO_LABEL), torch.arange(10)])
UNLABELED = torch.full((30,), NO_LABEL)
COUNTS = Counts(30, 30)


@pytest.fixture
def make(small):
    """A method of the small run with some settings changed."""

    def make(**changes):
        config = replace(small, **changes)
        data = load_dataset(config)
        return make_method(config, data, make_batches(config, data))

    return make


def objective(method, labels, step):
    """Of a whole batch."""
    return method.objective(VIEWS[: method.views], labels, method.consistency_weight(step), COUNTS)


def gradients(model):
    return [weight.grad for weight in model.parameters()]


def test_class_loss_is_the_sum_over_labeled_rows_over_all_rows():
    logits = torch.randn(30, 10)
    mean = F.cross_entropy(logits[20:], LABELS[20:])
    torch.testing.assert_close(class_loss(logits, LABELS, COUNTS), mean * 10 / 30)
    torch.testing.assert_close(class_loss(logits, LABELS, Counts(30, 10)), mean)
    assert class_loss(logits, UNLABELED, COUNTS) == 0


@pytest.mark.parametrize("consistency_type", ["mse", "kl"])
@pytest.mark.parametrize("cost", [-1.0, 0.01])
def test_consistency_alone_teaches_the_student_and_not_the_teacher(make, consistency_type, cost):
    method = make(consistency_type=consistency_type, logit_distance_cost=cost)
    method.teacher.requires_grad_(True)  # a teacher that could learn: only the loss keeps it from it
    objective(method, UNLABELED, 10).total.backward()
    assert all(grad is not None and grad.any() for grad in gradients(method.student))
    assert all(grad is None or not grad.any() for grad in gradients(method.teacher))


def test_both_views_of_the_pi_model_teach(make):
    method = make(method="pi-model", dropout=0.0)
    seen = []
    method.student.register_forward_hook(lambda module, inputs, output: seen.append(output))
    objective(method, UNLABELED, 10).total.backward()
    first, second = (output.detach().requires_grad_() for output in seen)
    weight = method.consistency_weight(10)
    torch.testing.assert_close(
        objective(method, UNLABELED, 10).parts["consistency_loss"],
        weight * F.mse_loss(first.softmax(1), second.softmax(1)).detach(),
    )
    one_sided = make(method="pi-model", dropout=0.0)
    (
        weight * F.mse_loss(one_sided.student(VIEWS[0]).softmax(1), one_sided.student(VIEWS[1]).softmax(1))
    ).backward()
    for ours, theirs in zip(gradients(method.student), gradients(one_sided.student), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


def test_consistency_is_the_weighted_distance_of_two_different_models(make):
    method = make(dropout=0.0, consistency=7.0, consistency_rampup=4)
    with torch.no_grad():
        for weight in method.teacher.parameters():
            weight.mul_(1.1)
        student, teacher = method.student(VIEWS[0]).softmax(1), method.teacher(VIEWS[1]).softmax(1)
    assert not torch.allclose(student, teacher)
    total, parts = objective(method, LABELS, 1)
    expected = 7.0 * sigmoid_rampup(1, 4) * F.mse_loss(student, teacher)
    torch.testing.assert_close(parts["consistency_loss"], expected)
    torch.testing.assert_close(total.detach(), parts["class_loss"] + parts["consistency_loss"])


def test_two_heads(make):
    """The second head is held against the teacher's first; the heads against each other; classes by the first."""
    for sides in ("mean", "sum"):
        method = make(dropout=0.0, logit_distance_cost=0.5, logit_distance=sides, consistency_rampup=0)
        with torch.no_grad():
            for weight in method.teacher.parameters():
                weight.mul_(1.1)
            logits, consistent = method.student(VIEWS[0])
            target, _ = method.teacher(VIEWS[1])
        parts = objective(method, LABELS, 1).parts
        torch.testing.assert_close(parts["class_loss"], class_loss(logits, LABELS, COUNTS))
        torch.testing.assert_close(
            parts["consistency_loss"], 100 * F.mse_loss(consistent.softmax(1), target.softmax(1))
        )
        distance = 0.5 * F.mse_loss(logits, consistent) * (10 if sides == "sum" else 1)
        torch.testing.assert_close(parts["distance_loss"], distance)


def test_labeled_images_may_be_left_out_of_the_consistency(make):
    method = make(dropout=0.0, consistency_rampup=0, consistency_on_labeled=False, ema_decay=0.5)
    with torch.no_grad():
        method.teacher.classifier.weight.mul_(1.5)
        student, teacher = method.student(VIEWS[0]).softmax(1), method.teacher(VIEWS[1]).softmax(1)
    total, parts = objective(method, LABELS, 1)
    expected = 100 * (student - teacher).square().mean(1)[:20].sum() / 30  # over all rows, as published
    torch.testing.assert_close(parts["consistency_loss"], expected)
    torch.testing.assert_close(total.detach(), parts["class_loss"] + parts["consistency_loss"])


def test_trust_goes_from_mean_squared_error_to_kl():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 64, 10, generator=generator, dtype=torch.float64)
    mse = (student.softmax(1) - teacher.softmax(1)).square().mean(1)
    # Near 0 the gradient is as large as that of the mean squared error (the published scale), times 1 - 1/C.
    torch.testing.assert_close(trusting_kl(student, teacher, 1e-3), mse * 0.9, rtol=2e-2, atol=1e-6)
    kl = F.kl_div(student.log_softmax(1), teacher.softmax(1), reduction="none").sum(1)
    torch.testing.assert_close(trusting_kl(student, teacher, 1.0), kl * 2 * 0.9 / 100)
    torch.testing.assert_close(trusting_kl(student, teacher, 1 - 1e-9), trusting_kl(student, teacher, 1.0))


def test_teacher_starts_as_the_student_and_the_student_as_the_seed_says(make):
    method, same, other = make(), make(method="supervised"), make(seed=1)
    for name, value in method.student.state_dict().items():
        assert torch.equal(value, method.teacher.state_dict()[name])
        assert torch.equal(value, same.student.state_dict()[name])
    assert not torch.equal(method.student.classifier.weight, other.student.classifier.weight)


def test_a_teacher_with_weights_of_its_own(make):
    method, again = make(teacher_init="independent"), make(teacher_init="independent")
    assert torch.equal(method.student.classifier.weight, make().student.classifier.weight)
    assert not torch.equal(method.student.classifier.weight, method.teacher.classifier.weight)
    assert torch.equal(method.teacher.classifier.weight, again.teacher.classifier.weight)


def test_the_teachers_dropout(make):
    method = make(dropout=0.25, teacher_dropout=0.75)
    for model, rate in ((method.student, 0.25), (method.teacher, 0.75)):
        assert {module.p for module in model.modules() if isinstance(module, nn.Dropout)} == {rate}


@pytest.mark.parametrize("name", ["mean-teacher", "pi-model", "supervised"])
def test_warm_teacher_is_the_mean_of_all_students(make, name):
    method = make(method=name, ema_decay=0.99)
    step = Step(method)
    students = [copy.deepcopy(dict(method.student.named_parameters()))]
    for number in range(6):
        step(batch_of(method), number)
        students.append(copy.deepcopy(dict(method.student.named_parameters())))
        for key, weight in method.teacher.named_parameters():
            mean = torch.stack([student[key].detach() for student in students]).mean(0)
            torch.testing.assert_close(weight, mean, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(method.teacher.classifier.weight, method.student.classifier.weight)


def test_a_teacher_that_moves_before_the_step_is_one_step_behind(make):
    """The TensorFlow version's order: after one step the teacher has only met the first student, its own copy."""
    method = make(ema_order="before", ema_warmup=False, ema_decay=0.5, optimizer="adam")
    step = Step(method)
    first = method.student.classifier.weight.detach().clone()
    step(batch_of(method), 0)
    assert torch.equal(method.teacher.classifier.weight, first)
    second = method.student.classifier.weight.detach().clone()
    step(batch_of(method), 1)
    torch.testing.assert_close(method.teacher.classifier.weight, (first + second) / 2)


def batch_of(method):
    return Batch(VIEWS[: method.views], LABELS, COUNTS)


@pytest.mark.parametrize("buffers", ["average", "copy", "keep"])
def test_buffers_follow_the_policy(make, buffers):
    method = make(buffers=buffers)
    objective(method, LABELS, 0)  # moves the statistics of both
    before = copy.deepcopy(dict(method.teacher.named_buffers()))
    method.after_step()
    student, teacher = dict(method.student.named_buffers()), dict(method.teacher.named_buffers())
    for key, old in before.items():
        expected = {"keep": old, "copy": student[key]}.get(buffers, (old + student[key]) / 2)
        if not old.is_floating_point() and buffers != "keep":
            expected = student[key]  # a counter has no average
        torch.testing.assert_close(teacher[key], expected, msg=key)


def test_supervised_sees_one_view_and_has_no_consistency(make):
    method = make(method="supervised")
    assert method.views == 1 and not method.uses_unlabeled
    assert list(objective(method, LABELS, 0).parts) == ["class_loss"]
    assert method.consistency_weight(3) == 0
