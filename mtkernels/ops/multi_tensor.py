"""multi_tensor_dot: the inner product of two lists of tensors, such as the gradients of a model, in one launch."""

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, overload

import torch
from torch import Tensor

from mtkernels._library import LIBRARY, define, functorch_levels, must_dispatch
from mtkernels.backends import backend_for
from mtkernels.ops import _loss

Tensors = Iterable[Tensor | None]


class DotAndNorms(NamedTuple):
    """Each 0-d float64."""

    dot: Tensor
    first_norm: Tensor
    second_norm: Tensor


@overload
def multi_tensor_dot(first: Tensors, second: Tensors, *, with_norms: Literal[False] = False) -> Tensor: ...
@overload
def multi_tensor_dot(first: Tensors, second: Tensors, *, with_norms: Literal[True]) -> DotAndNorms: ...
def multi_tensor_dot(first, second, *, with_norms=False):
    """Inner product of two lists of tensors as if each were one long vector, in one launch.

    dot = sum over pairs and elements of first * second,   norms: sqrt(sum first^2), sqrt(sum second^2)

    Args:
        first, second: sequences or generators of as many tensors, pairs of one shape, memory format and device,
            float16, bfloat16, float32 or float64, also one of each. None on either side passes over its pair, as a
            parameter without a gradient. A tensor that is listed twice counts twice. Tensors may require grad; the
            result is a constant.
        with_norms: the norms too, from the same read, over the same pairs: cosine = dot / (first_norm * second_norm).

    Returns:
        0-d float64 on the tensors' device, without a sync; with norms a tuple (dot, first_norm, second_norm) of such.
        Products and sums are float64. The same bits in every run and for any number of threads. Of no pairs 0, on the
        CPU.

    Raises:
        TypeError, ValueError: naming the tensor.

    Source: the gradient product of Meta Pseudo Labels: Pham et al., "Meta pseudo labels" (2020), appendix A.
    """
    if not isinstance(with_norms, bool):
        raise TypeError(f"multi_tensor_dot: with_norms must be a bool, got {type(with_norms).__name__}")
    first, second = _listed(first), _listed(second)
    sums = _dot(first, second, with_norms)
    return DotAndNorms(*sums.unbind()) if with_norms else sums


def multi_tensor_norm(tensors: Tensors) -> Tensor:
    """Euclidean norm of a list of tensors as if it were one long vector, such as the norm of a model's gradient.

    sqrt(sum over tensors and elements of x^2), by multi_tensor_dot of the list with itself.

    Args:
        tensors: as multi_tensor_dot takes them; None is passed over.

    Returns:
        0-d float64 on the tensors' device.

    Raises:
        TypeError, ValueError: naming the tensor, as `first`.
    """
    tensors = _listed(tensors)
    return _dot(tensors, tensors, False).sqrt()


def multi_tensor_cosine(first: Tensors, second: Tensors) -> Tensor:
    """Cosine of the angle between two lists of tensors as if each were one long vector; 0 where either is zero.

    dot / (first_norm * second_norm), by one multi_tensor_dot.

    Args:
        first, second: as multi_tensor_dot takes them.

    Returns:
        0-d float64 on the tensors' device.

    Raises:
        TypeError, ValueError: naming the tensor.
    """
    dot, first_norm, second_norm = _dot(_listed(first), _listed(second), True).unbind()
    product = first_norm * second_norm
    return torch.where(product == 0, 0.0, dot / product)


def _listed(tensors):
    """Generators, such as `model.parameters()`, as lists; what is no iterable is left to the refusal."""
    return (
        tensors
        if isinstance(tensors, Sequence | Tensor) or not hasattr(tensors, "__iter__")
        else list(tensors)
    )


def _dot(first, second, with_norms: bool) -> Tensor:
    example = _example(first)
    if example is None:
        example = _example(second)
    if must_dispatch(example) or functorch_levels():
        first, second = _pairs(first, second)
        return torch.ops.mtkernels.multi_tensor_dot(first, second, with_norms)
    return _run(first, second, with_norms)


def _example(tensors) -> Tensor | None:
    """The tensor that tells the device; of what is no list nothing, which the binding refuses."""
    if not isinstance(tensors, Sequence):
        return None
    return next((tensor for tensor in tensors if isinstance(tensor, Tensor)), None)


def _pairs(first, second) -> tuple[list[Tensor], list[Tensor]]:
    """Without those that are passed over."""
    if len(first) != len(second):
        raise ValueError(
            f"multi_tensor_dot: second must have as many tensors as first ({len(first)}), got {len(second)}"
        )
    kept = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    return [a for a, _ in kept], [b for _, b in kept]


def _run(first, second, with_norms):
    example = _example(first)
    device = "cpu" if example is None else example.device.type
    return backend_for(device, "multi_tensor_dot").multi_tensor_dot(first, second, with_norms)


def _fake(first, second, with_norms):
    torch._check(len(first) == len(second), lambda: "second must have as many tensors as first")
    shape = [3] if with_norms else []
    if not first:
        return torch.empty(shape, dtype=torch.float64)
    return first[0].new_empty(shape, dtype=torch.float64)


define("multi_tensor_dot(Tensor[] first, Tensor[] second, bool with_norms) -> Tensor", _run, _fake)
torch.library.register_vmap(
    "mtkernels::multi_tensor_dot",
    _loss.no_vmap("multi_tensor_dot", "call it once for each sample"),
    lib=LIBRARY,
)
