"""Which images make up the batch of a step, as a pure function of (seed, step)."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..config import SettingError
from ..seeds import Purpose, generator


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

    def endless(self, start: int, count: int) -> Tensor:
        """Places `start` to `start + count` of all the epochs' permutations laid end to end."""
        size, parts = len(self.indices), []
        while count:
            epoch, place = divmod(start, size)
            part = self.epoch(epoch)[place : place + count]
            parts.append(part)
            start, count = start + len(part), count - len(part)
        return torch.cat(parts)


class LabeledBatches:
    """Endless batches of `batch_size` labeled images, out of random permutations laid end to end.

    A batch may be larger than the labeled set: each of its rows is augmented by itself.
    """

    def __init__(self, labeled: Tensor, *, batch_size: int, seed: int) -> None:
        _check("labeled", labeled, batch_size)
        self.batch_size = batch_size
        self._labeled = _Permutations(labeled, seed, "labeled")

    def batch(self, step: int) -> Tensor:
        """Indices [batch_size] of the batch of `step`."""
        return self._labeled.endless(step * self.batch_size, self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        step = 0
        while True:
            yield self.batch(step)
            step += 1


class TwoStreamBatches(LabeledBatches):
    """Endless batches of two streams: first the unlabeled images, then `labeled_batch_size` labeled ones.

    An epoch is one random permutation of the unlabeled images, its last incomplete batch dropped. The labeled
    stream is that of LabeledBatches, the same for the same seed.
    """

    def __init__(
        self, unlabeled: Tensor, labeled: Tensor, *, batch_size: int, labeled_batch_size: int, seed: int
    ) -> None:
        super().__init__(labeled, batch_size=labeled_batch_size, seed=seed)
        self.unlabeled_batch_size = batch_size - labeled_batch_size
        _check("unlabeled", unlabeled, self.unlabeled_batch_size, most=len(unlabeled))
        self.steps_per_epoch = len(unlabeled) // self.unlabeled_batch_size
        self._unlabeled = _Permutations(unlabeled, seed, "unlabeled")

    def batch(self, step: int) -> Tensor:
        """Indices [batch_size] of the batch of `step`, the labeled images last."""
        epoch, place = divmod(step, self.steps_per_epoch)
        start = place * self.unlabeled_batch_size
        unlabeled = self._unlabeled.epoch(epoch)[start : start + self.unlabeled_batch_size]
        return torch.cat([unlabeled, super().batch(step)])


def _check(stream: str, indices: Tensor, batch_size: int, most: float = math.inf) -> None:
    if not len(indices):
        raise SettingError(f"there are no {stream} images to draw batches from")
    if not 0 < batch_size <= most:
        raise SettingError(
            f"the {stream} part of a batch must hold between 1 and {most} images, got {batch_size}"
        )
