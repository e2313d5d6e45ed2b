"""The digits: one test set for ever, disjoint from the pool; labels balanced and chosen by the seed."""

import numpy as np
import pytest
import torch

from mtkernels.train.config import Config
from mtkernels.train.data import NO_LABEL, load_dataset
from mtkernels.train.data.split import balanced_choice


def digits(labels: int, seed: int):
    return load_dataset(Config(labels=labels, seed=seed))


def test_sizes_and_ranges():
    data = digits(20, 0)
    assert data.pool.images.shape == (1297, 1, 8, 8) and data.evaluation.images.shape == (500, 1, 8, 8)
    assert data.pool.images.dtype == torch.uint8 and data.pool.images.max() == data.raw.levels == 16
    assert len(data.labeled) == 20 and len(data.unlabeled) == 1277
    assert data.classes == 10 and data.channels == 1


def test_the_test_set_does_not_move_and_is_balanced():
    one, two = digits(20, 0), digits(400, 7)
    assert torch.equal(one.evaluation.images, two.evaluation.images)
    assert torch.equal(one.pool.images, two.pool.images)
    assert torch.bincount(one.evaluation.labels).tolist() == [50] * 10
    # The split is part of published figures: these sums change if it does.
    assert int(one.evaluation.images.sum()) == 155676
    assert int((one.evaluation.labels * torch.arange(500)).sum()) == 570140


def test_pool_and_test_set_are_disjoint_and_complete():
    from sklearn.datasets import load_digits

    data = digits(20, 0)
    rows = [
        tuple(image.flatten().tolist()) for image in torch.cat([data.pool.images, data.evaluation.images])
    ]
    assert sorted(rows) == sorted(tuple(image.flatten().tolist()) for image in load_digits().images)


@pytest.mark.parametrize("labels", [10, 20, 25, 99, 1200, 1297])
def test_labels_are_balanced_and_true(labels):
    data = digits(labels, 3)
    known = data.pool.labels[data.labeled]
    assert len(known) == labels and torch.equal(known, data.hidden_labels[data.labeled])
    assert (data.pool.labels[data.unlabeled] == NO_LABEL).all()
    counts, available = torch.bincount(known, minlength=10), torch.bincount(data.hidden_labels, minlength=10)
    assert ((counts >= counts.max() - 1) | (counts == available)).all()


def test_the_seed_chooses_the_labels():
    assert torch.equal(digits(25, 1).pool.labels, digits(25, 1).pool.labels)
    chosen = {tuple(digits(25, seed).labeled.tolist()) for seed in range(8)}
    known = [digits(25, seed).pool.labels for seed in range(8)]
    favoured = {tuple(torch.bincount(labels[labels != NO_LABEL]).tolist()) for labels in known}
    assert len(chosen) == 8 and len(favoured) > 1  # the five odd labels go to random classes


@pytest.mark.parametrize("labels", [1, 9, 1298])
def test_too_few_or_too_many_labels_are_refused(labels):
    with pytest.raises(ValueError, match=rf"labels must be between 10 .* and 1297 .*, got {labels}"):
        digits(labels, 0)


def test_choice_fills_up_from_the_classes_that_have_some_left():
    classes = np.array([0] * 2 + [1] * 50 + [2] * 50)
    chosen = balanced_choice(classes, 21, np.random.RandomState(0))
    counts = np.bincount(classes[chosen])
    assert counts[0] == 2 and sorted(counts[1:]) == [9, 10]
