"""What a loader of a format gives: images as they are on disk, before labels are chosen and anything is split off."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

_CHUNK = 2**22  # pixels counted at once
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


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel of uint8 [N, C, H, W] as pixels 0 to 1; a constant one has deviation 1."""
    counts = torch.zeros(images.shape[1], 256, dtype=torch.int64)  # of each value in each channel
    for chunk in images.split(max(1, _CHUNK // images[0].numel())):
        for channel, count in enumerate(counts):
            count += torch.bincount(chunk[:, channel].flatten(), minlength=256)
    number, values = images.numel() // images.shape[1], torch.arange(256)
    sums = list(zip((counts @ values).tolist(), (counts @ values**2).tolist(), strict=True))
    mean = tuple(total / number / 255 for total, _ in sums)
    std = tuple(math.sqrt(number * squares - total**2) / number / 255 or 1.0 for total, squares in sums)
    return mean, std
