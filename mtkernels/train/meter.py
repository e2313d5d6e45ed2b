"""Metrics of a run, kept on the device between two looks so that no step waits for them."""

import math
import time

import torch
from torch import Tensor, nn

from .data import Dataset, Evaluation
from .methods.method import evaluating, heads_of
from .step import Step

FEW = 10  # classes, among which five are half
Record = dict[str, float]  # one line of metrics.jsonl


class NonFiniteError(FloatingPointError):
    """A loss or gradient was infinite or NaN. The models are as they were before the step `step` (from 0)."""

    def __init__(self, what: str, step: int) -> None:
        self.step = step
        super().__init__(f"{what} at step {step + 1}: try a lower lr or consistency")


class Meter:
    """Sums what the steps report; `record` averages the sums and evaluates both models."""

    def __init__(self, step: Step, data: Dataset) -> None:
        self.step, self.method, self.ranks = step, step.method, step.ranks
        self.evaluation = Evaluation(self.method.config, data, self.ranks)
        self.restart()

    def restart(self) -> None:
        """Begin with nothing."""
        self.sums: dict[str, Tensor] = {}
        self.steps = self.images = 0
        self._clock = time.perf_counter()
        self._timed = 0  # images since the clock was set

    def add(self, terms: dict[str, Tensor], *, images: int) -> None:
        """Count a step: its losses (0-d tensors, detached) and the images that the student saw."""
        for name, value in terms.items():
            if name in self.sums:
                self.sums[name] += value
            else:
                self.sums[name] = value.clone()
        self.steps += 1
        self.images += images
        self._timed += images

    @property
    def images_per_second(self) -> float:
        """Since the last record, or the resumption; on a GPU right only after a look."""
        return self._timed / max(time.perf_counter() - self._clock, 1e-9)

    def look(self, steps_done: int) -> dict[str, float]:
        """Mean losses since the last record. Waits for the device. NonFiniteError where a step had to be left out."""
        share = torch.stack([value.double() for value in (*self.sums.values(), self.step.skipped)])
        share[-1] /= self.ranks.world  # each rank counts the same steps
        *losses, skipped = self.ranks.sum_(share).tolist()
        means = {name: loss / self.steps for name, loss in zip(self.sums, losses, strict=True)}
        if skipped:
            bad = [
                f"{name} must stay finite, got {mean}"
                for name, mean in means.items()
                if not math.isfinite(mean)
            ]
            what = (bad or ["gradients and batch statistics must stay finite, got inf or nan"])[0]
            raise NonFiniteError(what, steps_done - round(skipped))
        return means

    def record(self, steps_done: int) -> Record:
        """Losses averaged since the last record, errors in percent, images per second (evaluation apart)."""
        losses = self.look(steps_done)
        speed = self.images_per_second
        self.step.share_buffers()  # after the look: they are sound
        models = [self.method.student, self.method.teacher]
        (student_error, student_error5), (teacher_error, teacher_error5) = error_percents(
            models, self.evaluation
        )
        top5 = {"student_error5": student_error5, "teacher_error5": teacher_error5}
        record: Record = {
            "step": steps_done,
            **losses,
            "student_error": student_error,
            "teacher_error": teacher_error,
            **(top5 if self.evaluation.classes > FEW else {}),
            "consistency_weight": self.method.consistency_weight(steps_done - 1),
            "lr": self.method.timeline.learning_rate(steps_done - 1),
            "images_per_second": round(speed, 1),
        }
        self.restart()
        return record


@torch.no_grad()
def error_percents(models: list[nn.Module], evaluation: Evaluation) -> list[tuple[float, float]]:
    """Percentages of the images whose class each of `models`, in eval mode, does not rank first, or not among five."""
    right = torch.zeros(len(models), 2, dtype=torch.int64, device=evaluation.device)
    rows = torch.zeros(1, dtype=torch.int64, device=evaluation.device)
    with evaluating(models):
        for images, labels in evaluation:
            if not len(labels):
                # This rank has none: a sharded network still needs all ranks, and any network a row.
                images = images.new_zeros(1, *images.shape[1:])
            logits = [heads_of(model(images))[0][: len(labels)] for model in models]
            ranked = [each.topk(min(5, evaluation.classes)).indices for each in logits]
            hits = torch.stack(ranked) == labels[:, None]  # [models, rows, 5]
            right += torch.stack([hits[..., 0].sum(1), hits.sum((1, 2))], 1)
            rows += len(labels)
    for counts in (right, rows):
        evaluation.ranks.sum_(counts)
    errors = 100 * (rows - right).double() / rows
    return [(first, five) for first, five in errors.tolist()]
