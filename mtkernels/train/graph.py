"""A step as one CUDA graph: the host launches it whole, and is out of the way of a small network."""

import torch
from torch import Tensor, nn

from .config import SettingError
from .data.feed import Batch
from .distributed import ALONE, Ranks
from .methods import Method
from .optimizer import set_rates
from .step import Step

_EAGER_STEPS = 3  # before the capture: libraries choose their kernels, the optimizer makes its state


class GraphedStep(Step):
    """The first steps as they are, on a stream of their own; then what the next one launches, replayed.

    The batch is copied to where the graph reads it. Learning rate and consistency weight are tensors, dropout's seed is
    torch's own, which a replay reads anew: so each step computes what it would without a graph.
    """

    def __init__(self, method: Method, ranks: Ranks = ALONE, *, network: nn.Module | None = None) -> None:
        super().__init__(method, ranks, network=network)
        if self.device.type != "cuda" or ranks.world > 1:
            where = f"{ranks.world} ranks" if ranks.world > 1 else f"device {self.device}"
            raise SettingError(f"cuda_graph must be off but for one CUDA GPU, got True with {where}")
        for group in self.optimizer.param_groups:
            group["lr"] = torch.zeros((), device=self.device)
        self.weight = torch.zeros((), device=self.device)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.stream = torch.cuda.Stream(self.device)
        self.batch: Batch | None = None
        self.terms: dict[str, Tensor] = {}
        self.eager_steps = 0

    def __call__(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """The terms of the loss [], detached; they are overwritten by the next call."""
        set_rates(self.optimizer, self.method.timeline, step)
        self.weight.fill_(self.method.consistency_weight(step))
        self._place(batch)
        self._seed(step)
        if self.graph is not None:
            self.graph.replay()
            return self.terms
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        if self.eager_steps < _EAGER_STEPS:
            with torch.cuda.stream(self.stream):
                terms = self.move(self.batch, step, self.weight)
            torch.cuda.current_stream(self.device).wait_stream(self.stream)
            self.eager_steps += 1
            return terms
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=self.stream):
            self.terms = self.move(self.batch, step, self.weight)
        self.graph.replay()
        return self.terms

    def _place(self, batch: Batch) -> None:
        if self.batch is None:
            counts = batch.counts
            if isinstance(counts.class_rows, Tensor):
                counts = counts._replace(class_rows=counts.class_rows.clone())
            views = [self._laid_out(view).clone() for view in batch.views]
            self.batch = batch._replace(views=views, labels=batch.labels.clone(), counts=counts)
            return
        for ours, theirs in zip(self.batch.views, batch.views, strict=True):
            ours.copy_(theirs)
        self.batch.labels.copy_(batch.labels)
        if isinstance(batch.counts.class_rows, Tensor):
            self.batch.counts.class_rows.copy_(batch.counts.class_rows)

    def _seed(self, step: int) -> None:
        if not torch.cuda.is_current_stream_capturing():  # then it is done already
            super()._seed(step)
