"""What the loop asks of a method: batches to draw, a loss, and the teacher's update."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from mtkernels import WeightEMA, schedules

from ..config import Config
from ..data import NO_LABEL

Losses = dict[str, Tensor]  # name -> 0-d tensor; their sum is what the student minimises


class Method(ABC):
    """A student that learns, and a teacher that is the running average of its weights."""

    uses_unlabeled: ClassVar[bool]  # two-stream batches, or labeled images only
    views: ClassVar[int]  # augmented views of a batch: the student's, and the teacher's where it predicts

    def __init__(self, student: nn.Module, config: Config) -> None:
        self.student = student
        self.ema = WeightEMA(student, schedules.running_mean(config.ema_decay), buffers=config.buffers)
        self.teacher = self.ema.module
        self.config = config

    @abstractmethod
    def losses(self, views: list[Tensor], labels: Tensor, step: int) -> Losses:
        """The terms of the loss at `step` (from 0); `views` holds the student's view, then the teacher's."""

    def consistency_weight(self, step: int) -> float:
        """The weight of the consistency loss at `step`, for the record; 0 for a method without one."""
        return 0.0

    def after_step(self) -> None:
        """Move the teacher towards the updated student."""
        self.ema.update()


def class_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy summed over the labeled rows and divided by all rows, the unlabeled included.

    This is the published normalisation: `consistency` then means what it means in the papers. Relative to a
    mean over labeled rows alone, the consistency weighs batch_size / labeled_batch_size times as much.
    """
    return F.cross_entropy(logits, labels, ignore_index=NO_LABEL, reduction="sum") / len(labels)
