"""EmaCallback for Hugging Face's Trainer."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mtkernels.ema import WeightEMA
from mtkernels.ops.ema import Decay

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise ImportError(
        f"mtkernels.compat.transformers: transformers must be installed (pip install transformers), got: {error}"
    ) from error


class EmaCallback(TrainerCallback):
    """Keeps a weight average while a Trainer trains: `Trainer(..., callbacks=[EmaCallback(0.999)])`.

    It moves after each optimizer step (not after each substep of gradient accumulation, and not where the gradient
    scaler skipped one). Evaluations of the training loop see the average: while one is due, the model's forward in
    eval mode swaps it in, and the weights come back when the evaluation has ended; where it raised, at the next forward
    in train mode or the next `train()`. Pass this callback after those that ask for evaluations of their own.

    Each checkpoint folder gets `ema.pt`. Resuming reads it from the folder of that step in args.output_dir, or from
    `resume_from`. With load_best_model_at_end the average, too, becomes the best checkpoint's.

    Args:
        decay: as WeightEMA's, without unit.
        evaluate: whether evaluations see the average.
        copy_at_end: whether the model gets the average when training ends, so that save_model() saves it.
        resume_from: the folder with `ema.pt`, if train(resume_from_checkpoint=...) reads from outside output_dir.
        options: the others of WeightEMA: every, start, buffers, include, exclude, dtype, rounding, ...

    Attributes:
        ema: the WeightEMA, from the beginning of training on. Outside the training loop:
            `with callback.ema.swapped(): trainer.evaluate()`.

    Raises:
        ImportError: without transformers.

    Source: transformers' TrainerCallback (Apache-2.0), version 5.23.0.
    """

    FILE = "ema.pt"

    def __init__(
        self,
        decay: Decay | Callable[[int], float] | Sequence[Decay] = 0.999,
        *,
        evaluate: bool = True,
        copy_at_end: bool = False,
        resume_from: str | Path | None = None,
        **options: Any,
    ) -> None:
        self.decay, self.options = decay, options
        self.evaluate, self.copy_at_end, self.resume_from = evaluate, copy_at_end, resume_from
        self.ema: WeightEMA | None = None
        self._hook: Any = None
        self._due = False  # an evaluation is coming
        self._swapped = False

    def on_train_begin(self, args, state, control, model=None, **kwargs) -> None:
        self._end_evaluation()
        self._remove_hook()
        self.ema = WeightEMA(model, self.decay, **self.options)
        if state.global_step > 0:
            self._resume(args, state)
        if self.evaluate:
            self._hook = model.register_forward_pre_hook(_Hook(self))
        self._due = getattr(args, "eval_on_start", False)

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        self._end_evaluation()

    def on_step_end(self, args, state, control, optimizer=None, **kwargs) -> None:
        self._end_evaluation()
        if not getattr(optimizer, "step_was_skipped", False):
            self.ema.update()
        self._due = control.should_evaluate

    def on_epoch_end(self, args, state, control, **kwargs) -> None:
        self._end_evaluation()
        self._due = control.should_evaluate

    def on_evaluate(self, args, state, control, **kwargs) -> None:
        self._swap(False)  # still due: there may be another dataset

    def on_save(self, args, state, control, **kwargs) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if (
            self.ema is not None and args.should_save and folder.is_dir()
        ):  # elsewhere in a hyperparameter search
            with self._unswapped():
                torch.save(self.ema.state_dict(), folder / self.FILE)

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self._end_evaluation()
        self._remove_hook()
        best = state.best_model_checkpoint
        if args.load_best_model_at_end and best is not None and (Path(best) / self.FILE).exists():
            self._load(Path(best) / self.FILE)
        if self.copy_at_end:
            self.ema.copy_to()

    # ---- inside

    def _resume(self, args, state) -> None:
        places = [
            self.resume_from,
            args.resume_from_checkpoint,
            f"{args.output_dir}/checkpoint-{state.global_step}",
        ]
        for place in places:
            if place is not None and (file := Path(place) / self.FILE).exists():
                self._load(file)
                return
        if self.resume_from is not None:
            raise FileNotFoundError(
                f"EmaCallback: resume_from must be a folder with {self.FILE}, got {str(self.resume_from)!r}"
            )
        warnings.warn(
            f"EmaCallback: no {self.FILE} for step {state.global_step} in {args.output_dir} (give resume_from=...): "
            "the average starts from the model's weights",
            stacklevel=2,
        )

    def _load(self, file: Path) -> None:
        self.ema.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))

    def _before_forward(self, training: bool) -> None:
        if training:
            if self._swapped:  # an evaluation that never ended
                self._end_evaluation()
        elif self._due:
            self._swap(True)

    def _swap(self, into: bool) -> None:
        if self._swapped != into:
            self.ema.swap_()
            self._swapped = into

    def _end_evaluation(self) -> None:
        self._due = False
        self._swap(False)

    @contextmanager
    def _unswapped(self) -> Iterator[None]:
        swapped = self._swapped
        self._swap(False)
        try:
            yield
        finally:
            self._swap(swapped)

    def _remove_hook(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None


class _Hook:
    """The callback's ear at the model's forward. Copies of the model, and those out of a pickle, have a deaf one."""

    def __init__(self, callback: EmaCallback | None = None) -> None:
        self._callback = callback

    def __call__(self, model: nn.Module, arguments: tuple) -> None:
        if self._callback is not None:
            self._callback._before_forward(model.training)

    def __deepcopy__(self, memo: dict) -> "_Hook":
        return _Hook()

    def __reduce__(self) -> tuple:
        return _Hook, ()
