"""Metrics of a run, kept on the device between two evaluations so that no step waits for them."""

import math
import time

import torch
from torch import Tensor, nn

from .config import Config
from .data import Dataset
from .methods import Method
from .ramps import learning_rate

Record = dict[str, float]  # one line of metrics.jsonl


class Meter:
    """Sums what the steps report; `record` averages the sums and evaluates both models."""

    def __init__(self, config: Config, method: Method, data: Dataset) -> None:
        self.config, self.method = config, method
        self.images, self.labels = data.test_images, data.test_labels
        if config.eval_split == "unlabeled":
            self.images, self.labels = data.images[data.unlabeled], data.hidden_labels[data.unlabeled]
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
        models = (self.method.student, self.method.teacher)
        errors = torch.stack([error_percent(model, self.images, self.labels) for model in models])
        student_error, teacher_error = errors.tolist()
        record: Record = {
            "step": steps_done,
            **losses,
            "student_error": student_error,
            "teacher_error": teacher_error,
            "consistency_weight": self.method.consistency_weight(steps_done - 1),
            "lr": learning_rate(steps_done - 1, self.config),
            "images_per_second": round(self._images / max(seconds, 1e-9), 1),
        }
        self._restart()
        return record


@torch.no_grad()
def error_percent(model: nn.Module, images: Tensor, labels: Tensor, *, rows: int = 1000) -> Tensor:
    """Percentage of `images` that `model`, in eval mode, puts in a wrong class: 0-d float64, on device."""
    was_training = model.training
    model.eval()
    parts = zip(images.split(rows), labels.split(rows), strict=True)
    wrong = torch.stack([(model(part).argmax(1) != true).sum() for part, true in parts]).sum()
    model.train(was_training)
    return 100 * wrong.double() / len(labels)
