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
from .raw import NO_LABEL, Facts, ImageSet, RawData
from .split import choose_labels, hold_out, subset
from .whiten import Whitener, Whitening, whiten

_CHUNK = 4096  # images resized at once

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Dataset:
    """A training pool of which some images are labeled, and the images that errors are measured on."""

    pool: ImageSet  # its labels are what training sees: NO_LABEL where unlabeled
    # [pool] int64 on the CPU, all that the files have: to validate with, never to train on.
    hidden_labels: Tensor
    evaluation: ImageSet
    raw: Facts  # of what it was made of: names of the classes, channels' statistics
    quarantine: Quarantine  # broken files
    whitening: Whitener | None = None  # what made the images float32
    device: torch.device = _CPU  # where the networks are

    @property
    def classes(self) -> int:
        return len(self.raw.class_names)

    @property
    def channels(self) -> int:
        return self.raw.channels

    @property
    def labeled(self) -> Tensor:
        """Indices of the labeled images in the pool."""
        return (self.pool.labels != NO_LABEL).nonzero().flatten()

    @property
    def unlabeled(self) -> Tensor:
        """Indices of the unlabeled images in the pool."""
        return (self.pool.labels == NO_LABEL).nonzero().flatten()

    def to(self, device: torch.device) -> "Dataset":
        """The same dataset for networks on `device`: images in memory go there, with their labels."""
        return replace(
            self, pool=_moved(self.pool, device), evaluation=_moved(self.evaluation, device), device=device
        )


def make_dataset(raw: RawData, config: Config, quarantine: Quarantine) -> Dataset:
    """Chooses what is labeled, what is held out and what is added, by the seed; resizes and whitens where asked."""
    raw = _resized(_with_chosen_extra(raw, config), config.image_size)
    raw, whitening = _whitened(raw, config)
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
    if raw.extra is not None:
        pool, hidden = _joined(pool, raw.extra), torch.cat([hidden, raw.extra.labels])
    evaluation = _evaluated(raw, pool, hidden, subset(raw.train, held_out), config)
    return Dataset(pool, hidden, evaluation, raw.facts, quarantine, whitening)


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


def _with_chosen_extra(raw: RawData, config: Config) -> RawData:
    """No more extra images than the run trains on."""
    available = 0 if raw.extra is None else len(raw.extra)
    if config.extra_unlabeled > available:
        raise SettingError(
            f"extra_unlabeled must be at most {available} (the extra images of {config.dataset}),"
            f" got {config.extra_unlabeled}"
        )
    if not config.extra_unlabeled:
        return replace(raw, extra=None)
    # RandomState, not default_rng: numpy promises that its streams never change.
    random = np.random.RandomState(stream_seed(config.seed, "extra"))
    chosen = np.sort(random.permutation(available)[: config.extra_unlabeled])
    names = tuple(f"extra {at}" for at in chosen.tolist())
    return replace(raw, extra=replace(subset(raw.extra, torch.from_numpy(chosen)), names=names))


def _joined(pool: ImageSet, extra: ImageSet) -> ImageSet:
    return ImageSet(
        torch.cat([pool.images, extra.images]),
        torch.cat([pool.labels, torch.full_like(extra.labels, NO_LABEL)]),
        pool.names + extra.names,
    )


def _resized(raw: RawData, size: int | None) -> RawData:
    """In-memory images of another size are brought to it; files are, when they are read."""
    if not isinstance(raw.train.images, Tensor):
        return raw
    train, test, extra = (
        part and replace(part, images=resized(part.images, size)) for part in (raw.train, raw.test, raw.extra)
    )
    return replace(raw, train=train, test=test, extra=extra)


def resized(images: Tensor, size: int | None) -> Tensor:
    """uint8 images [N, C, H, W] as [N, C, size, size]; the same tensor where they are, or None is asked for."""
    if size is None or images.shape[-2:] == (size, size):
        return images
    smaller = images.shape[-1] >= size and images.shape[-2] >= size
    options = {"mode": "area"} if smaller else {"mode": "bilinear", "antialias": True}
    result = images.new_empty(*images.shape[:2], size, size)
    for part, out in zip(images.split(_CHUNK), result.split(_CHUNK), strict=True):
        out.copy_(F.interpolate(part.float(), (size, size), **options).round())
    return result


def _whitened(raw: RawData, config: Config) -> tuple[RawData, Whitener | None]:
    if config.normalize not in get_args(Whitening):
        return raw, None
    folder = config.folder  # or a file, or nothing for a dataset that needs none
    existing = folder if folder.is_dir() else folder.parent if folder.exists() else None
    return whiten(raw, config.normalize, cache=existing)


def _moved(images: ImageSet, device: torch.device) -> ImageSet:
    if not isinstance(images.images, Tensor):
        return images  # batches are drawn where files are read: no step waits for the device to draw the next
    return replace(images, images=images.images.to(device), labels=images.labels.to(device))
