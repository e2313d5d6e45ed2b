"""Batches of views and labels, step by step, from images in memory or from files: this rank's part of each."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..config import Config
from ..distributed import ALONE, Ranks, places
from .dataset import Dataset
from .raw import NO_LABEL
from .sampler import Draw, LabeledBatches
from .stream import StreamBatches
from .views import StreamViews, Views, with_noise


class Counts(NamedTuple):
    """What the losses of a batch are divided by, whichever part of it is at hand."""

    rows: int  # of the whole batch
    class_rows: int | Tensor  # the same for the class loss: the rows, or those with a label


class Batch(NamedTuple):
    """What a step trains on: all of a batch, or a part of it."""

    views: list[Tensor]  # each [rows, channels, height, width] float32
    labels: Tensor  # [rows] int64, NO_LABEL where unlabeled
    counts: Counts
    rows: Tensor | None  # [rows] int64: which ones of the whole batch these are; None: all of it
    unlabeled: int  # of these rows, the first ones

    def parts(self, count: int) -> Iterator["Batch"]:
        """Itself in so many parts, each with its share of either stream."""
        if count == 1:
            yield self
            return
        rows = torch.arange(len(self.labels)) if self.rows is None else self.rows
        for number in range(count):
            at = places(self.unlabeled, len(self.labels), number, count)
            here = at.to(self.labels.device)
            unlabeled = int((at < self.unlabeled).sum())
            yield Batch(
                [view[here] for view in self.views], self.labels[here], self.counts, rows[at], unlabeled
            )


class Feed(AbstractContextManager, Protocol):
    """Gives the batch of each step; leaving its context stops what works in the background."""

    def batch(self, step: int) -> Batch:
        """The batch of `step`; steps are asked for in order."""
        ...


def make_feed(
    config: Config, data: Dataset, batches: LabeledBatches, views: int, ranks: Ranks = ALONE
) -> Feed:
    """The feed for where the images are."""
    kind = MemoryFeed if isinstance(data.pool.images, Tensor) else StreamFeed
    return kind(config, data, batches, views, ranks)


class _Shares:
    """Which rows of each batch are this rank's, and what the labels of a batch count."""

    def __init__(self, config: Config, data: Dataset, batches: LabeledBatches, ranks: Ranks) -> None:
        self.batches, self.ranks, self.labels = batches, ranks, data.pool.labels
        self.over_labeled = config.class_loss_over == "labeled"

    @cached_property
    def rows(self) -> Tensor | None:
        """The same ones of every batch; None: all."""
        if self.ranks.world == 1:
            return None
        draw = self.batches.draw(0)
        return places(draw.unlabeled, len(draw.index), self.ranks.rank, self.ranks.world)

    def draw(self, step: int) -> Draw:
        """This rank's images of `step`."""
        draw = self.batches.draw(step)
        return draw if self.rows is None else draw.take(self.rows)

    def batch(self, views: list[Tensor], labels: Tensor, step: int) -> Batch:
        """Views and known labels of this rank's images as a batch."""
        draw = self.batches.draw(step)
        rows = class_rows = len(draw.index)
        if self.over_labeled:
            known = seen(self.labels[draw.index], draw) != NO_LABEL
            class_rows = known.sum().clamp(min=1).to(labels.device)
        mine = draw if self.rows is None else draw.take(self.rows)
        return Batch(views, seen(labels, mine), Counts(rows, class_rows), self.rows, mine.unlabeled)


class MemoryFeed:
    """Views made on the device that holds the images."""

    def __init__(
        self, config: Config, data: Dataset, batches: LabeledBatches, views: int, ranks: Ranks = ALONE
    ) -> None:
        self.shares, self.labels = _Shares(config, data, batches, ranks), data.pool.labels
        self.views = Views(config, data, views)
        # Drawn by the step for all rows of a batch: every rank makes them all, and takes its own.
        self.whole = ranks.world > 1 and (config.augment == "affine" or config.noise > 0)

    def batch(self, step: int) -> Batch:
        """The batch of `step`, any."""
        draw = self.shares.draw(step)
        if self.whole:
            rows = self.shares.rows.to(draw.index.device)
            views = [view[rows] for view in self.views(self.shares.batches.draw(step), step)]
        else:
            views = self.views(draw, step)
        return self.shares.batch(views, self.labels[draw.index], step)

    def __enter__(self) -> "MemoryFeed":
        return self

    def __exit__(self, *_: object) -> None:
        pass


class StreamFeed:
    """Views made by worker processes, which decode each image once; noise is added on the device."""

    def __init__(
        self, config: Config, data: Dataset, batches: LabeledBatches, views: int, ranks: Ranks = ALONE
    ) -> None:
        self.config, self.device = config, data.device
        self.shares = _Shares(config, data, batches, ranks)
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
        return self.shares.batch(with_noise(list(views), self.config, step), labels, step)

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
            draw = self.shares.draw(step)
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
