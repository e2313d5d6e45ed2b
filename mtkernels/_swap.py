"""The weights of an average in the place of a model's, and back; and copies between lists that may differ."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mtkernels.backends import backend_for
from mtkernels.ops.ema import ema_update
from mtkernels.ops.matching import Pairs


class Swap:
    """One model's swap with one of its averages. What goes in is what comes out: the lists of the first are kept."""

    def __init__(self, pairs: Pairs) -> None:
        same = [_alike(to, source) for to, source in zip(*pairs[:2], strict=True)]
        self._same = _chosen(pairs, same)
        self._others = _chosen(pairs, [not alike for alike in same])
        self._looks = [_look(tensor) for tensor in (*pairs.teachers, *pairs.students)]
        self._pairs = pairs
        self._own: list[Tensor] = []  # the model's values that the average cannot hold

    @torch.no_grad()
    def enter(self) -> None:
        """The average's weights into the model."""
        self._own = [tensor.clone() for tensor in self._others[1]]
        self._exchange()
        copy_all(self._others[1], self._others[0])

    @torch.no_grad()
    def leave(self) -> None:
        """The model's own weights back."""
        names = self._pairs.names * 2
        tensors = (*self._pairs.teachers, *self._pairs.students)
        for name, tensor, look in zip(names, tensors, self._looks, strict=True):
            if _look(tensor) != look:
                raise RuntimeError(
                    f"WeightEMA.swap_: {name!r} must be as it was when the average came in ({_words(look)}), "
                    f"got {_words(_look(tensor))}"
                )
        self._exchange()
        copy_all(self._others[1], self._own)
        self._own = []

    def _exchange(self) -> None:
        teachers, students = self._same
        if teachers:
            backend_for(teachers[0].device.type).swap_(teachers, students)
            torch.autograd.graph.increment_version([*teachers, *students])


@torch.no_grad()
def copy_all(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """targets <- sources: in one launch those that lie alike, one by one what is elsewhere or in another order."""
    pairs = list(zip(targets, sources, strict=True))
    together = [_moves_with_others(to, source) for to, source in pairs]
    if any(together):
        chosen = [pair for pair, with_others in zip(pairs, together, strict=True) if with_others]
        ema_update([to for to, _ in chosen], [source for _, source in chosen], 0.0)
    for (to, source), with_others in zip(pairs, together, strict=True):
        if not with_others:
            to.copy_(source)


def _chosen(pairs: Pairs, wanted: list[bool]) -> tuple[list[Tensor], list[Tensor]]:
    return tuple([tensor for tensor, keep in zip(side, wanted, strict=True) if keep] for side in pairs[:2])


def _look(tensor: Tensor) -> tuple:
    return tensor.dtype, tensor.device, tuple(tensor.shape), tensor.stride()


def _words(look: tuple) -> str:
    dtype, device, shape, stride = look
    return f"{dtype} {list(shape)}, strides {list(stride)}, on {device}"


def _alike(to: Tensor, source: Tensor) -> bool:
    return _look(to) == _look(source)


def _moves_with_others(to: Tensor, source: Tensor) -> bool:
    same_kind = to.dtype == source.dtype or (to.is_floating_point() and source.is_floating_point())
    return same_kind and _look(to)[1:] == _look(source)[1:]
