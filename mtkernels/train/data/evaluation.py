"""The images that errors are measured on, in batches, as networks get them."""

from collections.abc import Iterator

from torch import Tensor

from ..config import Config
from ..distributed import ALONE, Ranks
from .dataset import Dataset
from .stream import EvalBatches
from .views import Pixels, side_of

_ROWS = 1000  # of a batch in memory
_STREAMED_ROWS = 100


class Evaluation:
    """Iterates over (pixels, labels), always the same, not augmented; of files, those that are broken are left out.

    Each rank has its share of every batch, which may be empty.
    """

    def __init__(self, config: Config, data: Dataset, ranks: Ranks = ALONE) -> None:
        self.ranks = ranks
        self.images, self.labels = data.evaluation.images, data.evaluation.labels
        self.classes, self.device = data.classes, data.device
        self.pixels = Pixels(data.raw, config)
        self.batches: EvalBatches | None = None
        if not isinstance(self.images, Tensor):
            self.batches = EvalBatches(
                self.images,
                self.labels,
                size=side_of(config, data),
                batch_size=_STREAMED_ROWS,
                workers=config.workers,
                pin=self.device.type == "cuda",
                quarantine=data.quarantine,
                share=slice(ranks.rank, None, ranks.world),
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self.batches is not None:
            for images, labels in self.batches:
                yield self.pixels(images.to(self.device)), labels.to(self.device)
            return
        share = slice(self.ranks.rank, None, self.ranks.world)
        for images, labels in zip(self.images.split(_ROWS), self.labels.split(_ROWS), strict=True):
            yield self.pixels(images[share]), labels[share]
