"""mean_teacher_loss: the whole objective of a Mean Teacher step, with its gradients and counts, in one launch."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mtkernels._library import LIBRARY, define, must_dispatch
from mtkernels.backends import backend_for
from mtkernels.backends.reference import gradient_dtype
from mtkernels.ops import _loss
from mtkernels.ops._loss import Computed, Eager

_OP = "mean_teacher_loss"
_NO_VMAP = _loss.no_vmap(_OP, "call it once on the whole batch, with dim")


class MeanTeacherLoss(NamedTuple):
    """What `mean_teacher_loss` returns (the module is `mtkernels.nn.MeanTeacherLoss`).

    total has a gradient; the rest is for the log. Counts are int64 0-d tensors over the labeled rows.
    """

    total: Tensor
    class_loss: Tensor
    consistency_loss: Tensor  # times consistency_weight
    logit_distance: Tensor  # times logit_distance_cost
    labeled: Tensor
    student_top1: Tensor
    student_top5: Tensor
    teacher_top1: Tensor
    teacher_top5: Tensor


def mean_teacher_loss(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    *,
    second: Tensor | None = None,
    dim: int = -1,
    consistency: Literal["mse", "kl"] = "mse",
    consistency_weight: float | Tensor = 1.0,
    logit_distance_cost: float | Tensor = 0.0,
    normalize: Literal["batch", "labeled"] = "batch",
    ignore_index: int = -1,
) -> MeanTeacherLoss:
    """The objective of a Mean Teacher step: class loss, consistency, logit distance; and correct predictions counted.

    Over B rows and C classes, with d = second (student where there is one head), p = softmax(d), q = softmax(teacher):
    class_loss       = sum over labeled rows of -log softmax(student)[label] / B
    consistency_loss = consistency_weight * sum over all rows of (1/C) sum_c (p_c - q_c)^2 / B, or of KL(q || p) / B
    logit_distance   = logit_distance_cost * sum over all rows of (1/C) sum_c (student_c - d_c)^2 / B
    total            = class_loss + consistency_loss + logit_distance

    Args:
        student: raw logits of the student's class head, `[rows, classes]` or any with the classes along `dim`; float16,
            bfloat16, float32 or float64.
        teacher: raw logits of the teacher's class head, of that shape. A constant.
        labels: int64 or int32, the student's shape without `dim`; ignore_index where a row has none. On a GPU the host
            does not look at them: one out of range makes total and its row's gradient NaN.
        second: raw logits of the student's second head, which is held against the teacher in place of the first.
        dim: the dim of the classes.
        consistency: "mse", or "kl".
        consistency_weight, logit_distance_cost: at least 0; a number, or a 0-d float32 or float64 tensor, which stays
            live in a captured CUDA graph. A term of weight 0 is 0, whatever the logits hold.
        normalize: what class_loss is divided by: "batch", all B rows, as published, or "labeled", those with a label.
            Relative to the mean over labeled rows, the published consistency weighs B / labeled times as much.
        ignore_index: the label of a row without one.

    Returns:
        MeanTeacherLoss. Losses are float32, or float64 where any logits are; 0 without rows. A prediction is correct
        among the top k where fewer than k classes have a larger logit, or an equal one and come first.

    Raises:
        TypeError, ValueError: naming the argument; labels out of range by row and value (CPU).

    Source: Tarvainen and Valpola, "Mean teachers are better role models" (2017).
    """
    if consistency not in ("mse", "kl"):
        raise ValueError(f"{_OP}: consistency must be 'mse' or 'kl', got {consistency!r}")
    if normalize not in ("batch", "labeled"):
        raise ValueError(f"{_OP}: normalize must be 'batch' or 'labeled', got {normalize!r}")
    _loss.refuse_tangents(
        _OP,
        student=student,
        teacher=teacher,
        second=second,
        consistency_weight=consistency_weight,
        logit_distance_cost=logit_distance_cost,
    )
    learns = False
    if torch.is_grad_enabled() and isinstance(student, Tensor):
        _loss.refuse_gradient(
            _OP,
            teacher=teacher,
            consistency_weight=consistency_weight,
            logit_distance_cost=logit_distance_cost,
        )
        learns = _loss.learns(student) or (isinstance(second, Tensor) and _loss.learns(second))
    arguments = (student, teacher, labels, second, dim, consistency_weight, logit_distance_cost)
    arguments += (consistency == "kl", normalize == "labeled", ignore_index)
    if _loss.refuse_nesting(_OP):
        total, parts, counts, *_ = _Recorded.apply(*_flat(*arguments, learns))
    elif must_dispatch(student, teacher, labels):
        total, parts, counts, *_ = torch.ops.mtkernels.mean_teacher_loss(*_flat(*arguments, learns))
    else:
        backend = backend_for(student.device.type if isinstance(student, Tensor) else "cpu")

        def compute() -> Computed:
            *outputs, dstudent, dsecond = backend.mean_teacher_loss(*arguments, learns)
            return tuple(outputs), (dstudent, dsecond)

        if learns:
            total, parts, counts = Eager.apply(student, second, _OP, None, backend, compute)
        else:
            (total, parts, counts), _ = compute()
    return MeanTeacherLoss(total, *parts.unbind(), *counts.unbind())


# ---- the registered op, whose arguments are flat


def _flat(*arguments) -> tuple:
    """A number or a tensor becomes one of two arguments."""
    *first, weight, cost, kl, by_labeled, ignore_index, with_gradient = arguments
    numbers = [None if isinstance(number, Tensor) else number for number in (weight, cost)]
    tensors = [number if isinstance(number, Tensor) else None for number in (weight, cost)]
    return *first, *numbers, *tensors, kl, by_labeled, ignore_index, with_gradient


def _kernel(student, teacher, labels, second, dim, weight, cost, live_weight, live_cost, *rest):
    weight = _loss.number_or_live(_OP, "consistency_weight", weight, live_weight)
    cost = _loss.number_or_live(_OP, "logit_distance_cost", cost, live_cost)
    function = backend_for(student.device.type).mean_teacher_loss
    outputs = function(student, teacher, labels, second, dim, weight, cost, *rest)
    return tuple(student.new_empty(0) if output is None else output for output in outputs)


def _fake(
    student,
    teacher,
    labels,
    second,
    dim,
    weight,
    cost,
    live_weight,
    live_cost,
    kl,
    by_labeled,
    ignore,
    gradient,
):
    logits = [tensor for tensor in (student, teacher, second) if tensor is not None]
    wide = torch.float64 if any(tensor.dtype == torch.float64 for tensor in logits) else torch.float32
    gradients = [
        torch.empty_like(head, dtype=gradient_dtype(head))
        if gradient and head is not None
        else student.new_empty(0)
        for head in (student, second)
    ]
    outputs = student.new_empty((), dtype=wide), student.new_empty(3, dtype=wide)
    return *outputs, student.new_empty(5, dtype=torch.int64), *gradients


class _Recorded(torch.autograd.Function):
    """The registered path, and functorch's, which asks for `setup_context`."""

    @staticmethod
    def forward(*arguments):
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.mtkernels.mean_teacher_loss(*arguments)

    @staticmethod
    def setup_context(ctx, inputs, output):
        student, _, _, second, *_, ctx.with_gradient = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*output[3:])
        ctx.dtypes = student.dtype, None if second is None else second.dtype

    @staticmethod
    def backward(ctx, dtotal, *_):
        _loss.refuse_second_derivative(_OP)
        if not ctx.with_gradient:
            raise RuntimeError(
                f"{_OP}: with_gradient must be True in the forward call of torch.ops.mtkernels, got False"
            )
        dstudent, dsecond = (
            None if dtype is None else _loss.scaled(saved, dtotal, None).to(dtype)
            for saved, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return dstudent, None, None, dsecond, *(None,) * 9

    jvp = _loss.no_forward_mode(_OP)
    vmap = staticmethod(_NO_VMAP)


define(
    "mean_teacher_loss(Tensor student, Tensor teacher, Tensor labels, Tensor? second, int dim, "
    "float? consistency_weight, float? logit_distance_cost, Tensor? live_weight, Tensor? live_cost, bool kl, "
    "bool by_labeled, int ignore_index, bool with_gradient) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _kernel,
    _fake,
    recorded=_Recorded,
)
torch.library.register_vmap(f"mtkernels::{_OP}", _NO_VMAP, lib=LIBRARY)
