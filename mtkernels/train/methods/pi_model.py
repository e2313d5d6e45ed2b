"""The Pi-model (Laine and Aila, 1610.02242, as 1703.01780 compares against it): agree with yourself on another view."""

from torch import Tensor

import mtkernels

from ..data.feed import Counts
from .consistency import consistency_loss, distance_cost
from .method import Method, Objective, class_loss, heads_of


class PiModel(Method):
    """class_loss + consistency_weight(step) * distance(prediction on one view, on another); both sides learn.

    The statistics that evaluation uses are of the first view. Its teacher is a weight average that is evaluated and
    never learned from.
    """

    uses_unlabeled = True
    views = 2

    def consistency_weight(self, step: int) -> float:
        return self.timeline.consistency_weight(step)

    def objective(
        self, views: list[Tensor], labels: Tensor, weight: float | Tensor, counts: Counts
    ) -> Objective:
        logits, consistent = heads_of(self.network(views[0]))
        statistics = [buffer.clone() for buffer in self.student.buffers()]
        other, _ = heads_of(self.network(views[1]))
        for buffer, kept in zip(self.student.buffers(), statistics, strict=True):
            buffer.data.copy_(kept)  # data: autograd has saved batch norm's, and does not read them
        config, share = self.config, len(labels) / counts.rows
        parts = {
            "class_loss": class_loss(logits, labels, counts),
            "consistency_loss": weight
            * share
            * consistency_loss(consistent, other, labels, config, two_sided=True),
        }
        if config.heads == 2:
            cost = share * distance_cost(config, logits.shape[1])
            parts["distance_loss"] = cost * mtkernels.logit_mse(logits, consistent)
        return Objective(sum(parts.values()), {name: part.detach() for name, part in parts.items()})
