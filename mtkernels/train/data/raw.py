"""What a loader of a format gives: images as they are on disk, before labels are chosen and anything is split off."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor

NO_LABEL = -1  # the label of an unlabeled image; the class loss ignores it


class ImageFiles(Protocol):
    """Images that stay on disk, as too many to hold in memory; decoded one at a time."""

    paths: Sequence[Path]

    def decode(self, at: int, least: int) -> np.ndarray:
        """Image `at` as uint8 [height, width, 3]; it may come smaller, but neither side below `least` pixels."""
        ...

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class ImageSet:
    """Images and what is known of them."""

    images: (
        Tensor | ImageFiles
    )  # a tensor: [count, channels, height, width], uint8, or float32 where whitened
    labels: Tensor  # [count] int64, NO_LABEL where the files give none
    names: tuple[str, ...] | None = None  # of the files, in the images' order, where each has its own

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class RawData:
    """A dataset as its files have it."""

    train: ImageSet
    test: ImageSet
    class_names: tuple[str, ...]
    mean: tuple[float, ...]  # of each channel of the training images, of pixels 0 to 1
    std: tuple[float, ...]
    extra: ImageSet | None = None  # more training images, which a run may add without their labels (SVHN's)
    levels: int = 255  # the pixel value that stands for 1
