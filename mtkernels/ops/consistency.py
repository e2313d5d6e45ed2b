"""softmax_mse and softmax_kl: how far a student's predictions are from a teacher's; loss and gradient in one launch."""

from typing import Literal

import torch
from torch import Tensor

from mtkernels._library import define, functorch_levels, must_dispatch
from mtkernels.backends import backend_for
from mtkernels.backends.reference import gradient_dtype

Reduction = Literal["mean", "sum", "none"]


def softmax_mse(student: Tensor, teacher: Tensor, *, dim: int = -1, reduction: Reduction = "mean") -> Tensor:
    """Mean squared error between the softmax of two tensors of logits; the gradient goes to the student.

    With p = softmax(student) and q = softmax(teacher), C classes:
    row loss = (1/C) sum_c (p_c - q_c)^2,   d/dstudent_c = (2/C) p_c ((p_c - q_c) - sum_k p_k (p_k - q_k))

    Args:
        student, teacher: raw logits of one shape, `[rows, classes]` or any with the classes along `dim`; float16,
            bfloat16, float32 or float64, also one of each. The teacher is a constant.
        dim: the dim of the classes.
        reduction: over rows. "mean" equals `F.mse_loss(p, q)`; "none" gives one loss per row.

    Returns:
        float32, or float64 where either side is. 0-d, or the student's shape without `dim` for "none". A row that is
        -inf throughout on either side counts as 0, and so does a mean over no rows.

    Raises:
        TypeError, ValueError: naming the argument.

    Source: Tarvainen and Valpola, "Mean teachers are better role models" (2017).
    """
    return _loss("softmax_mse", student, teacher, dim, reduction)


def softmax_kl(student: Tensor, teacher: Tensor, *, dim: int = -1, reduction: Reduction = "mean") -> Tensor:
    """Kullback-Leibler divergence of a student's softmax from a teacher's; the gradient goes to the student.

    With p = softmax(student) and q = softmax(teacher):
    row loss = KL(q || p) = sum_c q_c (log q_c - log p_c),   d/dstudent_c = p_c - q_c

    Args:
        student, teacher: raw logits of one shape, `[rows, classes]` or any with the classes along `dim`; float16,
            bfloat16, float32 or float64, also one of each. The teacher is a constant.
        dim: the dim of the classes.
        reduction: over rows. "mean" equals `F.kl_div(log p, q, reduction="batchmean")` of `[rows, classes]`; "none"
            gives one loss per row.

    Returns:
        In nats, float32, or float64 where either side is. 0-d, or the student's shape without `dim` for "none". A row
        that is -inf throughout on either side counts as 0, and so does a mean over no rows.

    Raises:
        TypeError, ValueError: naming the argument.

    Source: Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network" (2015).
    """
    return _loss("softmax_kl", student, teacher, dim, reduction)


def _loss(op: str, student: Tensor, teacher: Tensor, dim: int, reduction: Reduction) -> Tensor:
    learns = torch.is_grad_enabled() and isinstance(student, Tensor) and _learns(student)
    if torch.is_grad_enabled() and isinstance(teacher, Tensor) and teacher.requires_grad:
        raise ValueError(
            f"{op}: teacher must not require grad (it is a constant: detach it), got requires_grad=True"
        )
    if levels := functorch_levels():
        if levels > 1:
            raise NotImplementedError(f"{op}: torch.func transforms must not be nested, got {levels} levels")
        return _RECORDED[op].apply(student, teacher, dim, reduction, True)[0]
    if must_dispatch(student) or must_dispatch(teacher):
        return getattr(torch.ops.mtkernels, op)(student, teacher, dim, reduction, learns)[0]
    if learns:
        return _Consistency.apply(student, teacher, op, dim, reduction)
    return _backend(student, op)(student, teacher, dim, reduction, False)[0]


def _learns(student: Tensor) -> bool:
    """Also in forward mode, which the Function then refuses: its tangent would be lost."""
    return student.requires_grad or torch.autograd.forward_ad._current_level >= 0


def _backend(tensor: Tensor, op: str):
    return getattr(backend_for(tensor.device.type if isinstance(tensor, Tensor) else "cpu"), op)


