"""EmaCallback in Lightning's Trainer, and ema_multi_avg_fn in its WeightAveraging."""

import importlib
import subprocess
import sys

import pytest
import torch
from torch import nn

import mtkernels
from mtkernels.compat.averaged_model import ema_multi_avg_fn

from .models import assert_same, by_hand, tensors

pl = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")
compat = importlib.import_module("mtkernels.compat.lightning")

pytestmark = pytest.mark.filterwarnings("ignore")


class Model(pl.LightningModule):
    """Notes the weights after each optimizer step, and those that evaluations see."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
        self.after_steps, self.seen, self.fail = [], [], False

    def training_step(self, batch, index):
        return self.layer(batch).square().mean()

    def validation_step(self, batch, index):
        assert not self.training
        self.seen.append(_weights(self))
        if self.fail:
            raise ZeroDivisionError

    test_step = validation_step
    predict_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)

    def optimizer_step(self, *arguments, **named):
        super().optimizer_step(*arguments, **named)
        self.after_steps.append(_weights(self))

    def loader(self):
        random = torch.Generator().manual_seed(1)
        return torch.utils.data.DataLoader(
            [torch.randn(4, generator=random) for _ in range(48)], batch_size=8
        )

    train_dataloader = val_dataloader = test_dataloader = predict_dataloader = loader


def _weights(module):
    return [tensor.detach().clone() for tensor in tensors(module)]


def _trainer(folder, callbacks, **options):
    options = {"max_epochs": 2, "num_sanity_val_steps": 0, **options}
    return pl.Trainer(
        accelerator="cpu",
        devices=1,
        default_root_dir=folder,
        callbacks=callbacks,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


@pytest.mark.parametrize("accumulate", [1, 2])
def test_moves_after_each_optimizer_step(tmp_path, accumulate):
    model = Model()
    start = _weights(model)
    callback = compat.EmaCallback(0.9)
    _trainer(tmp_path, [callback], accumulate_grad_batches=accumulate).fit(model)
    assert len(model.after_steps) == 12 // accumulate == int(callback.ema.step)
    assert_same(tensors(callback.ema.module), by_hand(start, model.after_steps, 0.9))
    assert_same(tensors(model), model.after_steps[-1], ulps=0)  # its own weights, after an evaluation
    half = len(model.after_steps) // 2
    assert_same(model.seen[0], by_hand(start, model.after_steps[:half], 0.9))
    assert_same(model.seen[-1], tensors(callback.ema.module), ulps=0)


def test_options(tmp_path):
    model = Model()
    callback = compat.EmaCallback(0.5, every=2, dtype=torch.float64, evaluate=False, copy_at_end=True)
    _trainer(tmp_path, [callback]).fit(model)
    assert next(callback.ema.module.parameters()).dtype == torch.float64
    assert_same(model.seen[-1], model.after_steps[-1], ulps=0)
    expected = [t.float() if t.is_floating_point() else t for t in tensors(callback.ema.module)]
    assert_same(tensors(model), expected, ulps=0)


def test_test_and_predict_see_the_average(tmp_path):
    model = Model()
    callback = compat.EmaCallback(0.9)
    trainer = _trainer(tmp_path, [callback])
    trainer.fit(model)
    for run in (trainer.test, trainer.predict, trainer.validate):
        model.seen.clear()
        run(model, verbose=False) if run != trainer.predict else run(model)
        assert_same(model.seen[0], tensors(callback.ema.module), ulps=0)
        assert_same(tensors(model), model.after_steps[-1], ulps=0)


def test_an_evaluation_that_raises_gives_the_weights_back(tmp_path):
    model = Model()
    model.fail = True
    callback = compat.EmaCallback(0.9)
    with pytest.raises(ZeroDivisionError):
        _trainer(tmp_path, [callback]).fit(model)
    assert_same(model.seen[-1], tensors(callback.ema.module), ulps=0)
    assert_same(tensors(model), model.after_steps[-1], ulps=0)


def test_the_sanity_check(tmp_path):
    model = Model()
    callback = compat.EmaCallback(0.9)
    start = _weights(model)
    _trainer(tmp_path, [callback], num_sanity_val_steps=1).fit(model)
    assert_same(model.seen[0], start, ulps=0)
    assert int(callback.ema.step) == 12


def test_resumed_as_if_never_stopped(tmp_path):
    whole = Model()
    uninterrupted = compat.EmaCallback(mtkernels.schedules.running_mean(0.9))
    _trainer(tmp_path, [uninterrupted]).fit(whole)

    first = Model()
    saver = pl.callbacks.ModelCheckpoint(dirpath=tmp_path, filename="half", save_last=False)
    callback = compat.EmaCallback(mtkernels.schedules.running_mean(0.9))
    _trainer(tmp_path, [saver, callback], max_epochs=1).fit(first)
    saved = torch.load(tmp_path / "half.ckpt", weights_only=True)
    assert_same(saved["state_dict"].values(), first.state_dict().values(), ulps=0)
    assert saved["callbacks"]["EmaCallback"]["step"] == 6

    second = Model()
    with torch.no_grad():
        second.layer[0].weight.zero_()
    resumed = compat.EmaCallback(mtkernels.schedules.running_mean(0.9))
    _trainer(tmp_path, [resumed]).fit(second, ckpt_path=tmp_path / "half.ckpt")
    assert int(resumed.ema.step) == 12
    assert_same(tensors(second), tensors(whole), ulps=0)
    assert_same(tensors(resumed.ema.module), tensors(uninterrupted.ema.module), ulps=0)

    other = Model()
    tester = compat.EmaCallback()
    _trainer(tmp_path, [tester]).test(other, ckpt_path=tmp_path / "half.ckpt", verbose=False)
    assert_same(other.seen[0], tensors(callback.ema.module), ulps=0)
    assert_same(tensors(other), tensors(first), ulps=0)


def test_a_checkpoint_taken_in_an_evaluation():
    model = Model()
    callback = compat.EmaCallback(0.5)
    callback._bind(model)
    with torch.no_grad():
        model.layer[0].weight.zero_()
    callback.ema.update()
    expected = callback.ema.module.layer[0].weight.clone()
    callback._swap(True)
    state = callback.state_dict()
    assert_same([state["averages"][0]["layer.0.weight"]], [expected], ulps=0)
    assert_same([model.layer[0].weight], [expected], ulps=0)


@pytest.mark.skipif(not hasattr(pl.callbacks, "WeightAveraging"), reason="WeightAveraging: lightning 2.6 on")
def test_weight_averaging_with_our_function(tmp_path):
    models = Model(), Model()
    from torch.optim.swa_utils import get_ema_avg_fn

    callbacks = (
        pl.callbacks.WeightAveraging(multi_avg_fn=ema_multi_avg_fn(0.9)),
        pl.callbacks.WeightAveraging(avg_fn=get_ema_avg_fn(0.9)),
    )
    for model, callback in zip(models, callbacks, strict=True):
        _trainer(tmp_path, [callback]).fit(model)
    floats = [[t for t in tensors(model) if t.is_floating_point()] for model in models]
    assert_same(*floats)  # at the end the models hold their averages
    # the first update copies (counter 1), the others copy with ours and average and cut off with torch's
    assert int(models[0].layer[1].num_batches_tracked) == 12


def test_the_trainer_of_pytorch_lightning(tmp_path):
    """The older name: its Callback is another class, chosen if it alone has been imported."""
    pytest.importorskip("pytorch_lightning", reason="pytorch-lightning is not installed")
    code = """
import pytorch_lightning as pl
from mtkernels.compat.lightning import EmaCallback
assert issubclass(EmaCallback, pl.Callback)
from pytorch_lightning.demos.boring_classes import BoringModel
callback = EmaCallback(0.9)
pl.Trainer(accelerator="cpu", devices=1, max_steps=3, limit_val_batches=1, logger=False, callbacks=[callback],
           enable_progress_bar=False, enable_checkpointing=False).fit(BoringModel())
assert int(callback.ema.step) == 3
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
