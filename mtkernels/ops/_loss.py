"""How a loss that brings its gradients along meets autograd: eagerly, and as an op that torch sees.

Every such loss has two inputs that may learn (a student and a teacher, or two heads), and a function that computes its
outputs with their gradients at once. Only the first output, the loss, is differentiable.
"""

from collections.abc import Callable
from typing import NoReturn

import torch
from torch import Tensor

from mtkernels._library import functorch_transforms
from mtkernels._options import LossOptions

_keeps_graph = torch._C._autograd._get_current_graph_task_keep_graph
_functorch = torch._C._functorch
_forward_ad = torch.autograd.forward_ad
_is_compiling = torch.compiler.is_compiling


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
    """Whether autograd wants a gradient, at any level of torch.func."""
    if tensor is None or tensor.requires_grad:
        return tensor is not None
    if _is_compiling() or not _functorch.is_functorch_wrapped_tensor(tensor):
        return False
    return learns(_functorch.get_unwrapped(tensor))


def may_learn(tensor: Tensor | None) -> bool:
    """As learns; and where torch.compile traces torch.vmap, which does not tell."""
    return learns(tensor) or (_is_compiling() and _functorch.is_batchedtensor(tensor))


def refuse_gradient(op: str, **constants: object) -> None:
    """What is constant to a loss must not ask for a gradient, which would be lost."""
    for name, tensor in constants.items():
        if isinstance(tensor, Tensor) and learns(tensor):
            raise ValueError(
                f"{op}: {name} must not require grad (it is a constant: detach it), got requires_grad=True"
            )


def refuse_tensor(op: str, **numbers: object) -> None:
    """What is a number to the kernels: a comparison with a tensor would wait for the GPU."""
    for name, number in numbers.items():
        if isinstance(number, Tensor):
            raise TypeError(f"{op}: {name} must be a number, got {type(number).__name__}")


def refuse_tangents(op: str, options: LossOptions | None = None, **tensors: object) -> None:
    """Forward mode, whose tangents would be lost; the first and cheap question is whether it runs at all."""
    if _forward_ad._current_level < 0:
        return
    for name, tensor in (tensors | (options._asdict() if options else {})).items():
        if not isinstance(tensor, Tensor):
            continue
        while _functorch.is_batchedtensor(tensor):  # which have no rule for the question
            tensor = _functorch.get_unwrapped(tensor)
        if _forward_ad.unpack_dual(tensor).tangent is not None:
            _refuse_forward_mode(op, name)


def _refuse_forward_mode(op: str, name: str) -> NoReturn:
    raise NotImplementedError(
        f"{op}: {name} must have no tangent (forward mode is not supported: use reverse mode), "
        "got a dual number"
    )


def no_forward_mode(op: str) -> staticmethod:
    """The `jvp` of a Function, for what refuse_tangents does not see: calls of the registered op."""

    def jvp(ctx, *tangents):
        _refuse_forward_mode(op, "each tensor")

    return staticmethod(jvp)


def no_vmap(op: str, instead: str) -> Callable:
    """The rule of an op that torch.vmap cannot map, for a Function and for its registered op."""

    def vmap(info, in_dims, *arguments):
        raise NotImplementedError(
            f"{op}: its tensors must not be mapped by torch.vmap ({instead}), got a mapped one"
        )

    return vmap


def number_or_live(op: str, name: str, number, live):
    """A registered op takes a number and a tensor as two arguments, of which the other is None."""
    if number is not None and live is not None:
        raise ValueError(f"{op}: {name} must be a number or a tensor, got both")
    return number if live is None else live


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
