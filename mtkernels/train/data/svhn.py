"""SVHN's cropped digits: train_32x32.mat, test_32x32.mat and the easier, larger extra_32x32.mat."""

from pathlib import Path

import numpy as np
import torch

from ..config import SettingError
from .raw import ImageSet, RawData


def svhn(root: Path, *, extra: bool = False) -> RawData:
    """SVHN in the folder `root`; `extra` also reads the third file (531,131 images, 1.6 GB in memory).

    The files' label 10 is the digit 0. The images have no names: a label file gives their positions.
    """
    return RawData(
        train=_read(root / "train_32x32.mat"),
        test=_read(root / "test_32x32.mat"),
        class_names=tuple("0123456789"),
        mean=(0.4377, 0.4438, 0.4728),
        std=(0.1980, 0.2010, 0.1970),
        extra=_read(root / "extra_32x32.mat") if extra else None,
    )


def _read(path: Path) -> ImageSet:
    from scipy.io import loadmat

    if not path.is_file():
        raise SettingError(f"{path} does not exist")
    try:
        arrays = loadmat(path, variable_names=["X", "y"])
    except Exception as error:  # damaged bytes can raise anything
        raise SettingError(f"{path} is damaged or no MATLAB 5 file: {error}") from error
    for name in ("X", "y"):
        if name not in arrays:
            raise SettingError(f"{path} has no array {name}")
    images, labels = arrays.pop("X"), arrays.pop("y").ravel()
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[:3] != (32, 32, 3):
        raise SettingError(f"{path}: X must be uint8 [32, 32, 3, N], got {images.dtype} {list(images.shape)}")
    count = images.shape[3]
    if len(labels) != count or not count:
        raise SettingError(f"{path} must have one label for each image, got {count} and {len(labels)}")
    wrong = labels[~np.isin(labels, range(1, 11))]
    if len(wrong):
        raise SettingError(f"{path}: labels must be between 1 and 10, got {wrong[0]}")
    return ImageSet(
        torch.from_numpy(np.ascontiguousarray(images.transpose(3, 2, 0, 1))),
        torch.from_numpy(labels.astype(np.int64) % 10),
    )
