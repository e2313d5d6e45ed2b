"""Mean Teacher (Tarvainen and Valpola, 1703.01780): agree with the average of your own weights."""

import torch
from torch import Tensor

import mtkernels

from ..data.feed import Counts
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
    headline = "teacher"

    def consistency_weight(self, step: int) -> float:
        return self.timeline.consistency_weight(step)

    def objective(
        self, views: list[Tensor], labels: Tensor, weight: float | Tensor, counts: Counts
    ) -> Objective:
        student_view, teacher_view = views
        output = self.network(student_view)
        with torch.no_grad():
            target, _ = heads_of(self.teacher(teacher_view))
        logits, consistent = heads_of(output)
        config, rows, over = self.config, len(labels), counts.class_rows
        # The fused objective divides by the rows at hand: class_loss * (rows / over) is over the whole batch's.
        share = rows / over
        others = over / counts.rows
        # Not in the fused objective:
        apart = bool(config.consistency_trust) or not config.consistency_on_labeled
        cost = distance_cost(config, logits.shape[1]) if config.heads == 2 else 0.0
        loss = mtkernels.mean_teacher_loss(
            logits,
            target,
            labels,
            second=consistent if config.heads == 2 else None,
            consistency=distance_name(config),
            consistency_weight=0.0 if apart else weight * others,
            logit_distance_cost=cost * others,
        )
        terms = {"class_loss": loss.class_loss, "consistency_loss": loss.consistency_loss}
        terms |= {"distance_loss": loss.logit_distance} if config.heads == 2 else {}
        total = loss.total
        if isinstance(share, Tensor) or share != 1.0:  # ranks, parts, class_loss_over
            total, terms = total * share, {name: term * share for name, term in terms.items()}
        if apart:
            term = weight * (rows / counts.rows) * consistency_loss(consistent, target, labels, config)
            total, terms["consistency_loss"] = total + term, term.detach()
        return Objective(total, terms)
