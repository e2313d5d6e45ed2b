"""What the loop asks of a method: batches to draw, an objective, and the teacher's update."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar, Literal, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from mtkernels import WeightEMA

from ..data.feed import Counts
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
    headline: ClassVar[Literal["student", "teacher"]] = "student"  # whose error stands for the method

    def __init__(self, student: nn.Module, timeline: Timeline, teacher: nn.Module | None = None) -> None:
        """teacher: the first weights of the average, where they are not the student's."""
        self.student, self.timeline, self.config = student, timeline, timeline.config
        self.network = student  # what is trained: the student, or what wraps it
        self.ema = WeightEMA(student, timeline.ema_decay(), buffers=self.config.buffers, teacher=teacher)
        self.teacher = self.ema.module
        if self.config.teacher_dropout is not None:
            for module in self.teacher.modules():
                if isinstance(module, nn.Dropout):
                    module.p = self.config.teacher_dropout

    @property
    def headline_model(self) -> nn.Module:
        """The model whose error stands for the method."""
        return getattr(self, self.headline)

    @abstractmethod
    def objective(
        self, views: list[Tensor], labels: Tensor, weight: float | Tensor, counts: Counts
    ) -> Objective:
        """The loss of a batch or of a part of one, in `views` views: all sums are divided by the whole batch's counts.

        weight: of the consistency loss; a 0-d tensor where the step is captured once for all.
        """

    def consistency_weight(self, step: int) -> float:
        """The weight of the consistency loss at `step`; 0 for a method without one."""
        return 0.0

    def before_step(self, found_inf: Tensor | None = None) -> None:
        """What comes between the gradients and the optimizer's step; nothing moves where found_inf is set."""
        if self.config.ema_order == "before":
            self.ema.update(found_inf=found_inf)

    def after_step(self, found_inf: Tensor | None = None) -> None:
        """What follows the optimizer's step: the teacher moves towards the updated student."""
        if self.config.ema_order == "after":
            self.ema.update(found_inf=found_inf)


def class_loss(logits: Tensor, labels: Tensor, counts: Counts) -> Tensor:
    """Cross-entropy summed over the labeled rows and divided by all of the batch, or by its labeled ones.

    The first is the published normalisation: `consistency` then means what it means in the papers. Relative to a
    mean over labeled rows alone, the consistency weighs batch_size / labeled_batch_size times as much.
    """
    total = F.cross_entropy(logits, labels, ignore_index=NO_LABEL, reduction="sum")
    return total / counts.class_rows


def heads_of(output: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The class logits and the consistency logits of a network's output, which are the same where it has one head."""
    return output if isinstance(output, tuple) else (output, output)


@contextmanager
def evaluating(models: Sequence[nn.Module]) -> Iterator[None]:
    """Within it they are in eval mode; then each in the mode that it was in."""
    modes = [model.training for model in models]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for model, mode in zip(models, modes, strict=True):
            model.train(mode)
