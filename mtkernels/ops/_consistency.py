"""The way of the losses between a student's logits and a teacher's to their kernels: eagerly, or as registered ops."""

import functools
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mtkernels._library import LIBRARY, define, must_dispatch
from mtkernels._options import LossOptions
from mtkernels.backends import backend_for
from mtkernels.backends.reference import gradient_dtype
from mtkernels.ops import _loss
from mtkernels.ops._loss import Computed, Eager

Reduction = Literal["mean", "sum", "none"]


class LossAndUtilization(NamedTuple):
    loss: Tensor
    utilization: Tensor  # 0-d: the share of rows at the threshold or above it


def options_of(
    op, student_temperature, teacher_temperature, center, weight, threshold, hard=False, label_smoothing=0.0
) -> LossOptions | None:
    """None where all are at their defaults: what most calls pay for."""
    if (
        center is weight is threshold is None
        and hard is False
        and type(student_temperature) is type(teacher_temperature) is type(label_smoothing) is float
        and student_temperature == teacher_temperature == 1.0
        and label_smoothing == 0.0
    ):
        return None
    _loss.refuse_tensor(
        op,
        student_temperature=student_temperature,
        teacher_temperature=teacher_temperature,
        label_smoothing=label_smoothing,
    )
    return LossOptions(
        student_temperature, teacher_temperature, center, weight, threshold, hard, label_smoothing
    )


def run(op, student, teacher, dim, reduction, options, two_sided, return_utilization):
    if return_utilization and (options is None or options.threshold is None):
        raise ValueError(f"{op}: threshold must be given where return_utilization is True, got None")
    _loss.refuse_tangents(op, options, student=student, teacher=teacher)
    transforms = _loss.refuse_nesting(op)
    gradients = _wanted(op, student, teacher, options, two_sided) if torch.is_grad_enabled() else 0
    if transforms:
        loss, *_, utilization = _RECORDED[op].apply(
            *_flat(student, teacher, dim, reduction, gradients, options)
        )
    elif must_dispatch(student, teacher):
        flat = _flat(student, teacher, dim, reduction, gradients, options)
        loss, *_, utilization = getattr(torch.ops.mtkernels, op)(*flat)
    else:
        backend = backend_for(student.device.type if isinstance(student, Tensor) else "cpu")
        function = getattr(backend, op)
        if gradients:
            along = dim if reduction == "none" else None

            def compute() -> Computed:
                loss, dstudent, dteacher, utilization = function(
                    student, teacher, dim, reduction, gradients, options
                )
                return (loss,) if utilization is None else (loss, utilization), (dstudent, dteacher)

            outputs = Eager.apply(student, teacher, op, along, backend, compute)
            loss, utilization = outputs if isinstance(outputs, tuple) else (outputs, None)
        else:
            loss, _, _, utilization = function(student, teacher, dim, reduction, 0, options)
    return LossAndUtilization(loss, utilization) if return_utilization else loss


def _wanted(op, student, teacher, options, two_sided) -> int:
    """Which gradients: 1 the student's, 2 the teacher's, 3 both. Refuses those of constants, which would be lost."""
    if not (isinstance(student, Tensor) and isinstance(teacher, Tensor)):
        return 0  # the binding says so
    if options is not None:
        _loss.refuse_gradient(op, center=options.center, weight=options.weight, threshold=options.threshold)
    if two_sided:
        return _loss.may_learn(student) + 2 * _loss.may_learn(teacher)
    if _loss.learns(teacher):
        _loss.refuse_gradient(op, teacher=teacher)
    return int(_loss.may_learn(student))


# ---- the registered ops, whose arguments are flat


def _flat(student, teacher, dim, reduction, gradients, options: LossOptions | None) -> tuple:
    options = options or LossOptions()
    live = isinstance(options.threshold, Tensor)
    return (
        *(student, teacher, dim, reduction, gradients, *options[:4]),
        None if live else options.threshold,
        options.threshold if live else None,
        *options[5:],
    )


def _unflat(op, *arguments) -> LossOptions:
    *first, threshold, live_threshold, hard, label_smoothing = arguments
    threshold = _loss.number_or_live(op, "threshold", threshold, live_threshold)
    return LossOptions(*first, threshold, hard, label_smoothing)


_SCHEMA = (
    "(Tensor student, Tensor teacher, int dim, str reduction, int gradients, float student_temperature, "
    "float teacher_temperature, Tensor? center, Tensor? weight, float? threshold, Tensor? live_threshold, bool hard, "
    "float label_smoothing) -> (Tensor, Tensor, Tensor, Tensor)"
)


