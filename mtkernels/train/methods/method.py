"""What the loop asks of a method: batches to draw, an objective, and the teacher's update."""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from mtkernels import WeightEMA

from ..data.raw import NO_LABEL
from ..timeline import Timeline


class Objective(NamedTuple):
    """What the student minimises, and its terms for the record: name -> 0-d tensor, detached."""

    total: Tensor
    parts: dict[str, Tensor]


class Method(ABC):
    """A student that learns, and a teacher that is the running average of its weights."""

    uses_unlabeled: ClassVar[bool]  # batches of two streams, or labeled images only
    views: ClassVar[int]  # augmented views of a batch

    def __init__(self, student: nn.Module, timeline: Timeline, teacher: nn.Module | None = None) -> None:
        """teacher: the first weights of the average, where they are not the student's."""
        self.student, self.timeline, self.config = student, timeline, timeline.config
        self.ema = WeightEMA(student, timeline.ema_decay(), buffers=self.config.buffers, teacher=teacher)
        self.teacher = self.ema.module
        if self.config.teacher_dropout is not None:
            for module in self.teacher.modules():
                if isinstance(module, nn.Dropout):
                    module.p = self.config.teacher_dropout

    @abstractmethod
    def objective(self, views: list[Tensor], labels: Tensor, step: int) -> Objective:
        """The loss of a batch at `step` (from 0), of `views` views of it."""

    def consistency_weight(self, step: int) -> float:
        """The weight of the consistency loss at `step`, for the record; 0 for a method without one."""
        return 0.0

    def before_step(self) -> None:
        """What comes between the gradients and the optimizer's step."""
        if self.config.ema_order == "before":
            self.ema.update()

    def after_step(self) -> None:
        """What follows the optimizer's step: the teacher moves towards the updated student."""
        if self.config.ema_order == "after":
            self.ema.update()


def class_loss(logits: Tensor, labels: Tensor, over: str = "batch") -> Tensor:
    """Cross-entropy summed over the labeled rows and divided by all rows, the unlabeled included, or by the labeled.

    The first is the published normalisation: `consistency` then means what it means in the papers. Relative to a
    mean over labeled rows alone, the consistency weighs batch_size / labeled_batch_size times as much.
    """
    total = F.cross_entropy(logits, labels, ignore_index=NO_LABEL, reduction="sum")
    return total / (len(labels) if over == "batch" else (labels != NO_LABEL).sum().clamp(min=1))


def heads_of(output: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The class logits and the consistency logits of a network's output, which are the same where it has one head."""
    return output if isinstance(output, tuple) else (output, output)
