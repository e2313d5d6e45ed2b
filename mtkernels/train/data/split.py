"""Which training images are held out to validate on, and which of the others keep their labels: both by the seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..config import SettingError
from ..seeds import stream_seed
from .raw import NO_LABEL, ImageFiles, ImageSet


def hold_out(labels: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Indices, ascending, of the images (kept, held out): `count` of those with labels, balanced over the classes."""
    known = _known(labels)
    classes = len(labels[known].unique())
    if count and not classes <= count < len(known):
        raise SettingError(
            f"validation must be 0, or {classes} (one per class) or more and below {len(known)}"
            f" (the labels that the data has), got {count}"
        )
    held = torch.zeros(len(labels), dtype=torch.bool)
    if count:
        # A counter: the stream differs from that of choose_labels.
        held[_choose(labels, known, count, stream_seed(seed, "labels", 1))] = True
    return (~held).nonzero().flatten(), held.nonzero().flatten()


def choose_labels(labels: Tensor, count: int, seed: int) -> Tensor:
    """`labels` with all made NO_LABEL but `count`, balanced over the classes."""
    chosen = _choose(labels, _known(labels), count, stream_seed(seed, "labels"))
    kept = torch.full_like(labels, NO_LABEL)
    kept[chosen] = labels[chosen]
    return kept


def subset(images: ImageSet, indices: Tensor) -> ImageSet:
    """The images at `indices`, in that order."""
    at = indices.tolist()
    pixels = images.images
    return ImageSet(
        images=pixels[indices] if isinstance(pixels, Tensor) else _SomeFiles(pixels, at),
        labels=images.labels[indices],
        names=images.names and tuple(images.names[place] for place in at),
    )


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


@dataclass(frozen=True)
class _SomeFiles:
    files: ImageFiles
    at: Sequence[int]

    @property
    def paths(self) -> Sequence[Path]:
        return [self.files.paths[place] for place in self.at]

    def decode(self, at: int, least: int) -> np.ndarray:
        return self.files.decode(self.at[at], least)

    def __len__(self) -> int:
        return len(self.at)


def _known(labels: Tensor) -> Tensor:
    return (labels != NO_LABEL).nonzero().flatten()


def _choose(labels: Tensor, known: Tensor, count: int, seed: int) -> Tensor:
    return known[balanced_choice(labels[known].numpy(), count, np.random.RandomState(seed))]
