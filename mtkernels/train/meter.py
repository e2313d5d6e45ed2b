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
    """Sums what the steps report; `record` averages the sums, evaluates both models, and transfers once."""

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
        """Losses averaged since the last record, errors in percent, images per second of training (evaluation apart)."""
        sums = list(self._sums.values())
        losses = (
            [] if not sums else (torch.stack(sums).double() / self._steps).tolist()
        )  # waits for the device
        seconds = time.perf_counter() - self._started
        record: Record = {"step": steps_done, **dict(zip(self._sums, losses, strict=True))}
        for name, loss in zip(self._sums, losses, strict=True):
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"{name} must stay finite, got {loss} by step {steps_done}: try a lower lr or consistency"
                )
        models = (self.method.student, self.method.teacher)
        errors = torch.stack([error_percent(model, self.images, self.labels) for model in models])
        record["student_error"], record["teacher_error"] = errors.tolist()
        record["consistency_weight"] = self.method.consistency_weight(steps_done - 1)
        record["lr"] = learning_rate(steps_done - 1, self.config)
        record["images_per_second"] = self._images / max(seconds, 1e-9)
        self._restart()
        return record


@torch.no_grad()
def error_percent(model: nn.Module, images: Tensor, labels: Tensor, *, rows: int = 1000) -> Tensor:
    """Percentage of `images` that `model`, in eval mode, puts in a wrong class: float64, 0-d, on their device."""
    was_training = model.training
    model.eval()
    parts = zip(images.split(rows), labels.split(rows), strict=True)
    wrong = torch.stack([(model(part).argmax(1) != true).sum() for part, true in parts]).sum()
    model.train(was_training)
    return 100 * wrong.double() / len(labels)
