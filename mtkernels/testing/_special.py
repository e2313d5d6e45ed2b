"""What every backend has to give for NaN, rows that count for nothing, and heads that are -inf throughout."""

from types import ModuleType

import torch
from torch import Tensor

from mtkernels._options import LossOptions
from mtkernels.backends import reference
from mtkernels.testing._ops import OPS, Op

__all__ = ["NAN_OPTIONS", "check_empty_heads", "check_ignored_weights", "check_nan_rows"]

_NAN_ROWS = range(1, 9)
_LOADED = {"student_temperature": 0.5, "teacher_temperature": 2.0, "center": True}
NAN_OPTIONS = {  # under which check_nan_rows is for an op
    "logit_mse": ({},),
    "softmax_cross_entropy": ({}, {**_LOADED, "label_smoothing": 0.25}, {"hard": True, "gradients": 1}),
    **dict.fromkeys(("softmax_mse", "softmax_kl", "softmax_reverse_kl", "softmax_js"), ({}, _LOADED)),
}


def _with_nan_rows(op: Op, dtype: torch.dtype, classes: int, device: str) -> tuple[Tensor, Tensor]:
    """Rows 0, 9 and 10 are finite. Of the others each side has the same, one after the other."""
    (student,), (teacher,) = op.make(((11, classes),), dtype, device)
    for at, side in enumerate((student, teacher)):
        side[1 + at] = torch.nan
        side[3 + at] = -torch.inf
        side[3 + at, classes // 2] = torch.nan
        side[5 + at, classes // 3] = torch.nan
        side[7, 0] = side[8, classes - 1] = torch.nan
    return student, teacher


def check_nan_rows(
    op: Op, backend: ModuleType, dtype: torch.dtype, classes: int, device: str = "cpu", **options
) -> None:
    """A NaN anywhere makes its row's loss NaN and, but in logit_mse, both gradients of the row throughout."""
    student, teacher = _with_nan_rows(op, dtype, classes, device)
    options = {"reduction": "none", "gradients": 3, **options}
    outputs, expected = (op.call(x, ([student], [teacher]), **options) for x in (backend, reference))
    nan = torch.zeros(len(student), dtype=torch.bool, device=device)
    nan[list(_NAN_ROWS)] = True
    if not options.get("hard"):  # a NaN of the teacher is then its largest logit
        assert torch.equal(outputs[0].isnan(), nan), f"{op.name}: losses {outputs[0].tolist()}"
    for name, gradient in zip(("dstudent", "dteacher"), outputs[1:], strict=False):
        rows = gradient.isnan()
        assert not rows[~nan].any(), f"{op.name}: NaN in {name} of a row without"
        throughout = nan if op.name != "logit_mse" else torch.zeros_like(nan)
        throughout[1:3] = True
        if not options.get("hard"):
            assert rows[throughout].all(), f"{op.name}: {name} of NaN rows {rows.tolist()}"
    for ours, theirs in zip(outputs, expected, strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True)


def check_ignored_weights(op: Op, backend: ModuleType, classes: int, device: str = "cpu") -> None:
    """A row below the threshold, or -inf throughout, gives 0, also where its weight is NaN or infinite."""
    (student,), (teacher,) = op.make(((12, classes),), torch.float32, device)
    teacher[::2] *= 0.01  # below it
    teacher[1::2, 3] += 30  # above it
    student[5], teacher[7] = -torch.inf, -torch.inf
    softmax = op.name != "logit_mse"
    ignored = ([0, 2, 4, 8] if softmax else []) + [5, 7]
    weight = torch.full((12,), 0.75, device=device)
    weight[ignored] = torch.tensor([torch.nan, torch.inf] * 3, device=device)[: len(ignored)]
    finite = weight.nan_to_num(0.0, 0.0, 0.0)
    function, given = getattr(backend, op.name), {"threshold": 0.5} if softmax else {}
    for reduction in ("none", "mean"):
        loss, *gradients, _ = function(
            student, teacher, -1, reduction, 3, LossOptions(weight=weight, **given)
        )
        expected = getattr(reference, op.name)(
            student, teacher, -1, reduction, 3, LossOptions(weight=finite, **given)
        )
        assert all(not gradient[ignored].any() for gradient in gradients), f"{op.name}: not 0 where ignored"
        assert reduction == "mean" or not loss[ignored].any()
        for ours, theirs in zip((loss, *gradients), expected, strict=False):
            torch.testing.assert_close(ours, theirs)


def check_empty_heads(backend: ModuleType, kl: bool, classes: int, device: str = "cpu") -> None:
    """mean_teacher_loss: a row that is -inf throughout in either head has no distance, and no gradient of it."""
    (student, second), (teacher, _) = OPS["mean_teacher_loss"].make(((11, classes),), torch.float32, device)
    student[1], second[2], teacher[4] = -torch.inf, -torch.inf, -torch.inf
    student[3] = second[3] = student[5, 2] = second[5, 2] = -torch.inf
    labels = torch.arange(11, device=device) % (classes + 1) - 1
    cost, empty = 0.5, [1, 2, 3]

    def call(module, cost):
        return module.mean_teacher_loss(student, teacher, labels, second, -1, 2.0, cost, kl, True, -1, True)

    outputs, without = call(backend, cost), call(backend, 0.0)
    distances = torch.where(student == second, 0, student - second).square().mean(-1)
    distances[empty] = 0
    torch.testing.assert_close(outputs[1][2], cost * distances.mean())
    for with_distance, alone in zip(outputs[3:], without[3:], strict=True):
        assert torch.equal(with_distance[empty], alone[empty])
        assert with_distance.isfinite().all()
    for ours, theirs in zip(outputs, call(reference, cost), strict=True):
        torch.testing.assert_close(ours, theirs)
