"""What comes between two steps: looks at the losses, evaluations, checkpoints, the best weights, the end."""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from .checkpoint import FOLDER, name_of, save_checkpoint, save_tensors
from .files import write_with
from .folder import write_weights
from .meter import Meter, NonFiniteError, Record
from .resume import Start
from .show import Show
from .state import Numbers, below, state_of
from .step import Step

_LOOKS = 50  # steps between two at most
_BEST = "best.safetensors"


class Watch:
    """Called after each step with the steps done; True ends the training. All ranks call it alike.

    What it looks at waits for the device, so it looks seldom. A step that was not finite is found at the next look: a
    checkpoint from before it is written, then NonFiniteError is raised.
    """

    def __init__(
        self,
        step: Step,
        meter: Meter,
        folder: Path,
        show: Show,
        should_stop: Callable[[], bool],
        start: Start | None = None,
    ) -> None:
        """start: what the run goes on from; its best weights are put back, those of later steps forgotten."""
        self.step, self.meter, self.folder, self.show = step, meter, folder, show
        self.should_stop, self.ranks, self.timeline = should_stop, step.ranks, step.method.timeline
        self.config = step.config
        start = Start() if start is None else start
        self.records: list[Record] = list(start.records)
        self.best: Record | None = start.best
        self.seconds: Callable[[], float] = lambda: 0.0
        self.steps_done = start.step
        self.last_saved: int | None = start.step if start.checkpoint else None
        if start.checkpoint and self.ranks.main:
            self._restore_best(below(start.checkpoint.tensors, "best."))

    def __call__(self, steps_done: int) -> bool:
        stop = self.ranks.any(self.should_stop())
        ends = steps_done == self.timeline.steps
        evaluates = self.timeline.evaluates(steps_done)
        try:
            if evaluates:
                self._record(steps_done)
            else:
                self._look(steps_done)
            if stop or ends or self.timeline.saves(steps_done):
                self.meter.look(steps_done)
                self.save(steps_done, must=stop)
            # After the checkpoint: whoever stops a run may not wait for this. torchrun waits half a minute.
            if stop and not evaluates and self.ranks.world == 1:
                self._record(steps_done)
        except NonFiniteError as error:
            raise FloatingPointError(self._rescue(error)) from error
        self.steps_done = steps_done
        return stop or ends

    def _look(self, steps_done: int) -> None:
        shows = steps_done % (self.config.print_interval or _LOOKS) == 0
        if shows or steps_done % _LOOKS == 0:
            losses = self.meter.look(steps_done)
            if shows:
                self.show.losses(steps_done, losses, self.meter.images_per_second)

    def _record(self, steps_done: int) -> None:
        record = self.meter.record(steps_done)
        self.records.append(record)
        self.show.record(record)
        error = f"{self.step.method.headline}_error"
        if self.config.keeps_best and (self.best is None or record[error] < self.best[error]):
            self._keep_best(record)

    def _keep_best(self, record: Record) -> None:
        failed = False
        try:
            write_weights(self.folder / _BEST, self.step.method.headline_model, self.ranks)
        except OSError as error:
            failed = True
            self.show.note(f"the best weights, of step {record['step']}, could not be written: {error}")
        if not self.ranks.any(failed):
            self.best = record

    def _restore_best(self, tensors: dict[str, Tensor]) -> None:
        path = self.folder / _BEST
        if tensors:
            write_with(path, lambda temporary: save_tensors(temporary, tensors))
        else:
            path.unlink(missing_ok=True)

    def _best(self) -> dict[str, Tensor]:
        """For a checkpoint: a run that goes on from it may find no better ones, after others had been found."""
        from safetensors.torch import load_file

        path = self.folder / _BEST
        if self.best is None or not path.exists():
            return {}
        return {f"best.{name}": value for name, value in load_file(path).items()}

    def save(self, steps_done: int, *, must: bool = False) -> Path | None:
        """A checkpoint; where it cannot be written, a note, or where it `must`, OSError."""
        self.step.share_buffers()
        tensors, numbers = state_of(self.step, self.meter)
        if not self.ranks.main:
            return None
        numbers |= self.numbers()
        try:
            path = save_checkpoint(
                self.folder, steps_done, tensors | self._best(), numbers, keep=self.config.keep_checkpoints
            )
        except OSError as error:
            kept = "" if self.last_saved is None else f"; that of step {self.last_saved} is kept"
            sentence = f"the checkpoint of step {steps_done} could not be written: {error}{kept}"
            if must:
                raise OSError(sentence) from error
            self.show.note(sentence)
            return None
        self.last_saved = steps_done
        return path

    def numbers(self) -> Numbers:
        """What the run has to say of itself, for a checkpoint."""
        return {
            "config": self.config.as_dict(),
            "records": self.records,
            "best": self.best,
            "seconds": self.seconds(),
        }

    def _rescue(self, error: NonFiniteError) -> str:
        """A checkpoint of the state before the step that failed."""
        self.step.restore_buffers()
        self.meter.restart()
        path: Path | None = self.folder / FOLDER / name_of(error.step)
        saved = error.step == self.last_saved  # that one has the losses of the steps before, too
        if not self.ranks.any(saved):
            path = self.save(error.step)
        where = f", in {path}" if path else ""
        return f"{error}; student and teacher are as they were before it{where}"
