"""What the losses teach, whom they teach, and how the teacher moves."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from mtkernels.train.data import DATASETS, NO_LABEL
from mtkernels.train.loop import make_method, make_optimizer
from mtkernels.train.methods.method import class_loss
from mtkernels.train.ramps import sigmoid_rampup

DATA = DATASETS["digits"].load(20, 0)
VIEWS = list(torch.rand(2, 30, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
LABELS = torch.cat([torch.full((20,), NO_LABEL), torch.arange(10)])


def test_class_loss_is_the_sum_over_labeled_rows_over_all_rows():
    logits = torch.randn(30, 10)
    expected = F.cross_entropy(logits[20:], LABELS[20:]) * 10 / 30
    torch.testing.assert_close(class_loss(logits, LABELS), expected)
    assert class_loss(logits, torch.full((30,), NO_LABEL)) == 0


@pytest.mark.parametrize("consistency_type", ["mse", "kl"])
def test_consistency_alone_teaches_the_student_and_not_the_teacher(small, consistency_type):
    method = make_method(replace(small, consistency_type=consistency_type), DATA)
    method.teacher.requires_grad_(True)  # a teacher that could learn: only the loss keeps it from it
    losses = method.losses(VIEWS, torch.full((30,), NO_LABEL), step=10)
    losses["consistency_loss"].backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in method.student.parameters())
    assert all(weight.grad is None or not weight.grad.any() for weight in method.teacher.parameters())


def test_consistency_is_the_weighted_distance_of_two_different_models(small):
    method = make_method(replace(small, dropout=0.0, consistency=7.0, consistency_rampup=4), DATA)
    with torch.no_grad():
        for weight in method.teacher.parameters():
            weight.mul_(1.1)
        student, teacher = method.student(VIEWS[0]).softmax(1), method.teacher(VIEWS[1]).softmax(1)
    assert not torch.allclose(student, teacher)
    losses = method.losses(VIEWS, LABELS, step=1)
    torch.testing.assert_close(
        losses["consistency_loss"].detach(), 7.0 * sigmoid_rampup(1, 4) * F.mse_loss(student, teacher)
    )


def test_teacher_starts_as_the_student_and_the_student_as_the_seed_says(small):
    method, same = make_method(small, DATA), make_method(replace(small, method="supervised"), DATA)
    other = make_method(replace(small, seed=1), DATA)
    for name, value in method.student.state_dict().items():
        assert torch.equal(value, method.teacher.state_dict()[name])
        assert torch.equal(value, same.student.state_dict()[name])
    assert not torch.equal(method.student.classifier.weight, other.student.classifier.weight)


@pytest.mark.parametrize("name", ["mean-teacher", "supervised"])
def test_warm_teacher_is_the_mean_of_all_students(small, name):
    method = make_method(replace(small, method=name, ema_decay=0.99), DATA)
    optimizer = make_optimizer(method.config, method)
    students = [copy.deepcopy(dict(method.student.named_parameters()))]
    for step in range(6):
        optimizer.zero_grad()
        sum(method.losses(VIEWS, LABELS, step).values()).backward()
        optimizer.step()
        method.after_step()
        students.append(copy.deepcopy(dict(method.student.named_parameters())))
        for key, weight in method.teacher.named_parameters():
            mean = torch.stack([student[key].detach() for student in students]).mean(0)
            torch.testing.assert_close(weight, mean, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(method.teacher.classifier.weight, method.student.classifier.weight)


@pytest.mark.parametrize("buffers", ["average", "copy", "keep"])
def test_buffers_follow_the_policy(small, buffers):
    method = make_method(replace(small, buffers=buffers), DATA)
    method.losses(VIEWS, LABELS, step=0)  # moves the statistics of both
    before = copy.deepcopy(dict(method.teacher.named_buffers()))
    method.after_step()
    student, teacher = dict(method.student.named_buffers()), dict(method.teacher.named_buffers())
    for key, old in before.items():
        expected = {"keep": old, "copy": student[key]}.get(buffers, (old + student[key]) / 2)
        if not old.is_floating_point():
            expected = student[key]  # a counter has no average
        torch.testing.assert_close(teacher[key], expected, msg=key)


def test_supervised_sees_one_view_and_has_no_consistency(small):
    method = make_method(replace(small, method="supervised"), DATA)
    assert method.views == 1 and not method.uses_unlabeled
    assert list(method.losses(VIEWS[:1], LABELS, step=0)) == ["class_loss"]
    assert method.consistency_weight(3) == 0
