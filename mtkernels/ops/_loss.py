"""How a loss that brings its gradients along meets autograd: eagerly, and as an op that torch sees.

Every such loss has two inputs that may learn (a student and a teacher, or two heads), and a function that computes its
outputs with their gradients at once. Only the first output, the loss, is differentiable.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from mtkernels._library import functorch_transforms

_keeps_graph = torch._C._autograd._get_current_graph_task_keep_graph
_functorch = torch._C._functorch


# The outputs, the loss first; and its gradients for the two inputs.
Computed = tuple[tuple[Tensor, ...], tuple[Tensor | None, Tensor | None]]


class Eager(torch.autograd.Function):
    """The gradients are there when the loss is. compute() gives a Computed."""

    @staticmethod
    def forward(ctx, first, other, op: str, dim: int | None, backend, compute: Callable[[], Computed]):
        """dim: of the classes where the loss is one for each row; backend: that of the gradients' device."""
        outputs, gradients = compute()
        ctx.save_for_backward(*gradients)
        ctx.op, ctx.dim, ctx.backend = op, dim, backend
        if len(outputs) == 1:
            return outputs[0]
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*outputs[1:])
        return outputs

    @staticmethod
    def backward(ctx, dloss, *_):
        refuse_second_derivative(ctx.op)
        if dloss is None:
            return (None,) * 6
        first, other = ctx.saved_tensors
        if ctx.dim is not None or _keeps_graph() or is_batched(dloss):
            return scaled(first, dloss, ctx.dim), scaled(other, dloss, ctx.dim), None, None, None, None
        # Nobody can ask for them again: scaled in place, and not touched where dloss is 1.
        for gradient in (first, other):
            if gradient is not None:
                ctx.backend.scale_(gradient, dloss)
        return first, other, None, None, None, None


def is_batched(dloss: Tensor) -> bool:
    """Under torch.func, or `is_grads_batched=True`: no memory of its own."""
    return _functorch.is_functorch_wrapped_tensor(dloss) or _functorch.is_legacy_batchedtensor(dloss)


def refuse_second_derivative(op: str) -> None:
    """Grad mode is on in a backward under create_graph=True; torch.func always asks for that."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling() and not functorch_transforms():
        raise NotImplementedError(f"{op}: its gradient has no derivative, got create_graph=True")


def scaled(gradient: Tensor | None, dloss: Tensor, dim: int | None) -> Tensor | None:
    if gradient is None:
        return None
    return gradient * (dloss if dim is None else dloss.unsqueeze(dim))


def learns(tensor: Tensor | None) -> bool:
    """Whether autograd wants a gradient; also in forward mode, which the Function refuses: no tangent is lost."""
    return tensor is not None and (tensor.requires_grad or torch.autograd.forward_ad._current_level >= 0)


def refuse_gradient(op: str, **constants: object) -> None:
    """What is constant to a loss must not ask for a gradient, which would be lost."""
    for name, tensor in constants.items():
        if isinstance(tensor, Tensor) and tensor.requires_grad:
            raise ValueError(
                f"{op}: {name} must not require grad (it is a constant: detach it), got requires_grad=True"
            )


def refuse_nesting(op: str) -> bool:
    """Whether torch.func transforms are running; more than one derivative of them is refused."""
    transforms = functorch_transforms()
    derivatives = sum(transform != _functorch.TransformType.Vmap for transform in transforms)
    if derivatives > 1:
        raise NotImplementedError(
            f"{op}: torch.func transforms must not be nested but for vmap, got {derivatives} levels of derivatives"
        )
    return bool(transforms)


def batch_first(tensor: Tensor | None, dim: int | None, size: int) -> Tensor | None:
    """vmap's operand with the mapped dim in front; expanded where it has none."""
    if tensor is None:
        return None
    return tensor.movedim(dim, 0) if dim is not None else tensor.expand(size, *tensor.shape)
