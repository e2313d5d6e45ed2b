"""Metrics of a run, kept on the device between two evaluations so that no step waits for them."""

import math
import time

import torch
from torch import Tensor, nn

from .data import Dataset, Evaluation
from .methods import Method
from .methods.method import heads_of

Record = dict[str, float]  # one line of metrics.jsonl


class Meter:
    """Sums what the steps report; `record` averages the sums and evaluates both models."""

    def __init__(self, method: Method, data: Dataset) -> None:
        self.method = method
        self.evaluation = Evaluation(method.config, data)
        self._restart()

    def _restart(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._steps = self._images = 0
        self._started = time.perf_counter()

    def add(self, parts: dict[str, Tensor], *, images: int) -> None:
        """Count a step: its losses (0-d tensors, detached) and the images that the student saw."""
        for name, value in parts.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._steps += 1
        self._images += images

    def record(self, steps_done: int) -> Record:
        """Losses averaged since the last record, errors in percent, images per second (evaluation apart)."""
        means = torch.stack(list(self._sums.values())).double() / self._steps
        losses = dict(zip(self._sums, means.tolist(), strict=True))  # waits for the device
        seconds = time.perf_counter() - self._started
        for name, loss in losses.items():
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"{name} must stay finite, got {loss} by step {steps_done}: try a lower lr or consistency"
                )
        models = [self.method.student, self.method.teacher]
        student_error, teacher_error = error_percents(models, self.evaluation)
        record: Record = {
            "step": steps_done,
            **losses,
            "student_error": student_error,
            "teacher_error": teacher_error,
            "consistency_weight": self.method.consistency_weight(steps_done - 1),
            "lr": self.method.timeline.learning_rate(steps_done - 1),
            "images_per_second": round(self._images / max(seconds, 1e-9), 1),
        }
        self._restart()
        return record


@torch.no_grad()
def error_percents(models: list[nn.Module], evaluation: Evaluation) -> list[float]:
    """Percentages of the images that each of `models`, in eval mode, puts in a wrong class, in one pass over them."""
    modes = [model.training for model in models]
    wrong = torch.zeros(len(models), dtype=torch.int64, device=evaluation.device)
    for model in models:
        model.eval()
    rows = 0
    for images, labels in evaluation:
        wrong += torch.stack([(heads_of(model(images))[0].argmax(1) != labels).sum() for model in models])
        rows += len(labels)
    for model, mode in zip(models, modes, strict=True):
        model.train(mode)
    return (100 * wrong.double() / rows).tolist()
