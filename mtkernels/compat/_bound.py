"""Tensors of an average and of its model, bound until one of their modules holds another tensor."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mtkernels import _C
from mtkernels._models import slots_of
from mtkernels.backends import backend_for
from mtkernels.ops.ema import EmaOptions
from mtkernels.ops.matching import Pairs, local_shards


class Bound:
    """A table of pairs, made once. A copy of its owner, or one out of a pickle, makes its own."""

    def __init__(self) -> None:
        self._modules: tuple[nn.Module, ...] = ()
        self._key: Any = None
        self._slots: _C.Slots | None = None

    def holds(self, modules: tuple[nn.Module, ...], key: Any = None) -> bool:
        """Whether it was bound for these modules and options, and they hold the same tensors since."""
        return (
            self._slots is not None
            and len(modules) == len(self._modules)
            and all(one is other for one, other in zip(modules, self._modules, strict=True))
            and key == self._key
            and self._slots.same()
        )

    def bind(self, modules: tuple[nn.Module, ...], pairs: Pairs, key: Any = None) -> None:
        self._slots = None
        pairs = local_shards(pairs) or pairs
        # Weights that live elsewhere are brought over at each update.
        self._moved = [
            (at, student)
            for at, (teacher, student) in enumerate(zip(pairs.teachers, pairs.students, strict=True))
            if teacher.device != student.device
        ]
        students = list(pairs.students)
        for at, student in self._moved:
            students[at] = torch.empty_like(student, device=pairs.teachers[at].device, requires_grad=False)
        with torch.no_grad():
            self._plan = _C.EmaPlan(pairs.teachers, students, 1, pairs.copied, pairs.names)
        self._modules, self._key = modules, copy.deepcopy(key)
        self._slots = _C.Slots([holder for module in modules for holder in slots_of(module)])

    @torch.no_grad()
    def update(self, decay: float, options: EmaOptions | None = None) -> None:
        if not self._plan.teacher:
            return
        for at, student in self._moved:
            self._plan.student[at].copy_(student)
        backend_for(self._plan.teacher[0].device.type).ema_update_plan(self._plan, decay, options)
        torch.autograd.graph.increment_version(self._plan.teacher)

    def __deepcopy__(self, memo: dict) -> "Bound":
        return Bound()

    def __reduce__(self) -> tuple:
        return Bound, ()


def paired(owner: str, teachers: Mapping[str, Tensor], students: Mapping[str, Tensor]) -> list[Tensor]:
    """The students in the order of the teachers, which they must have all of."""
    for name in teachers:
        if name not in students:
            raise ValueError(f"{owner}: model must have the tensors of its average, got none named {name!r}")
    return [students[name] for name in teachers]
