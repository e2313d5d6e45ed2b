"""Batches of views and labels, step by step, from images in memory or from files: this rank's part of each."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..config import Config
from ..distributed import ALONE, Ranks, share
from .dataset import Dataset
from .raw import NO_LABEL
from .sampler import Draw, LabeledBatches
from .stream import StreamBatches
from .views import StreamViews, Views, with_noise

_AHEAD = 64  # steps whose random numbers are drawn at once


class Counts(NamedTuple):
    """What the losses of a batch are divided by, whichever part of it is at hand."""

    rows: int  # of the whole batch
    class_rows: int | Tensor  # the same for the class loss: the rows, or those with a label


class Batch(NamedTuple):
    """What a step trains on: all of a batch, or a part of it."""

    views: list[Tensor]  # each [rows, channels, height, width] float32
    labels: Tensor  # [rows] int64, NO_LABEL where unlabeled
    counts: Counts
    rows: Tensor | None = None  # [rows] int64: which ones of the whole batch these are; None: all of it
    split: Sequence[Tensor] = ()  # which of these rows make up each part, where there is more than one

    def parts(self) -> Iterator["Batch"]:
        """What goes through the network at once, one after the other; each has its share of either stream."""
        if not self.split:
            yield self
        for at in self.split:
            rows = at if self.rows is None else self.rows[at]
            yield Batch([view[at] for view in self.views], self.labels[at], self.counts, rows)


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
        self.batches, self.labels, self.device = batches, data.pool.labels, data.device
        self.ranks, self.accumulate = ranks, config.accumulate
        self.over_labeled = config.class_loss_over == "labeled"

    @cached_property
    def total(self) -> int:
        """Rows of a whole batch."""
        return len(self.batches.draw(0).index)

    @cached_property
    def _share(self) -> tuple[Tensor, list[Tensor], int]:
        """The same of every batch: this rank's rows, those of each part, and how many are of the unlabeled stream."""
        draw = self.batches.draw(0)
        rows, split = share(draw.unlabeled, self.total, self.ranks, self.accumulate)
        unlabeled = int((rows < draw.unlabeled).sum())
        return rows.to(self.device), [part.to(self.device) for part in split], unlabeled

    @property
    def unlabeled(self) -> int:
        """Of this rank's rows, the first ones."""
        return self._share[2]

    @cached_property
    def rows(self) -> Tensor | None:
        """This rank's, on the device; None: all."""
        return None if self.ranks.world == 1 else self._share[0]

    @cached_property
    def _drawn(self) -> Tensor:
        """The same where images are drawn."""
        return self.rows.to(self.batches.draw(0).index.device)

    def mine(self, draw: Draw) -> Draw:
        """This rank's images of a batch."""
        if self.rows is None:
            return draw
        return Draw(draw.index[self._drawn], draw.passes[self._drawn], self.unlabeled)

    def seen(self, draws: Sequence[Draw]) -> Tensor:
        """Labels [batches, rows] of whole batches, those of the unlabeled part hidden."""
        labels = self.labels[torch.stack([draw.index for draw in draws])]
        labels[:, : draws[0].unlabeled] = NO_LABEL
        return labels

    def batch(self, views: list[Tensor], labels: Tensor, class_rows: Tensor | None) -> Batch:
        """This rank's views and labels. class_rows: None where the class loss is over all rows."""
        split = () if self.accumulate == 1 else self._share[1]
        counts = Counts(self.total, self.total if class_rows is None else class_rows)
        return Batch(views, labels, counts, self.rows, split)

    def batches_of(self, draws: Sequence[Draw], views: Iterable[list[Tensor]]) -> Iterator[Batch]:
        """Batches of this rank's views of images in memory; the labels of all are looked up at once."""
        labels = self.seen(draws)
        over = (labels != NO_LABEL).sum(1).clamp(min=1) if self.over_labeled else None
        labels = labels if self.rows is None else labels[:, self.rows]
        for at, parts in enumerate(views):
            yield self.batch(parts, labels[at], None if over is None else over[at])


class MemoryFeed:
    """Views made on the device that holds the images; what is random of them is drawn for many steps at once."""

    def __init__(
        self, config: Config, data: Dataset, batches: LabeledBatches, views: int, ranks: Ranks = ALONE
    ) -> None:
        self.shares = _Shares(config, data, batches, ranks)
        self.views = Views(config, data, views)
        # Drawn by the step for all rows of a batch: every rank makes them all, and takes its own.
        self.whole = ranks.world > 1 and (config.augment == "affine" or config.noise > 0)
        self.next, self.made = -1, iter(())

    def batch(self, step: int) -> Batch:
        """The batch of `step`, any."""
        if step != self.next:
            self.made = self._from(step)
        self.next = step + 1
        return next(self.made)

    def _from(self, step: int) -> Iterator[Batch]:
        while True:
            draws = [self.shares.batches.draw(at) for at in range(step, step + _AHEAD)]
            yield from self.shares.batches_of(draws, self._views(draws, step))
            step += _AHEAD

    def _views(self, draws: Sequence[Draw], step: int) -> Iterator[list[Tensor]]:
        if not self.whole:
            yield from self.views.ahead([self.shares.mine(draw) for draw in draws], step)
            return
        for views in self.views.ahead(draws, step):
            yield [view[self.shares.rows] for view in views]

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
        self.next = -1
        self.files, self.labels = data.pool.images, data.pool.labels
        self.views_of = StreamViews(config, data, views)
        self.quarantine = data.quarantine
        self.loaded: StreamBatches | None = None

    def batch(self, step: int) -> Batch:
        """The batch of `step`; another than the next one starts the workers anew."""
        if step != self.next:
            self._start(step)
        views, labels = next(self.loaded)
        self.next = step + 1
        # Both are pinned: moved before anything makes them anew.
        views, labels = (tensor.to(self.device, non_blocking=True) for tensor in (views, labels))
        labels[: self.shares.unlabeled] = NO_LABEL
        over = None
        if self.shares.over_labeled:
            known = self.shares.seen([self.shares.batches.draw(step)]) != NO_LABEL
            # Files' labels are with the host. On the device it is a tensor, which a captured step reads anew.
            over = torch.full((), max(int(known.sum()), 1), device=self.device)
        views = with_noise(list(views), self.config, step, self.shares.rows, self.shares.total)
        return self.shares.batch(views, labels, over)

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
            draw = self.shares.mine(self.shares.batches.draw(step))
            yield draw.index, draw.passes
            step += 1

    def __enter__(self) -> "StreamFeed":
        return self

    def __exit__(self, *_: object) -> None:
        loaded, self.loaded = self.loaded, None
        if loaded is not None:
            loaded.close()
