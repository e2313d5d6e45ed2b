"""Which images make up the batch of a step, as a pure function of (seed, step)."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..config import SettingError
from ..seeds import Purpose, generator


class Draw(NamedTuple):
    """The images of a batch, and how often each stream has come by them: an image may come twice in a batch."""

    index: Tensor  # [batch_size] int64
    passes: Tensor  # [batch_size] int64: which permutation of its stream a row comes from
    unlabeled: int  # so many rows, the first ones, are taken as unlabeled

    def take(self, rows: Tensor) -> "Draw":
        """Some rows of it, in their order."""
        rows = rows.to(self.index.device)
        return Draw(self.index[rows], self.passes[rows], int((rows < self.unlabeled).sum()))


class _Permutations:
    """Random permutations of `indices`, one per epoch; keeps the last two, as batches move forward."""

    def __init__(self, indices: Tensor, seed: int, purpose: Purpose) -> None:
        self.indices, self.seed, self.purpose = indices, seed, purpose
        self._cache: dict[int, Tensor] = {}

    def epoch(self, epoch: int) -> Tensor:
        if epoch not in self._cache:
            device = self.indices.device
            order = torch.randperm(
                len(self.indices), generator=generator(device, self.seed, self.purpose, epoch), device=device
            )
            self._cache = {e: kept for e, kept in self._cache.items() if e == epoch - 1}
            self._cache[epoch] = self.indices[order]
        return self._cache[epoch]

    def endless(self, start: int, count: int) -> Draw:
        """Places `start` to `start + count` of all the epochs' permutations laid end to end."""
        size, parts, passes = len(self.indices), [], []
        while count:
            epoch, place = divmod(start, size)
            part = self.epoch(epoch)[place : place + count]
            parts.append(part)
            passes.append(torch.full_like(part, epoch))
            start, count = start + len(part), count - len(part)
        return Draw(torch.cat(parts), torch.cat(passes), 0)


class LabeledBatches:
    """Endless batches of `batch_size` labeled images, out of random permutations laid end to end.

    A batch may be larger than the labeled set: each of its rows is augmented by itself.
    """

    def __init__(self, labeled: Tensor, *, batch_size: int, seed: int) -> None:
        _check("labeled", labeled, batch_size)
        self.batch_size = batch_size
        self.steps_per_epoch = max(len(labeled) // batch_size, 1)
        self._labeled = _Permutations(labeled, seed, "labeled")

    def draw(self, step: int) -> Draw:
        """The batch of `step`."""
        return self._labeled.endless(step * self.batch_size, self.batch_size)

    def __iter__(self) -> Iterator[Draw]:
        step = 0
        while True:
            yield self.draw(step)
            step += 1


class EpochBatches(LabeledBatches):
    """Endless batches of `images`, labeled or not: an epoch is one random permutation, its incomplete end dropped."""

    def __init__(self, images: Tensor, *, batch_size: int, seed: int, name: str = "unlabeled") -> None:
        _check(name, images, batch_size, most=len(images))
        self.batch_size = batch_size
        self.steps_per_epoch = len(images) // batch_size
        self._images = _Permutations(images, seed, "unlabeled")

    def draw(self, step: int) -> Draw:
        """The batch of `step`."""
        epoch, place = divmod(step, self.steps_per_epoch)
        index = self._images.epoch(epoch)[place * self.batch_size :][: self.batch_size]
        return Draw(index, torch.full_like(index, epoch), 0)


class TwoStreamBatches(LabeledBatches):
    """Endless batches of two streams: first the unlabeled images, then `labeled_batch_size` labeled ones.

    An epoch is one random permutation of the unlabeled images, its last incomplete batch dropped. The labeled
    stream is that of LabeledBatches, the same for the same seed.
    """

    def __init__(
        self, unlabeled: Tensor, labeled: Tensor, *, batch_size: int, labeled_batch_size: int, seed: int
    ) -> None:
        super().__init__(labeled, batch_size=labeled_batch_size, seed=seed)
        self._unlabeled = EpochBatches(unlabeled, batch_size=batch_size - labeled_batch_size, seed=seed)
        self.steps_per_epoch = self._unlabeled.steps_per_epoch

    def draw(self, step: int) -> Draw:
        """The batch of `step`, the labeled images last."""
        first, last = self._unlabeled.draw(step), super().draw(step)
        index, passes = (torch.cat(parts) for parts in zip(first[:2], last[:2], strict=True))
        return Draw(index, passes, len(first.index))


def _check(stream: str, indices: Tensor, batch_size: int, most: float = math.inf) -> None:
    if not len(indices):
        raise SettingError(f"there are no {stream} images to draw batches from")
    if not 0 < batch_size <= most:
        raise SettingError(
            f"a batch must have 1 to {most} {stream} images (all that there are), got {batch_size}"
        )
