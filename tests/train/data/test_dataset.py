"""From a format's images to what a run trains on: labels, images held out, images added, sizes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mtkernels.train.config import Config, SettingError
from mtkernels.train.data import NO_LABEL, Quarantine, load_dataset
from mtkernels.train.data.dataset import make_dataset
from mtkernels.train.data.labels import image_names, write_label_file
from mtkernels.train.data.raw import ImageSet, RawData

from .formats import digit_images, write_cifar10_python, write_svhn


@pytest.fixture(scope="module")
def cifar(tmp_path_factory) -> Config:
    folder = tmp_path_factory.mktemp("cifar")
    write_cifar10_python(folder, digit_images())
    return Config(dataset="cifar10", data=folder, labels=20)


def test_the_pool_and_its_labels(cifar):
    data = load_dataset(cifar)
    assert len(data.pool) == 200 and len(data.labeled) == 20 and len(data.unlabeled) == 180
    assert data.classes == 10 and data.channels == 3 and len(data.evaluation) == 60
    assert torch.equal(data.pool.labels[data.labeled], data.hidden_labels[data.labeled])
    assert torch.bincount(data.pool.labels[data.labeled]).tolist() == [2] * 10


def test_images_held_out_are_not_trained_on(cifar):
    data = load_dataset(replace(cifar, validation=30, eval_split="validation"))
    assert len(data.pool) == 170 and len(data.evaluation) == 30
    assert not set(data.pool.names) & set(data.evaluation.names)
    everything = load_dataset(cifar)
    labels = dict(zip(everything.pool.names, everything.hidden_labels.tolist(), strict=True))
    assert [labels[name] for name in data.evaluation.names] == data.evaluation.labels.tolist()
    with pytest.raises(SettingError, match=r"validation must be 0, or 10 .* and below 200 .*, got 200"):
        load_dataset(replace(cifar, validation=200, eval_split="validation"))


def test_errors_on_the_unlabeled_images(cifar):
    data = load_dataset(replace(cifar, eval_split="unlabeled"))
    assert torch.equal(data.evaluation.images, data.pool.images[data.unlabeled])
    assert torch.equal(data.evaluation.labels, data.hidden_labels[data.unlabeled])
    with pytest.raises(SettingError, match=r"eval_split must be test or validation where no unlabeled"):
        load_dataset(replace(cifar, labels="all", exclude_unlabeled=True, eval_split="unlabeled"))


def test_labels_of_a_file(cifar, tmp_path):
    """A run's labels.txt gives another run the same labels, whatever its seed, and keeps them from being held out."""
    data = load_dataset(replace(cifar, seed=3))
    path = tmp_path / "labels.txt"
    write_label_file(path, data.pool.labels, data.pool.names, data.raw.class_names)
    again = load_dataset(replace(cifar, seed=8, labels=path))
    assert torch.equal(again.pool.labels, data.pool.labels)
    held = load_dataset(replace(cifar, seed=8, labels=path, validation=100, eval_split="validation"))
    known = [held.pool.names[at] for at in held.labeled.tolist()]
    assert known == [data.pool.names[at] for at in data.labeled.tolist()] and len(held.evaluation) == 100


def test_positions_stand_for_names_and_do_not_move_with_the_images_held_out(tmp_path):
    write_svhn(tmp_path, digit_images())
    config = Config(dataset="svhn", data=tmp_path, labels=20, validation=50, eval_split="validation")
    data = load_dataset(config)
    path = tmp_path / "labels.txt"
    write_label_file(path, data.pool.labels, image_names(data.pool), data.raw.class_names)
    again = load_dataset(replace(config, labels=path, validation=0, eval_split="test"))
    names = [again.pool.names[at] for at in again.labeled.tolist()]
    assert names == [data.pool.names[at] for at in data.labeled.tolist()]


def test_extra_images_come_without_their_labels(tmp_path):
    write_svhn(tmp_path, digit_images(), extra=digit_images(90, 10))
    config = Config(dataset="svhn", data=tmp_path, labels=20, extra_unlabeled=40)
    data = load_dataset(config)
    assert len(data.pool) == 240 and len(data.labeled) == 20
    assert (data.pool.labels[200:] == NO_LABEL).all() and (data.hidden_labels[200:] >= 0).all()
    assert not torch.equal(load_dataset(replace(config, seed=1)).pool.images[200:], data.pool.images[200:])
    with pytest.raises(SettingError, match=r"extra_unlabeled must be at most 90 .*svhn.*, got 91"):
        load_dataset(replace(config, extra_unlabeled=91))
    with pytest.raises(SettingError, match=r"extra_unlabeled must be at most 0 .*digits.*, got 1"):
        load_dataset(Config(extra_unlabeled=1))


def test_sizes(cifar):
    """A whole part of the size is the mean of its pixels, which gives the digits back."""
    small = load_dataset(replace(cifar, image_size=8))
    assert torch.equal(small.pool.images, load_dataset(cifar).pool.images[:, :, ::4, ::4])
    assert load_dataset(replace(cifar, image_size=40)).evaluation.images.shape == (60, 3, 40, 40)


def test_whitened(cifar):
    data = load_dataset(replace(cifar, normalize="gcn-zca", image_size=8))
    assert data.pool.images.dtype == torch.float32
    assert data.pool.images.mean(0).abs().max() < 1e-3  # of each pixel
    (cache,) = Path(cifar.data).glob("zca-*.npz")
    assert torch.equal(
        load_dataset(replace(cifar, normalize="gcn-zca", image_size=8)).pool.images, data.pool.images
    )
    cache.unlink()


def test_pool_of_files_without_labels():
    """Images that no file labels stay unlabeled, and are never chosen."""
    labels = torch.tensor([0, 1, NO_LABEL, 0, 1, NO_LABEL])
    images = ImageSet(torch.zeros(6, 1, 4, 4, dtype=torch.uint8), labels)
    raw = RawData(images, images, ("a", "b"), (0.5,), (0.5,))
    data = make_dataset(raw, Config(labels=2), Quarantine())
    assert set(data.labeled.tolist()) <= {0, 1, 3, 4} and len(data.labeled) == 2
    assert make_dataset(raw, Config(labels="all"), Quarantine()).unlabeled.tolist() == [2, 5]
