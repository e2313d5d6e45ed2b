"""scikit-learn's 1,797 handwritten digits of 8 x 8 pixels (UCI optical recognition, its test part)."""

import numpy as np
import torch

from ..seeds import stream_seed
from .dataset import NO_LABEL, Dataset, balanced_choice

_TEST_IMAGES = 500
_SPLIT_SEED = 0  # the split is part of the dataset: it does not move with a run's seed


def digits(labels: int, seed: int) -> Dataset:
    """1,297 training images, `labels` of them labeled as `seed` chooses; 500 test images, always the same."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float().div_(16.0).unsqueeze(1)
    classes = bunch.target.astype(np.int64)
    # RandomState, not default_rng: numpy promises that its streams never change.
    test = balanced_choice(classes, _TEST_IMAGES, np.random.RandomState(_SPLIT_SEED))
    pool = np.setdiff1d(np.arange(len(classes)), test)
    labeled = balanced_choice(classes[pool], labels, np.random.RandomState(stream_seed(seed, "labels")))
    known = torch.full((len(pool),), NO_LABEL)
    hidden = torch.from_numpy(classes[pool])
    known[labeled] = hidden[labeled]
    return Dataset(
        images=images[pool],
        labels=known,
        hidden_labels=hidden,
        test_images=images[test],
        test_labels=torch.from_numpy(classes[test]),
    )
