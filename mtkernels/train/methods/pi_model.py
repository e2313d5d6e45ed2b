"""The Pi-model (Laine and Aila, 1610.02242, as 1703.01780 compares against it): agree with yourself on another view."""

from torch import Tensor

import mtkernels

from .consistency import consistency_loss, distance_cost
from .method import Method, Objective, class_loss, heads_of


class PiModel(Method):
    """class_loss + consistency_weight(step) * distance(prediction on one view, on another); both sides learn.

    Its teacher is a weight average that is evaluated and never learned from.
    """

    uses_unlabeled = True
    views = 2

    def consistency_weight(self, step: int) -> float:
        return self.timeline.consistency_weight(step)

    def objective(self, views: list[Tensor], labels: Tensor, step: int) -> Objective:
        logits, consistent = heads_of(self.student(views[0]))
        other, _ = heads_of(self.student(views[1]))
        config = self.config
        parts = {
            "class_loss": class_loss(logits, labels, config.class_loss_over),
            "consistency_loss": self.consistency_weight(step)
            * consistency_loss(consistent, other, labels, config, two_sided=True),
        }
        if config.heads == 2:
            cost = distance_cost(config, logits.shape[1])
            parts["distance_loss"] = cost * mtkernels.logit_mse(logits, consistent)
        return Objective(sum(parts.values()), {name: part.detach() for name, part in parts.items()})
