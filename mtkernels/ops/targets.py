"""temporal_ensemble_ and sharpen: the targets of Temporal Ensembling and of MixMatch."""

from typing import Literal

import torch
from torch import Tensor

from mtkernels._library import LIBRARY, define, functorch_levels, must_dispatch
from mtkernels.backends import backend_for
from mtkernels.backends.reference import gradient_dtype
from mtkernels.ops import _loss
from mtkernels.ops._consistency import Reduction
from mtkernels.ops._loss import Computed, Eager

Correction = Literal["bias", "renormalize", "none"]
_OP = "temporal_ensemble_"
_NO_VMAP = _loss.no_vmap(_OP, "call it once on the rows of all samples")


def temporal_ensemble_(
    ensemble: Tensor,
    index: Tensor,
    student: Tensor,
    *,
    alpha: float = 0.6,
    updates: int | Tensor | None = None,
    correction: Correction = "bias",
    reduction: Reduction = "mean",
) -> Tensor:
    """Mean squared error between a student's softmax and its average over epochs, which moves on in the same launch.

    With Z = ensemble, i = index[row], p = softmax(student row), t = Z[i] as it was, corrected, C classes:
    row loss = (1/C) sum_c (p_c - t_c)^2,   d/dstudent_c = (2/C) p_c ((p_c - t_c) - sum_k p_k (p_k - t_k)),
    Z[i] <- alpha * Z[i] + (1 - alpha) * p

    Args:
        ensemble: `[samples, classes]`, zeros at first; float16, bfloat16, float32 or float64, rows without gaps, in
            memory apart from the student's. Moves in place; the target is a constant.
        index: `[rows]` int64 or int32: the ensemble's row of each of the student's, none twice. A repeated or outside
            one is refused on the CPU. On a GPU the host does not look: a row outside is neither read nor written and
            its loss and gradient are NaN; what a repeated one leaves is undefined.
        student: raw logits `[rows, classes]`, of any of the four dtypes.
        alpha: momentum, a number, at least 0 and below 1.
        updates: how many updates each visited row has had before this one. An int, or one int64 or int32 in a tensor,
            which on the logits' device is read by the kernel, without a sync, also in a captured graph. "bias" needs
            it. Where it is 0 there is no target.
        correction: what makes a target of Z: "bias" Z / (1 - alpha^updates), for rows that are all visited in each
            epoch; "renormalize" Z / sum_c Z, for rows that are visited in some (those whose sum is 0 have no target);
            "none" Z.
        reduction: over rows, with or without a target: "mean", "sum" or "none".

    Returns:
        float32, or float64 where student or ensemble is; 0-d, or `[rows]` for "none". The gradient goes to the student.
        A row without a target has loss 0 and gradient 0, and its Z moves; one of logits that are -inf throughout too,
        and its Z stays.

    Raises:
        TypeError, ValueError: naming the argument, before anything is written.

    Source: Laine and Aila, "Temporal ensembling for semi-supervised learning" (2017).
    """
    _loss.refuse_tensor(_OP, alpha=alpha)
    _loss.refuse_tangents(_OP, ensemble=ensemble, student=student)
    if torch.is_grad_enabled():
        _loss.refuse_gradient(_OP, ensemble=ensemble)
    arguments = ensemble, index, student, alpha, updates, correction, reduction
    learning = torch.is_grad_enabled() and isinstance(student, Tensor) and _loss.learns(student)
    levels = functorch_levels()
    if levels > 1:
        raise NotImplementedError(f"{_OP}: torch.func transforms must not be nested, got {levels} levels")
    if levels or any(map(must_dispatch, (ensemble, index, student))):
        is_tensor = isinstance(updates, Tensor)
        split = (None, updates) if is_tensor else (updates, None)
        operands = ensemble, index, student, alpha, *split, correction, reduction
        if levels:
            return _Recorded.apply(*operands, learning)[0]
        return torch.ops.mtkernels.temporal_ensemble_(*operands, learning)[0]
    if not learning:
        return _run(*arguments, False)[0]

    def compute() -> Computed:
        loss, dstudent = _run(*arguments, True)
        return (loss,), (dstudent, None)

    backend = backend_for(student.device.type)
    return Eager.apply(student, None, _OP, -1 if reduction == "none" else None, backend, compute)


