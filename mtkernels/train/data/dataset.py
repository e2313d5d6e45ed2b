"""What every dataset gives the trainer: images in memory, labels for a few of them, and a test set."""

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from ..config import SettingError

NO_LABEL = -1  # the label of an unlabeled image; the class loss ignores it


@dataclass(frozen=True)
class Dataset:
    """A training pool of which some images are labeled, and a test set that training never sees."""

    images: Tensor  # [pool, channels, height, width] float32 in 0..1
    labels: Tensor  # [pool] int64, NO_LABEL where unlabeled
    hidden_labels: Tensor  # [pool] int64, all true labels: to validate settings with, never to train on
    test_images: Tensor  # [test, channels, height, width]
    test_labels: Tensor  # [test] int64

    @property
    def labeled(self) -> Tensor:
        """Indices of the labeled images in the pool."""
        return (self.labels != NO_LABEL).nonzero().flatten()

    @property
    def unlabeled(self) -> Tensor:
        """Indices of the unlabeled images in the pool."""
        return (self.labels == NO_LABEL).nonzero().flatten()

    def to(self, device: torch.device) -> "Dataset":
        """The same dataset with its tensors on `device`."""
        return Dataset(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


@dataclass(frozen=True)
class Source:
    """Where a dataset comes from, and what is known of it without loading it."""

    load: Callable[[int, int], Dataset]  # (labels, seed)
    classes: int


def balanced_choice(classes: np.ndarray, count: int, random: np.random.RandomState) -> np.ndarray:
    """Indices of `count` examples; the classes' shares differ by at most one while all have examples left.

    One of each class per round, the classes in random order: an uneven `count` favours random classes.
    """
    names = np.unique(classes)
    if not len(names) <= count <= len(classes):
        raise SettingError(
            f"labels must be between {len(names)} (one per class) and {len(classes)} (the training pool),"
            f" got {count}"
        )
    shuffled = random.permutation(len(classes))
    turn = {name: place for place, name in enumerate(random.permutation(names))}
    taken = dict.fromkeys(names, 0)
    rounds = np.empty((len(classes), 2), np.int64)
    for row, index in enumerate(shuffled):
        name = classes[index]
        rounds[row] = taken[name], turn[name]
        taken[name] += 1
    order = np.lexsort((rounds[:, 1], rounds[:, 0]))
    return np.sort(shuffled[order[:count]])
