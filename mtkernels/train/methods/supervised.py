"""The baseline: labeled images alone; network, augmentation and number of steps as in Mean Teacher."""

from torch import Tensor

from ..data.feed import Counts
from .method import Method, Objective, class_loss, heads_of


class Supervised(Method):
    """loss = class_loss. The batch is the labeled part of Mean Teacher's: the labeled stream is the same.

    Its teacher is a weight average that is evaluated and never learned from: it shows how much of Mean
    Teacher's gain is averaging alone. "Supervised-only" in tables and plots means the student.
    """

    uses_unlabeled = False
    views = 1

    def objective(
        self, views: list[Tensor], labels: Tensor, weight: float | Tensor, counts: Counts
    ) -> Objective:
        logits, _ = heads_of(self.network(views[0]))
        loss = class_loss(logits, labels, counts)
        return Objective(loss, {"class_loss": loss.detach()})
