"""Mean Teacher (Tarvainen and Valpola, 1703.01780): agree with the average of your own weights."""

import torch
from torch import Tensor

import mtkernels

from .consistency import consistency_loss, distance_cost, distance_name
from .method import Method, Objective, heads_of


class MeanTeacher(Method):
    """class_loss + consistency_weight(step) * distance(student's prediction, teacher's) + cost * distance of two heads.

    The consistency covers every image of the batch, labeled ones too unless the settings say otherwise. The student's
    second head, where it has one, is held against the teacher's first. The teacher predicts in training mode (its own
    dropout, the batch's statistics) and gets no gradient: its logits are constants to the distances.
    """

    uses_unlabeled = True
    views = 2

    def consistency_weight(self, step: int) -> float:
        return self.timeline.consistency_weight(step)

    def objective(self, views: list[Tensor], labels: Tensor, step: int) -> Objective:
        student_view, teacher_view = views
        output = self.student(student_view)
        with torch.no_grad():
            target, _ = heads_of(self.teacher(teacher_view))
        logits, consistent = heads_of(output)
        config, weight = self.config, self.consistency_weight(step)
        apart = (
            bool(config.consistency_trust) or not config.consistency_on_labeled
        )  # not in the fused objective
        loss = mtkernels.mean_teacher_loss(
            logits,
            target,
            labels,
            second=consistent if config.heads == 2 else None,
            consistency=distance_name(config),
            consistency_weight=0.0 if apart else weight,
            logit_distance_cost=distance_cost(config, logits.shape[1]) if config.heads == 2 else 0.0,
            normalize=config.class_loss_over,
        )
        total, consistency = loss.total, loss.consistency_loss
        if apart:
            term = weight * consistency_loss(consistent, target, labels, config)
            total, consistency = total + term, term.detach()
        parts = {"class_loss": loss.class_loss, "consistency_loss": consistency}
        return Objective(total, parts | ({"distance_loss": loss.logit_distance} if config.heads == 2 else {}))