def sharpen(probs: Tensor, temperature: float | Tensor, *, dim: int = -1) -> Tensor:
    """Makes distributions more certain, for targets: temperatures below 1 sharpen, those above 1 flatten.

    sharpened_c = p_c^(1/T) / sum_k p_k^(1/T)

    To mix such targets (mixup) call `torch.lerp(second, first, weight)`, which is one kernel already.

    Args:
        probs: non-negative numbers, `[rows, classes]` or any with the classes along `dim`; float16, bfloat16, float32
            or float64. They need not sum to 1. A constant, as is the result.
        temperature: T, above 0 and finite, without unit: a number, or one float32 or float64 in a tensor, which on the
            device of probs is read by the kernel, without a sync and without a look at its value. 1 makes rows sum
            to 1.
        dim: the dim of the classes.

    Returns:
        As probs in shape, dtype and layout; computed in float32, or in float64 for float64. No temperature overflows. A
        row of zeros stays 0; one with a negative number is NaN.

    Raises:
        TypeError, ValueError: naming the argument.

    Source: Berthelot et al., "MixMatch: a holistic approach to semi-supervised learning" (2019), eq. 7.
    """
    _loss.refuse_tangents("sharpen", probs=probs, temperature=temperature)
    if torch.is_grad_enabled():
        _loss.refuse_gradient("sharpen", probs=probs)
    if must_dispatch(probs) or functorch_levels():
        if isinstance(temperature, Tensor):
            return torch.ops.mtkernels.sharpen.tensor(probs, temperature, dim)
        return torch.ops.mtkernels.sharpen(probs, temperature, dim)
    return _sharpen(probs, temperature, dim)


def _run(ensemble, index, student, alpha, updates, correction, reduction, with_gradient):
    device = student.device.type if isinstance(student, Tensor) else "cpu"
    found = backend_for(device, _OP).temporal_ensemble_(
        ensemble, index, student, alpha, updates, correction, reduction, with_gradient
    )
    torch.autograd.graph.increment_version(ensemble)
    return found


class _Recorded(torch.autograd.Function):
    """The registered path, and functorch's, which asks for `setup_context`."""

    @staticmethod
    def forward(ensemble, index, student, alpha, updates, live_updates, correction, reduction, with_gradient):
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.mtkernels.temporal_ensemble_(
                ensemble, index, student, alpha, updates, live_updates, correction, reduction, with_gradient
            )

    @staticmethod
    def setup_context(ctx, inputs, output):
        student, reduction, with_gradient = inputs[2], inputs[-2], inputs[-1]
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])
        ctx.dim = -1 if reduction == "none" else None
        ctx.dtype = student.dtype
        ctx.with_gradient = with_gradient

    @staticmethod
    def backward(ctx, dloss, _):
        _loss.refuse_second_derivative(_OP)
        (dstudent,) = ctx.saved_tensors
        if not ctx.with_gradient:
            raise RuntimeError(
                f"{_OP}: with_gradient must be True in the forward call of torch.ops.mtkernels, got False"
            )
        gradient = _loss.scaled(dstudent, dloss, ctx.dim).to(ctx.dtype)
        return None, None, gradient, None, None, None, None, None, None

    jvp = _loss.no_forward_mode(_OP)
    vmap = staticmethod(_NO_VMAP)


def _registered(ensemble, index, student, alpha, updates, live_updates, correction, reduction, with_gradient):
    updates = _loss.number_or_live(_OP, "updates", updates, live_updates)
    loss, dstudent = _run(ensemble, index, student, alpha, updates, correction, reduction, with_gradient)
    return loss, student.new_empty(0) if dstudent is None else dstudent


def _fake(ensemble, index, student, alpha, updates, live_updates, correction, reduction, with_gradient):
    torch._check(
        ensemble.shape[1] == student.shape[1],
        lambda: f"ensemble must have as many classes as student ({student.shape[1]})",
    )
    double = torch.float64 in (student.dtype, ensemble.dtype)
    shape = [student.shape[0]] if reduction == "none" else []
    loss = student.new_empty(shape, dtype=torch.float64 if double else torch.float32)
    if not with_gradient:
        return loss, student.new_empty(0)
    return loss, torch.empty_like(student, dtype=gradient_dtype(student))


def _sharpen(probs, temperature, dim):
    device = probs.device.type if isinstance(probs, Tensor) else "cpu"
    return backend_for(device, "sharpen").sharpen(probs, temperature, dim)


def _fake_sharpen(probs, temperature, dim):
    return torch.empty_like(probs)


define(
    "temporal_ensemble_(Tensor(a!) ensemble, Tensor index, Tensor student, float alpha, int? updates, "
    "Tensor? live_updates, str correction, str reduction, bool with_gradient) -> (Tensor, Tensor)",
    _registered,
    _fake,
    recorded=_Recorded,
)
torch.library.register_vmap(f"mtkernels::{_OP}", _NO_VMAP, lib=LIBRARY)
define("sharpen(Tensor probs, float temperature, int dim) -> Tensor", _sharpen, _fake_sharpen)
define("sharpen.tensor(Tensor probs, Tensor temperature, int dim) -> Tensor", _sharpen, _fake_sharpen)
