"""The baseline: labeled images alone; network, augmentation and number of steps as in Mean Teacher."""

from torch import Tensor

from .method import Method, Objective, class_loss, heads_of


class Supervised(Method):
    """loss = class_loss. The batch is the labeled part of Mean Teacher's: the labeled stream is the same.

    Its teacher is a weight average that is evaluated and never learned from: it shows how much of Mean
    Teacher's gain is averaging alone. "Supervised-only" in tables and plots means the student.
    """

    uses_unlabeled = False
    views = 1

    def objective(self, views: list[Tensor], labels: Tensor, step: int) -> Objective:
        logits, _ = heads_of(self.student(views[0]))
        loss = class_loss(logits, labels, self.config.class_loss_over)
        return Objective(loss, {"class_loss": loss.detach()})
