"""What every dataset gives the trainer: images, labels for a few of them, and a test set that training never sees."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import Config, SettingError
from ..seeds import stream_seed
from .decode import Quarantine
from .labels import image_names, read_label_file
from .raw import NO_LABEL, ImageSet, RawData
from .split import choose_labels, hold_out, subset
from .whiten import Whitening, whiten


@dataclass(frozen=True)
class Dataset:
    """A training pool of which some images are labeled, and the images that errors are measured on."""

    pool: ImageSet  # its labels are what training sees: NO_LABEL where unlabeled
    hidden_labels: (
        Tensor  # [pool] int64, all labels that the files have: to validate settings with, never to train on
    )
    evaluation: ImageSet
    raw: RawData  # what it was made of: names of the classes, channels' statistics
    quarantine: Quarantine  # broken files

    @property
    def classes(self) -> int:
        return len(self.raw.class_names)

    @property
    def channels(self) -> int:
        images = self.raw.train.images
        return images.shape[1] if isinstance(images, Tensor) else 3

    @property
    def labeled(self) -> Tensor:
        """Indices of the labeled images in the pool."""
        return (self.pool.labels != NO_LABEL).nonzero().flatten()

    @property
    def unlabeled(self) -> Tensor:
        """Indices of the unlabeled images in the pool."""
        return (self.pool.labels == NO_LABEL).nonzero().flatten()

    def to(self, device: torch.device) -> "Dataset":
        """The same dataset with its tensors on `device`; images that are files stay."""
        return replace(
            self,
            pool=_moved(self.pool, device),
            evaluation=_moved(self.evaluation, device),
            hidden_labels=self.hidden_labels.to(device),
        )


def make_dataset(raw: RawData, config: Config, quarantine: Quarantine) -> Dataset:
    """Chooses what is labeled, what is held out and what is added, by the seed; resizes and whitens where asked."""
    raw = _whitened(_resized(raw, config.image_size), config)
    named = replace(raw.train, names=image_names(raw.train))  # positions count from the files' first image
    if isinstance(config.labels, Path):
        seen = read_label_file(config.labels, named.names, raw.class_names)
        kept, held_out = hold_out(
            named.labels.where(seen == NO_LABEL, NO_LABEL), config.validation, config.seed
        )
        seen = seen[kept]
    else:
        kept, held_out = hold_out(named.labels, config.validation, config.seed)
        known = named.labels[kept]
        seen = known if config.labels == "all" else choose_labels(known, config.labels, config.seed)
    pool, hidden = replace(subset(named, kept), labels=seen), named.labels[kept]
    if config.extra_unlabeled:
        pool, hidden = _with_extra(pool, hidden, raw, config)
    evaluation = _evaluated(raw, pool, hidden, subset(raw.train, held_out), config)
    return Dataset(pool, hidden, evaluation, raw, quarantine)


def _evaluated(raw: RawData, pool: ImageSet, hidden: Tensor, held_out: ImageSet, config: Config) -> ImageSet:
    if config.eval_split == "validation":
        return held_out
    if config.eval_split == "test":
        return raw.test
    known = ((pool.labels == NO_LABEL) & (hidden != NO_LABEL)).nonzero().flatten()
    if not len(known):
        raise SettingError(
            "eval_split must be test or validation where no unlabeled image has a known class, got 'unlabeled'"
        )
    return subset(replace(pool, labels=hidden), known)


def _with_extra(pool: ImageSet, hidden: Tensor, raw: RawData, config: Config) -> tuple[ImageSet, Tensor]:
    available = 0 if raw.extra is None else len(raw.extra)
    if config.extra_unlabeled > available:
        raise SettingError(
            f"extra_unlabeled must be at most {available} (the extra images of {config.dataset}),"
            f" got {config.extra_unlabeled}"
        )
    # RandomState, not default_rng: numpy promises that its streams never change.
    random = np.random.RandomState(stream_seed(config.seed, "extra"))
    chosen = random.permutation(available)[: config.extra_unlabeled]
    extra = subset(raw.extra, torch.from_numpy(np.sort(chosen)))
    images = torch.cat([pool.images, extra.images])
    labels = torch.cat([pool.labels, torch.full_like(extra.labels, NO_LABEL)])
    names = tuple(f"extra {at}" for at in np.sort(chosen).tolist())
    return ImageSet(images, labels, pool.names + names), torch.cat([hidden, extra.labels])


def _resized(raw: RawData, size: int | None) -> RawData:
    """In-memory images of another size are brought to it; files are, when they are read."""
    if (
        size is None
        or not isinstance(raw.train.images, Tensor)
        or raw.train.images.shape[-2:] == (size, size)
    ):
        return raw

    def resize(images: ImageSet) -> ImageSet:
        parts = []
        for part in images.images.split(4096):
            smaller = part.shape[-1] >= size and part.shape[-2] >= size
            options = {"mode": "area"} if smaller else {"mode": "bilinear", "antialias": True}
            parts.append(F.interpolate(part.float(), (size, size), **options).round().to(torch.uint8))
        return replace(images, images=torch.cat(parts))

    extra = None if raw.extra is None else resize(raw.extra)
    return replace(raw, train=resize(raw.train), test=resize(raw.test), extra=extra)


def _whitened(raw: RawData, config: Config) -> RawData:
    if config.normalize not in get_args(Whitening):
        return raw
    folder = config.folder
    return whiten(raw, config.normalize, cache=folder if folder.is_dir() else folder.parent)


def _moved(images: ImageSet, device: torch.device) -> ImageSet:
    pixels = images.images.to(device) if isinstance(images.images, Tensor) else images.images
    return replace(images, images=pixels, labels=images.labels.to(device))
