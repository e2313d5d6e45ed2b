"""Batches of views and labels, step by step, from images in memory or from files."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..config import Config
from .dataset import Dataset
from .raw import NO_LABEL
from .sampler import Draw, LabeledBatches
from .stream import StreamBatches
from .views import StreamViews, Views, with_noise


class Batch(NamedTuple):
    """What a step trains on."""

    views: list[Tensor]  # each [rows, channels, height, width] float32
    labels: Tensor  # [rows] int64, NO_LABEL where unlabeled


class Feed(AbstractContextManager, Protocol):
    """Gives the batch of each step; leaving its context stops what works in the background."""

    def batch(self, step: int) -> Batch:
        """The batch of `step`; steps are asked for in order."""
        ...


def make_feed(config: Config, data: Dataset, batches: LabeledBatches, views: int) -> Feed:
    """The feed for where the images are."""
    kind = MemoryFeed if isinstance(data.pool.images, Tensor) else StreamFeed
    return kind(config, data, batches, views)


class MemoryFeed:
    """Views made on the device that holds the images."""

    def __init__(self, config: Config, data: Dataset, batches: LabeledBatches, views: int) -> None:
        self.batches, self.labels = batches, data.pool.labels
        self.views = Views(config, data, views)

    def batch(self, step: int) -> Batch:
        """The batch of `step`, any."""
        draw = self.batches.draw(step)
        return Batch(self.views(draw, step), seen(self.labels[draw.index], draw))

    def __enter__(self) -> "MemoryFeed":
        return self

    def __exit__(self, *_: object) -> None:
        pass


class StreamFeed:
    """Views made by worker processes, which decode each image once; noise is added on the device."""

    def __init__(self, config: Config, data: Dataset, batches: LabeledBatches, views: int) -> None:
        self.config, self.batches, self.device = config, batches, data.device
        self.next = 0
        self.files, self.labels = data.pool.images, data.pool.labels
        self.views_of = StreamViews(config, data, views)
        self.quarantine = data.quarantine
        self.loaded: StreamBatches | None = None

    def batch(self, step: int) -> Batch:
        """The batch of `step`; another than the next one starts the workers anew."""
        if self.loaded is None or step != self.next:
            self._start(step)
        views, labels = next(self.loaded)
        self.next = step + 1
        # Both are pinned: moved before anything makes them anew.
        views, labels = (tensor.to(self.device, non_blocking=True) for tensor in (views, labels))
        labels = seen(labels, self.batches.draw(step))
        return Batch(with_noise(list(views), self.config, step), labels)

    def _start(self, step: int) -> None:
        self.__exit__()
        self.loaded = StreamBatches(
            self.files,
            self.labels,
            self.views_of,
            self._draws(step),
            size=self.views_of.size,
            workers=self.config.workers,
            pin=self.device.type == "cuda",
            quarantine=self.quarantine,
        )

    def _draws(self, step: int) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            draw = self.batches.draw(step)
            yield draw.index, draw.passes
            step += 1

    def __enter__(self) -> "StreamFeed":
        return self

    def __exit__(self, *_: object) -> None:
        if self.loaded is not None:
            self.loaded.close()
            self.loaded = None


def seen(labels: Tensor, draw: Draw) -> Tensor:
    """A batch's labels, those of its unlabeled part hidden."""
    part = torch.arange(len(labels), device=labels.device) < draw.unlabeled
    return labels.masked_fill(part, NO_LABEL)
