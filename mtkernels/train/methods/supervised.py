"""The baseline: labeled images alone; network, augmentation and number of steps as in Mean Teacher."""

from torch import Tensor

from .method import Losses, Method, class_loss


class Supervised(Method):
    """loss = class_loss. The batch is the labeled part of Mean Teacher's: the labeled stream is the same.

    Its teacher is a weight average that is evaluated and never learned from: it shows how much of Mean
    Teacher's gain is averaging alone. "Supervised-only" in tables and plots means the student.
    """

    uses_unlabeled = False
    views = 1

    def losses(self, views: list[Tensor], labels: Tensor, step: int) -> Losses:
        return {"class_loss": class_loss(self.student(views[0]), labels)}