class _Consistency(torch.autograd.Function):
    """The eager path: the gradient is there when the loss is."""

    @staticmethod
    def forward(ctx, student, teacher, op, dim, reduction):
        loss, dstudent = _backend(student, op)(student, teacher, dim, reduction, True)
        ctx.save_for_backward(dstudent)
        ctx.op = op
        ctx.dim = dim if reduction == "none" else None
        ctx.dtype = student.dtype
        return loss

    @staticmethod
    def backward(ctx, dloss):
        _refuse_second_derivative(ctx.op)
        (dstudent,) = ctx.saved_tensors
        kept = torch._C._autograd._get_current_graph_task_keep_graph()
        if kept or ctx.dim is not None or _is_batched(dloss):
            dstudent = _scaled(dstudent, dloss, ctx.dim)
        else:
            # Nobody can ask for it again: scaled in place, and not touched where dloss is 1.
            _backend(dstudent, "scale_")(dstudent, dloss)
            torch.autograd.graph.increment_version(dstudent)
        return dstudent.to(ctx.dtype), None, None, None, None


def _is_batched(dloss: Tensor) -> bool:
    """Under torch.func, or `is_grads_batched=True`: no memory of its own."""
    functorch = torch._C._functorch
    return functorch.is_functorch_wrapped_tensor(dloss) or functorch.is_legacy_batchedtensor(dloss)


def _refuse_second_derivative(op: str) -> None:
    """Grad mode is on in a backward under create_graph=True; torch.func always asks for that."""
    if torch.is_grad_enabled() and not functorch_levels() and not torch.compiler.is_compiling():
        raise NotImplementedError(f"{op}: its gradient has no derivative, got create_graph=True")


def _scaled(dstudent: Tensor, dloss: Tensor, dim: int | None) -> Tensor:
    return dstudent * (dloss if dim is None else dloss.unsqueeze(dim))


def _register(op: str) -> type[torch.autograd.Function]:
    def kernel(student, teacher, dim, reduction, with_gradient):
        loss, dstudent = _backend(student, op)(student, teacher, dim, reduction, with_gradient)
        return loss, student.new_empty(0) if dstudent is None else dstudent

    class Recorded(torch.autograd.Function):
        """The registered path, and functorch's, which asks for `setup_context`: 10 us more than eager pays."""

        @staticmethod
        def forward(student, teacher, dim, reduction, with_gradient):
            with torch._C._AutoDispatchBelowAutograd():
                return getattr(torch.ops.mtkernels, op)(student, teacher, dim, reduction, with_gradient)

        setup_context = staticmethod(_setup_context)

        @staticmethod
        def backward(ctx, dloss, _):
            _refuse_second_derivative(op)
            return _backward(ctx, dloss)

    schema = (
        "(Tensor student, Tensor teacher, int dim, str reduction, bool with_gradient) -> (Tensor, Tensor)"
    )
    define(op + schema, kernel, _fake, recorded=Recorded)
    return Recorded


def _fake(student, teacher, dim, reduction, with_gradient):
    torch._check(
        student.shape == teacher.shape, lambda: f"teacher must have the shape of student {student.shape}"
    )
    double = torch.float64 in (student.dtype, teacher.dtype)
    dim = dim % student.ndim
    shape = [size for i, size in enumerate(student.shape) if i != dim] if reduction == "none" else []
    loss = student.new_empty(shape, dtype=torch.float64 if double else torch.float32)
    if not with_gradient:
        return loss, student.new_empty(0)
    return loss, torch.empty_like(student, dtype=gradient_dtype(student))


def _setup_context(ctx, inputs, output):
    student, _, dim, reduction, with_gradient = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1])
    ctx.dim = dim if reduction == "none" else None
    ctx.dtype = student.dtype
    ctx.with_gradient = with_gradient


def _backward(ctx, dloss):
    (dstudent,) = ctx.saved_tensors
    if not ctx.with_gradient:
        raise RuntimeError("backward needs with_gradient=True in the forward call of torch.ops.mtkernels")
    return _scaled(dstudent, dloss, ctx.dim).to(ctx.dtype), None, None, None, None


_RECORDED = {op: _register(op) for op in ("softmax_mse", "softmax_kl")}
