"""Mean Teacher (Tarvainen and Valpola, 1703.01780): agree with the average of your own weights."""

import torch
from torch import Tensor, nn

import mtkernels

from ..config import Config
from ..ramps import sigmoid_rampup
from .method import Losses, Method, class_loss


class MeanTeacher(Method):
    """loss = class_loss + consistency_weight(step) * distance(student's prediction, teacher's prediction).

    The consistency covers every image of the batch, labeled ones too. The teacher predicts in training mode
    (its own dropout, the batch's statistics) and gets no gradient: its logits are constants to the distances.
    """

    uses_unlabeled = True
    views = 2

    def __init__(self, student: nn.Module, config: Config) -> None:
        super().__init__(student, config)
        self.distance = {"mse": mtkernels.softmax_mse, "kl": mtkernels.softmax_kl}[config.consistency_type]

    def consistency_weight(self, step: int) -> float:
        return self.config.consistency * sigmoid_rampup(step, self.config.consistency_rampup)

    def losses(self, views: list[Tensor], labels: Tensor, step: int) -> Losses:
        student_view, teacher_view = views
        student_logits = self.student(student_view)
        with torch.no_grad():
            teacher_logits = self.teacher(teacher_view)
        return {
            "class_loss": class_loss(student_logits, labels),
            "consistency_loss": self.consistency_weight(step) * self.distance(student_logits, teacher_logits),
        }
