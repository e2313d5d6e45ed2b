"""EmaCallback in Hugging Face's Trainer."""

import copy
import importlib
import pickle

import pytest
import torch
from torch import nn

import mtkernels

from .models import assert_same, by_hand, tensors

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate")
EmaCallback = importlib.import_module("mtkernels.compat.transformers").EmaCallback

pytestmark = pytest.mark.filterwarnings("ignore")


class Model(nn.Module):
    """Notes the weights that evaluations see."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
        self.seen, self.fail = [], False

    def forward(self, x, labels):
        logits = self.layer(x)
        if not self.training:
            self.note()
            if self.fail:
                raise ZeroDivisionError
        return {"loss": (logits - labels).square().mean(), "logits": logits}

    @torch.compiler.disable
    def note(self):
        self.seen.append(_weights(self))


class Notes(transformers.TrainerCallback):
    """The weights after each optimizer step, which evaluation and averages must not disturb."""

    def __init__(self):
        self.after_steps = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.after_steps.append(_weights(model))


def _weights(module):
    return [tensor.detach().clone() for tensor in tensors(module)]


def _data(seed=1):
    random = torch.Generator().manual_seed(seed)
    draw = lambda size: torch.randn(size, generator=random)  # noqa: E731
    return [{"x": draw(4), "labels": draw(2)} for _ in range(48)]


def _train(folder, model, callback, resume=None, eval_dataset=None, compute_metrics=None, **options):
    notes = Notes()
    options = {"num_train_epochs": 2, "save_strategy": "no", "eval_strategy": "no", **options}
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=8,
        per_device_eval_batch_size=48,
        learning_rate=0.1,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        **options,
    )
    trainer = transformers.Trainer(
        model,
        arguments,
        train_dataset=_data(),
        eval_dataset=_data(2) if eval_dataset is None else eval_dataset,
        callbacks=[notes, callback],
        compute_metrics=compute_metrics,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer, notes.after_steps


@pytest.mark.parametrize("accumulate", [1, 2])
def test_moves_after_each_optimizer_step(tmp_path, accumulate):
    model = Model()
    start = _weights(model)
    callback = EmaCallback(0.9)
    _, after = _train(tmp_path, model, callback, gradient_accumulation_steps=accumulate)
    assert len(after) == 12 // accumulate == int(callback.ema.step)
    assert_same(tensors(callback.ema.module), by_hand(start, after, 0.9))
    assert_same(tensors(model), after[-1], ulps=0)
    assert not model._forward_pre_hooks


@pytest.mark.parametrize(
    "strategy", [{"eval_strategy": "epoch"}, {"eval_strategy": "steps", "eval_steps": 6}], ids=str
)
@pytest.mark.parametrize("datasets", [1, 2])
def test_evaluations_see_the_average(tmp_path, strategy, datasets):
    model = Model()
    start = _weights(model)
    callback = EmaCallback(0.9)
    eval_dataset = None if datasets == 1 else {"a": _data(2), "b": _data(3)}
    _, after = _train(tmp_path, model, callback, eval_dataset=eval_dataset, eval_on_start=True, **strategy)
    expected = [start, by_hand(start, after[:6], 0.9), by_hand(start, after, 0.9)]
    expected = [weights for weights in expected for _ in range(datasets)]
    assert len(model.seen) == len(expected)
    for seen, weights in zip(model.seen, expected, strict=True):
        assert_same(seen, weights)
    assert_same(tensors(model), after[-1], ulps=0)
    # an untouched run trains the same
    alone = Model()
    _, alone_after = _train(tmp_path, alone, EmaCallback(0.9, evaluate=False), **strategy)
    assert_same(alone_after[-1], after[-1], ulps=0)
    assert_same(alone.seen[-1], after[-1], ulps=0)


def test_checkpoints_hold_the_models_own_weights_and_the_average(tmp_path):
    model = Model()
    callback = EmaCallback(0.9)
    _, after = _train(tmp_path, model, callback, eval_strategy="epoch", save_strategy="epoch")
    from safetensors.torch import load_file

    saved = load_file(tmp_path / "checkpoint-6" / "model.safetensors")
    own = dict(zip([*dict(model.named_parameters()), *dict(model.named_buffers())], after[5], strict=True))
    assert saved.keys() == own.keys()
    assert_same([saved[name] for name in own], own.values(), ulps=0)
    state = torch.load(tmp_path / "checkpoint-12" / "ema.pt", weights_only=True)
    assert state["step"] == 12
    assert_same(state["averages"][0].values(), callback.ema.module.state_dict().values(), ulps=0)


@pytest.mark.parametrize("moved", [False, True])
def test_resumed_as_if_never_stopped(tmp_path, moved):
    decay = mtkernels.schedules.running_mean(0.9)
    whole, uninterrupted = Model(), EmaCallback(decay)
    _train(tmp_path / "run", whole, uninterrupted, eval_strategy="epoch", save_strategy="epoch")
    folder = tmp_path / "run"
    options = {}
    if moved:
        folder = folder.rename(tmp_path / "elsewhere")
        options["resume_from"] = folder / "checkpoint-6"
    model = Model()
    with torch.no_grad():
        model.layer[0].weight.zero_()
    resumed = EmaCallback(decay, **options)
    _train(tmp_path / "run", model, resumed, resume=str(folder / "checkpoint-6"), eval_strategy="epoch")
    assert int(resumed.ema.step) == 12
    assert_same(tensors(model), tensors(whole), ulps=0)
    assert_same(tensors(resumed.ema.module), tensors(uninterrupted.ema.module), ulps=0)


def test_resuming_without_the_file(tmp_path):
    _train(tmp_path, Model(), EmaCallback(0.9), save_strategy="epoch")
    (tmp_path / "checkpoint-6" / "ema.pt").unlink()
    resume = str(tmp_path / "checkpoint-6")
    callback = EmaCallback(0.9)
    with pytest.warns(
        UserWarning, match=r"EmaCallback: no ema.pt for step 6 .* starts from the model's weights"
    ):
        _train(tmp_path, Model(), callback, resume=resume)
    assert int(callback.ema.step) == 6
    with pytest.raises(
        FileNotFoundError, match=r"EmaCallback: resume_from must be a folder with ema.pt, got"
    ):
        _train(tmp_path, Model(), EmaCallback(0.9, resume_from=resume), resume=resume)


def test_the_best_models_average_at_the_end(tmp_path):
    model, callback = Model(), EmaCallback(0.5, copy_at_end=True)
    scores = iter([1.0, 0.0])  # the first epoch's is the best
    trainer, _ = _train(
        tmp_path,
        model,
        callback,
        compute_metrics=lambda predictions: {"score": next(scores)},
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="score",
    )
    assert trainer.state.best_global_step == 6 == int(callback.ema.step)
    state = torch.load(tmp_path / "checkpoint-6" / "ema.pt", weights_only=True)
    assert_same(model.state_dict().values(), state["averages"][0].values(), ulps=0)


def test_an_evaluation_that_raises(tmp_path):
    model, callback = Model(), EmaCallback(0.9)
    model.fail = True
    with pytest.raises(ZeroDivisionError):
        _train(tmp_path, model, callback, eval_strategy="epoch")
    own = _weights(callback.ema.module)  # swapped: the average holds the model's weights
    twin = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    twin.train()
    twin(torch.randn(8, 4), torch.randn(8, 2))  # a copy of the model is none of the callback's business
    assert_same(tensors(callback.ema.module), own, ulps=0)
    model.train()
    model(torch.randn(8, 4), torch.randn(8, 2))  # the first forward in train mode swaps them back, then runs
    floats = list(model.parameters())
    assert_same(floats, own[: len(floats)], ulps=0)
    model.fail = False
    _, after = _train(tmp_path, model, callback, eval_strategy="epoch")
    assert_same(tensors(model), after[-1], ulps=0)


def test_a_save_that_fails_leaves_the_evaluation_its_average(tmp_path):
    callback, model = EmaCallback(0.9), Model()
    _train(tmp_path, model, callback)
    callback._swap(True)
    average = _weights(model)
    with pytest.raises(ZeroDivisionError), callback._unswapped():
        assert not callback._swapped
        raise ZeroDivisionError
    assert callback._swapped
    assert_same(tensors(model), average, ulps=0)
    callback._swap(False)


def test_skipped_steps_do_not_move_the_average(tmp_path):
    callback = EmaCallback(0.9)
    model = Model()
    _train(tmp_path, model, callback)

    class Skipped:
        step_was_skipped = True

    class Control:
        should_evaluate = False

    callback.on_step_end(None, None, Control, optimizer=Skipped)
    assert int(callback.ema.step) == 12


def test_a_compiled_model(tmp_path):
    model, callback = Model(), EmaCallback(0.9)
    start = _weights(model)
    options = {"torch_compile": True, "torch_compile_backend": "eager", "eval_strategy": "epoch"}
    _, after = _train(tmp_path, model, callback, **options)
    assert_same(tensors(callback.ema.module), by_hand(start, after, 0.9))
    assert_same(model.seen[-1], tensors(callback.ema.module), ulps=0)
    assert_same(tensors(model), after[-1], ulps=0)


def test_options_go_to_the_average(tmp_path):
    callback = EmaCallback(0.9, every=2, dtype=torch.float64)
    _train(tmp_path, Model(), callback)
    assert callback.ema.every == 2 and next(callback.ema.module.parameters()).dtype == torch.float64
