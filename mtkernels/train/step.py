"""One optimizer step of a method: autocast, parts of a batch, the guard against what is not finite, the teacher's move.

    loss, gradients -> found_inf -> optimizer and teacher, both of which stay as they are where found_inf is set

Nothing here waits for a GPU.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

import mtkernels
from mtkernels.ops.ema import look_for_nonfinite

from .config import SettingError
from .data.feed import Batch
from .distributed import ALONE, Ranks, local
from .methods import Method
from .models.rows import Rows, set_rows
from .optimizer import LossScale, make_optimizer, set_rates, shards
from .seeds import stream_seed

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Step:
    """Moves the student, then the teacher, by one batch; gives the terms of its loss.

    A loss, a batch statistic or a gradient that is not finite ends the training in effect: from that step on neither
    model moves, and `skipped` counts the steps until someone looks, who then calls `restore_buffers`. In fp16 a
    gradient is no failure until no scale helps: the step is left out, and the scale falls.
    """

    def __init__(self, method: Method, ranks: Ranks = ALONE, *, network: nn.Module | None = None) -> None:
        """network: the student in its wrapper, where it has one."""
        self.method, self.ranks, self.config = method, ranks, method.config
        self.network = method.student if network is None else network
        self.method.network = self.network
        self.weights, self.shards = list(method.student.parameters()), shards(method.student)
        self.optimizer = make_optimizer(self.config, self.shards)
        self.device = self.shards[0].device
        self.begun = False
        self.found_inf = torch.zeros((), device=self.device)
        self.skipped = torch.zeros((), device=self.device)
        self.scale = LossScale(self.device) if self.config.precision == "fp16" else None
        self.buffers = [*method.student.buffers(), *method.teacher.buffers()]
        self.statistics = [buffer for buffer in self.buffers if buffer.is_floating_point()]
        self.sound_buffers = [buffer.clone() for buffer in self.buffers]  # as before a step that fails

    def __call__(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """The terms of the loss [], detached: this rank's share of them."""
        set_rates(self.optimizer, self.method.timeline, step)
        return self.move(batch, step, self.method.consistency_weight(step))

    def move(self, batch: Batch, step: int, weight: float | Tensor) -> dict[str, Tensor]:
        """All that is done on the device, with rates that are set."""
        self.method.student.zero_grad()
        terms: dict[str, Tensor] = {}
        count = self.config.accumulate
        for number, part in enumerate(batch.parts()):
            with self._synchronized(number + 1 == count):
                for name, term in self._backward(part, step, weight).items():
                    terms[name] = terms[name] + term if name in terms else term
        if not self.begun:
            self._check_gradients()
        self._look(terms)
        self.method.before_step(self.found_inf)
        self._optimize()
        self.method.after_step(self.found_inf)  # the teacher moves towards the new student
        self._keep_buffers()
        return terms

    def _backward(self, part: Batch, step: int, weight: float | Tensor) -> dict[str, Tensor]:
        if part.rows is not None:
            rows = Rows(part.rows, part.counts.rows)
            for model in (self.method.student, self.method.teacher):
                set_rows(model, rows)
        self._seed(step)
        views = [self._laid_out(view) for view in part.views]
        dtype = _DTYPES.get(self.config.precision)
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
            loss, terms = self.method.objective(views, part.labels, weight, part.counts)
        if self.scale is not None:
            loss = loss * self.scale.scale
        if self.ranks.world > 1:  # wrappers take the ranks' mean, of losses that are shares of the whole
            loss = loss * self.ranks.world
        loss.backward()
        return terms

    def _laid_out(self, view: Tensor) -> Tensor:
        return view.contiguous(memory_format=torch.channels_last) if self.config.channels_last else view

    def _seed(self, step: int) -> None:
        """Dropout and shake-shake draw from torch's global generator: alike in every part of a batch."""
        torch.manual_seed(stream_seed(self.config.seed, "dropout", step))

    @contextlib.contextmanager
    def _synchronized(self, last: bool) -> Iterator[None]:
        """Ranks add up their gradients in the last part of a batch alone."""
        network = self.network
        if hasattr(network, "set_requires_gradient_sync"):  # FSDP2
            network.set_requires_gradient_sync(last)
        waits = contextlib.nullcontext() if last or not hasattr(network, "no_sync") else network.no_sync()
        with waits:
            yield

    def _check_gradients(self) -> None:
        """Before DistributedDataParallel's error, which has no names, in the second step."""
        self.begun = True
        if not hasattr(self.network, "no_sync"):
            return
        for name, weight in self.method.student.named_parameters():
            if weight.requires_grad and weight.grad is None:
                raise SettingError(
                    f"arch {self.config.arch} must use all weights on several ranks, got no gradient of {name!r}:"
                    " freeze it by requires_grad_(False), or train with fsdp"
                )

    def _look(self, terms: dict[str, Tensor]) -> None:
        # Statistics may overflow where the loss does not: what is divided by inf is 0.
        forward = [*terms.values(), *self.statistics]
        gradients = [local(weight.grad) for weight in self.weights if weight.grad is not None]
        if self.scale is None:
            look_for_nonfinite(self.found_inf, [*gradients, *forward])  # stays set
            self.ranks.max_(self.found_inf)
            self.skipped += self.found_inf
            return
        failed = (self.skipped > 0).to(self.found_inf.dtype)
        look_for_nonfinite(failed, forward)
        self.found_inf.copy_(failed)
        look_for_nonfinite(self.found_inf, gradients)
        for flag in (failed, self.found_inf):
            self.ranks.max_(flag)
        self.skipped += torch.maximum(failed, self.found_inf * self.scale.exhausted)

    def _optimize(self) -> None:
        for weight, shard in zip(self.weights, self.shards, strict=True):
            if weight is not shard:
                shard.grad = None if weight.grad is None else local(weight.grad)
        self.optimizer.grad_scale = None if self.scale is None else self.scale.scale
        self.optimizer.found_inf = self.found_inf
        self.optimizer.step()
        if self.scale is not None:
            # A loss that failed says nothing of the scale.
            self.scale.update(self.found_inf * (self.skipped == 0))

    def _keep_buffers(self) -> None:
        if self.buffers:
            mtkernels.ema_update(self.sound_buffers, self.buffers, 0.0, found_inf=self.skipped)

    def share_buffers(self) -> None:
        """Batch statistics that each rank has of its own rows: the mean over the ranks, on all of them."""
        if self.ranks.world == 1 or self.config.sync_batch_norm:
            return
        for buffer in self.statistics:
            self.ranks.sum_(buffer).div_(self.ranks.world)
        self.note_buffers()

    def note_buffers(self) -> None:
        """Batch statistics are sound as they are."""
        for buffer, sound in zip(self.buffers, self.sound_buffers, strict=True):
            sound.copy_(buffer)

    def restore_buffers(self) -> None:
        """Undo what the forward passes of failed steps did to batch statistics."""
        for buffer, sound in zip(self.buffers, self.sound_buffers, strict=True):
            buffer.copy_(sound)
