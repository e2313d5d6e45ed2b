"""What losses take beside logits, dim and reduction: csrc/consistency.h tells what each does; the binding checks it."""

from typing import NamedTuple

from torch import Tensor


class LossOptions(NamedTuple):
    student_temperature: float = 1.0
    teacher_temperature: float = 1.0
    center: Tensor | None = None
    weight: Tensor | None = None
    threshold: float | Tensor | None = None
    hard: bool = False
    label_smoothing: float = 0.0