def _register(op: str) -> type[torch.autograd.Function]:
    def kernel(student, teacher, dim, reduction, gradients, *options):
        function = getattr(backend_for(student.device.type), op)
        outputs = function(student, teacher, dim, reduction, gradients, _unflat(op, *options))
        return tuple(student.new_empty(0) if output is None else output for output in outputs)

    class Recorded(torch.autograd.Function):
        """The registered path, and functorch's, which asks for `setup_context`: 10 us more than eager pays."""

        @staticmethod
        def forward(*arguments):
            with torch._C._AutoDispatchBelowAutograd():
                return getattr(torch.ops.mtkernels, op)(*arguments)

        @staticmethod
        def setup_context(ctx, inputs, output):
            student, teacher, dim, reduction, ctx.gradients, *_ = inputs
            ctx.mark_non_differentiable(*output[1:])
            ctx.save_for_backward(output[1], output[2])
            ctx.dim = dim if reduction == "none" else None
            ctx.dtypes = student.dtype, teacher.dtype

        @staticmethod
        def backward(ctx, dloss, *_):
            _loss.refuse_second_derivative(op)
            wanted = [
                side
                for side, needed in enumerate(ctx.needs_input_grad[:2])
                if needed and not ctx.gradients >> side & 1
            ]
            if wanted:
                raise RuntimeError(
                    f"{op}: gradients must be {ctx.gradients | sum(1 << side for side in wanted)} in the forward call "
                    f"of torch.ops.mtkernels, got {ctx.gradients}"
                )
            sides = zip(ctx.saved_tensors, ctx.dtypes, ctx.needs_input_grad[:2], strict=True)
            gradients = [
                _loss.scaled(saved, dloss, ctx.dim).to(dtype) if needed else None
                for saved, dtype, needed in sides
            ]
            return *gradients, *(None,) * 11

        @staticmethod
        def vmap(info, in_dims, *arguments):
            return _vmap(op, _RECORDED[op].apply, info.batch_size, in_dims, arguments)

        jvp = _loss.no_forward_mode(op)

    def registered_vmap(info, in_dims, *arguments):
        return _vmap(op, getattr(torch.ops.mtkernels, op), info.batch_size, in_dims, arguments)

    define(op + _SCHEMA, kernel, functools.partial(_fake, op), recorded=Recorded)
    torch.library.register_vmap(f"mtkernels::{op}", registered_vmap, lib=LIBRARY)
    return Recorded


def _fake(op, student, teacher, dim, reduction, gradients, *options):
    torch._check(
        student.shape == teacher.shape, lambda: f"teacher must have the shape of student {student.shape}"
    )
    double = torch.float64 in (student.dtype, teacher.dtype)
    wide = torch.float64 if double else torch.float32
    dim, given = dim % student.ndim, _unflat(op, *options)
    shape = [size for i, size in enumerate(student.shape) if i != dim] if reduction == "none" else []
    sides = [
        torch.empty_like(side, dtype=gradient_dtype(side)) if gradients >> bit & 1 else student.new_empty(0)
        for bit, side in enumerate((student, teacher))
    ]
    utilization = student.new_empty(0) if given.threshold is None else student.new_empty((), dtype=wide)
    return student.new_empty(shape, dtype=wide), *sides, utilization


def _vmap(op: str, call, size: int, in_dims, arguments):
    """Rows of all samples at once, reduced sample by sample. call: the op below vmap."""
    student, teacher, dim, reduction, gradients, ts, tt, center, weight, *rest = arguments
    if in_dims[7] is not None:
        raise NotImplementedError(f"{op}: center must not be mapped by torch.vmap, got in_dim {in_dims[7]}")
    threshold = _loss.number_or_live(op, "threshold", *rest[:2])
    if threshold is not None:
        got = "a tensor" if isinstance(threshold, Tensor) else threshold
        raise NotImplementedError(
            f"{op}: threshold must be None under torch.vmap (call it once on the whole batch, with dim), got {got}"
        )
    student, teacher, weight = (
        _loss.batch_first(tensor, at, size)
        for tensor, at in zip((student, teacher, weight), (in_dims[0], in_dims[1], in_dims[8]), strict=True)
    )
    dim = dim + 1 if dim >= 0 else dim
    outputs = call(student, teacher, dim, "none", gradients, ts, tt, center, weight, *rest)
    loss, sides = outputs[0], list(outputs[1:3])
    if reduction != "none":
        rows = max(loss[0].numel(), 1)
        loss = loss.flatten(1).sum(1) if loss.dim() > 1 else loss
        if reduction == "mean":
            loss, sides = loss / rows, [side / rows for side in sides]
    out_dims = (0, *(0 if gradients >> bit & 1 else None for bit in range(2)), None)
    return (loss, *sides, outputs[3]), out_dims


_OPS = ("softmax_mse", "softmax_kl", "softmax_reverse_kl", "softmax_js", "softmax_cross_entropy", "logit_mse")
_RECORDED = {op: _register(op) for op in _OPS}
