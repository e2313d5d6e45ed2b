"""Every setting of a training run, its unit and its check: the one place for all three."""

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints


class SettingError(ValueError):
    """A setting that cannot be used: the sentence is for its user, so the command line prints it alone."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of one training run. Lengths and intervals are in steps; one step is one batch."""

    method: Literal["mean-teacher", "supervised"] = "mean-teacher"
    """What to train with."""
    dataset: Literal["digits"] = "digits"
    """What to train on."""
    labels: int = 20
    """Labeled images, spread evenly over the classes and chosen by the seed; the rest stay unlabeled."""
    seed: int = 0
    """Seed of everything random: which images are labeled, first weights, batches, views, dropout."""

    steps: int = 2000
    """Length of the training, in optimizer steps."""
    batch_size: int = 120
    """Images in a batch, labeled and unlabeled together."""
    labeled_batch_size: int = 20
    """Labeled images in a batch; `supervised` trains on batches of these alone."""

    model: Literal["convnet"] = "convnet"
    """Network of student and teacher."""
    width: int = 32
    """Filters of the network's first block; the second has twice as many."""
    dropout: float = 0.5
    """Probability that dropout zeroes a unit, in student and teacher."""

    lr: float = 0.1
    """Highest learning rate of SGD."""
    initial_lr: float = 0.0
    """Learning rate at step 0 of the linear ramp-up."""
    lr_rampup: int = 0
    """Steps over which the learning rate rises linearly from initial_lr to lr (0: none)."""
    lr_rampdown: int | None = None
    """Step at which the learning rate's cosine ramp-down reaches 0 (None: the last one, 0: no ramp-down)."""
    momentum: float = 0.9
    """Momentum of SGD."""
    nesterov: bool = True
    """Nesterov's form of the momentum."""
    weight_decay: float = 1e-4
    """L2 penalty of SGD, on all parameters."""

    ema_decay: float = 0.99
    """teacher <- decay * teacher + (1 - decay) * student; decay = min(1 - 1/(step + 1), ema_decay)."""
    buffers: Literal["average", "copy", "keep"] = "average"
    """Batch norm's statistics in the teacher: averaged like weights, the student's, or the teacher's own."""
    consistency: float = 100.0
    """Highest weight of the consistency loss; the class loss is a sum over labeled images / batch_size."""
    consistency_type: Literal["mse", "kl"] = "mse"
    """Distance of the predictions: mean squared difference of probabilities, or KL(teacher || student)."""
    consistency_rampup: int = 500
    """Steps of the sigmoid ramp-up of the consistency weight (0: none)."""

    rotate: float = 15.0
    """Augmentation: rotation, uniform in +- this many degrees."""
    zoom: float = 0.15
    """Augmentation: width and height each scaled by a factor uniform in 1 +- this."""
    shear: float = 0.2
    """Augmentation: horizontal shear, uniform in +- this (shift per unit of height)."""
    shift: float = 1.0
    """Augmentation: shift along each axis, uniform in +- this many pixels."""
    warp: float = 0.0
    """Augmentation: smooth random warp, standard deviation in pixels of its 3 x 3 control points."""
    noise: float = 0.1
    """Augmentation: standard deviation of Gaussian noise; pixels are 0 to 1."""

    eval_interval: int = 100
    """Steps between evaluations of student and teacher, each one line of metrics."""
    eval_split: Literal["test", "unlabeled"] = "test"
    """Errors on the test images, or on the unlabeled training images, to choose settings by."""

    out: Path = Path("runs")
    """Folder that the run's own folder is made in."""
    name: str | None = None
    """Name of the run's folder; made from dataset, method, labels and seed when not given."""
    device: str = "cpu"
    """torch device: cpu, cuda, cuda:1 ..."""
    threads: int = 0
    """CPU threads (0: torch's default)."""

    def validate(self) -> None:
        """Raise SettingError, one sentence with field and value, for the first setting without sense."""
        for names, low, high, words in _RANGES:
            for name in names:
                value = getattr(self, name)
                if value is not None and not low <= value <= high:  # also refuses nan
                    raise SettingError(f"{name} must be {words}, got {value}")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise SettingError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        if self.method != "supervised" and self.labeled_batch_size >= self.batch_size:
            raise SettingError(
                f"labeled_batch_size must be below batch_size ({self.batch_size}),"
                f" got {self.labeled_batch_size}"
            )
        if self.lr_rampdown and self.lr_rampdown < self.steps:
            raise SettingError(
                f"lr_rampdown must be 0 or at least steps ({self.steps}), got {self.lr_rampdown}"
            )
        if self.nesterov and self.momentum == 0:
            raise SettingError("momentum must be above 0 where nesterov is on, got 0")
        if self.name is not None and not re.fullmatch(r"[\w][\w.+=-]*", self.name):
            raise SettingError(f"name must be letters, digits and . _ + = - only, got {self.name!r}")

    def as_dict(self) -> dict[str, object]:
        """The fields as JSON can hold them."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


_CHOICES = {
    name: get_args(hint) for name, hint in get_type_hints(Config).items() if get_origin(hint) is Literal
}  # field -> what it may be
_LARGE = 1e9  # refuses inf
_RANGES = (
    (("labels", "steps", "eval_interval", "width"), 1, _LARGE, "1 or more"),
    (("batch_size", "labeled_batch_size"), 1, _LARGE, "1 or more"),
    (("seed",), 0, 2**32 - 1, "between 0 and 2**32 - 1"),
    (("lr", "initial_lr", "lr_rampup", "lr_rampdown", "weight_decay"), 0, _LARGE, "0 or more"),
    (("consistency", "consistency_rampup", "threads"), 0, _LARGE, "0 or more"),
    (("rotate", "shear", "shift", "warp", "noise"), 0, _LARGE, "0 or more"),
    (("momentum", "dropout", "ema_decay", "zoom"), 0, 1, "between 0 and 1"),
)  # fields, low, high, the words for it
