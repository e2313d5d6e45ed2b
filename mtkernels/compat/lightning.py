"""EmaCallback for Lightning's Trainer."""

import copy
import sys
from collections.abc import Callable, Sequence
from typing import Any

from mtkernels.ema import WeightEMA
from mtkernels.ops.ema import Decay

try:  # one code under two names: whose Trainer is in use already, else the newer
    if "pytorch_lightning" in sys.modules and "lightning.pytorch" not in sys.modules:
        from pytorch_lightning import Callback
    else:
        from lightning.pytorch import Callback
except ImportError:
    try:
        from pytorch_lightning import Callback
    except ImportError as error:
        raise ImportError(
            "mtkernels.compat.lightning: lightning or pytorch-lightning must be installed (pip install lightning), "
            f"got: {error}"
        ) from error


class EmaCallback(Callback):
    """Keeps a weight average while a Trainer fits: `Trainer(callbacks=[EmaCallback(0.999)])`.

    It moves after each optimizer step (trainer.global_step; not after each batch of accumulated gradients). Validation,
    test and prediction see the average, swapped in and out in one launch; a run that raises gets its weights back.
    Checkpoints hold the model's own weights as ever, and the average in the callback's state: to test the average of
    a checkpoint, `Trainer(callbacks=[EmaCallback()]).test(model, ckpt_path=...)`.

    Args:
        decay: as WeightEMA's, without unit.
        evaluate: whether validation, test and prediction see the average.
        copy_at_end: whether the model gets the average when fit ends, as with Lightning's WeightAveraging.
        options: the others of WeightEMA: every, start, buffers, include, exclude, dtype, rounding, device, ...

    Attributes:
        ema: the WeightEMA of the whole LightningModule, from the beginning of fit on.

    Raises:
        ImportError: without lightning and pytorch-lightning.

    Source: Lightning's Callback and WeightAveraging (Apache-2.0), version 2.6.6.
    """

    def __init__(
        self,
        decay: Decay | Callable[[int], float] | Sequence[Decay] = 0.999,
        *,
        evaluate: bool = True,
        copy_at_end: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        self.decay, self.options = decay, options
        self.evaluate, self.copy_at_end = evaluate, copy_at_end
        self.ema: WeightEMA | None = None
        self._module: Any = None  # whose average it is
        self._loaded: dict[str, Any] | None = None  # from a checkpoint that was read before there was a model
        self._global_step = 0
        self._swapped = False

    # ---- training

    def on_fit_start(self, trainer, pl_module) -> None:
        self._swap(False)
        if trainer.global_step == 0:  # another run; a checkpoint's state is loaded below
            self._module = None
        self._bind(pl_module)

    def on_train_start(self, trainer, pl_module) -> None:
        self._bind(pl_module)  # strategies that shard read the checkpoint after on_fit_start
        self._global_step = trainer.global_step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.global_step > self._global_step:
            self._global_step = trainer.global_step
            self.ema.update()

    def on_train_end(self, trainer, pl_module) -> None:
        if self.copy_at_end:
            self.ema.copy_to()

    def on_exception(self, trainer, pl_module, exception) -> None:
        self._swap(False)

    # ---- evaluation

    def _evaluation_begins(self, trainer, pl_module) -> None:
        if self._loaded is not None:
            self._bind(pl_module)
        if self.evaluate and self._module is pl_module:
            self._swap(True)

    def _evaluation_ends(self, trainer, pl_module) -> None:
        self._swap(False)

    on_validation_epoch_start = on_test_epoch_start = on_predict_epoch_start = _evaluation_begins
    on_validation_epoch_end = on_test_epoch_end = on_predict_epoch_end = _evaluation_ends

    # ---- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """The WeightEMA's state."""
        if self._loaded is not None or self.ema is None:
            return self._loaded or {}
        if not self._swapped:
            return self.ema.state_dict()
        self._swap(False)
        state = copy.deepcopy(self.ema.state_dict())
        self._swap(True)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps a checkpoint's state until the model is there."""
        self._loaded = state_dict or None

    # ---- inside

    def _bind(self, module: Any) -> None:
        if self._module is not module:
            self._module, self.ema = module, WeightEMA(module, self.decay, **self.options)
        if self._loaded is not None:
            self.ema.load_state_dict(self._loaded)
            self._loaded = None

    def _swap(self, into: bool) -> None:
        if self._swapped != into:
            self.ema.swap_()
            self._swapped = into
