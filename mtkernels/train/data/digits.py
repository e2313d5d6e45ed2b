"""scikit-learn's 1,797 handwritten digits of 8 x 8 pixels (UCI optical recognition, its test part)."""

import numpy as np
import torch

from .raw import ImageSet, RawData
from .split import balanced_choice

_TEST_IMAGES = 500
_SPLIT_SEED = 0  # the split is part of the dataset: it does not move with a run's seed


def digits() -> RawData:
    """1,297 training images and 500 test images, always the same; pixels are 0 to 16."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images.astype(np.uint8)).unsqueeze(1)
    classes = bunch.target.astype(np.int64)
    # RandomState, not default_rng: numpy promises that its streams never change.
    test = balanced_choice(classes, _TEST_IMAGES, np.random.RandomState(_SPLIT_SEED))
    pool = np.setdiff1d(np.arange(len(classes)), test)
    pixels = images[pool].double() / 16
    return RawData(
        train=ImageSet(images[pool], torch.from_numpy(classes[pool])),
        test=ImageSet(images[test], torch.from_numpy(classes[test])),
        class_names=tuple(map(str, range(10))),
        mean=(float(pixels.mean()),),
        std=(float(pixels.std()),),
        levels=16,
    )
