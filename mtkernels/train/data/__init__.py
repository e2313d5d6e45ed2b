"""Datasets by name, and what a run makes of its own: labels for a few images, batches, views."""

from collections.abc import Callable

from ..config import Config
from .cifar import cifar10, cifar100
from .dataset import Dataset, make_dataset
from .decode import Quarantine
from .digits import digits
from .evaluation import Evaluation
from .feed import Batch, Counts, Feed, make_feed
from .folder import class_folders
from .npz import npz
from .raw import NO_LABEL, ImageFiles, ImageSet, RawData
from .sampler import Draw, EpochBatches, LabeledBatches, TwoStreamBatches
from .svhn import svhn
from .views import Pixels, Views

Batches = LabeledBatches | EpochBatches | TwoStreamBatches


def _svhn(config: Config, quarantine: Quarantine) -> RawData:
    return svhn(config.folder, extra=config.extra_unlabeled > 0)


def _folder(config: Config, quarantine: Quarantine) -> RawData:
    return class_folders(
        config.folder,
        train=config.train_subdir,
        test=config.eval_subdir,
        image_size=config.image_size,
        in_memory=False if config.dataset == "imagenet" else None,
        quarantine=quarantine,
    )


DATASETS: dict[str, Callable[[Config, Quarantine], RawData]] = {
    "digits": lambda config, quarantine: digits(),
    "cifar10": lambda config, quarantine: cifar10(config.folder),
    "cifar100": lambda config, quarantine: cifar100(config.folder),
    "svhn": _svhn,
    "imagenet": _folder,
    "folder": _folder,
    "npz": lambda config, quarantine: npz(config.folder),
}


def load_dataset(config: Config) -> Dataset:
    """What `config` trains on; each in a file of its own here."""
    quarantine = Quarantine()
    return make_dataset(DATASETS[config.dataset](config, quarantine), config, quarantine)


__all__ = [
    "DATASETS",
    "NO_LABEL",
    "Batch",
    "Batches",
    "Counts",
    "Dataset",
    "Draw",
    "EpochBatches",
    "Evaluation",
    "Feed",
    "ImageFiles",
    "ImageSet",
    "LabeledBatches",
    "Pixels",
    "Quarantine",
    "RawData",
    "TwoStreamBatches",
    "Views",
    "load_dataset",
    "make_feed",
]
