"""What stops a run: Ctrl-C, SIGTERM, a loss that is not finite; each leaves a checkpoint that it goes on from."""

import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from mtkernels.train.checkpoint import checkpoints, name_of, read_checkpoint
from mtkernels.train.cli import main
from mtkernels.train.data import load_dataset, make_feed
from mtkernels.train.data.feed import MemoryFeed
from mtkernels.train.interrupt import interrupts_wait, stop_on_signals
from mtkernels.train.loop import make_batches, make_method, make_step
from mtkernels.train.meter import Meter, NonFiniteError
from mtkernels.train.optimizer import LossScale
from mtkernels.train.run import run
from mtkernels.train.state import below
from mtkernels.train.step import Step

from .conftest import ENVIRONMENT
from .data.images import write_digits
from .runs import assert_same_runs, assert_same_tensors, words

pytestmark = pytest.mark.usefixtures("no_curves")


@pytest.fixture
def config(every_step):
    return every_step


@pytest.mark.skipif(os.name == "nt", reason="sends signals to a process")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_save_and_exit_cleanly(config, number, code):
    config = replace(config, steps=40, eval_interval=0, checkpoint_interval=0)
    line = [sys.executable, "-m", "mtkernels.train.cli", *words(replace(config, name="again"))]
    process = subprocess.Popen(
        [*line, "--print-interval", "1"],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for text in process.stdout:
        if text.startswith("step 3:"):
            process.send_signal(number)
            break
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (code, "")
    again, whole = config.out / "again", run(config)[0]
    summary = json.loads((again / "summary.json").read_text())
    assert summary["interrupted"] and 3 <= summary["steps_done"] < 40
    assert out.splitlines()[-1].startswith(f"stopped at step {summary['steps_done']} ")
    assert [path.name for path in checkpoints(again)] == [name_of(summary["steps_done"])]
    assert sorted(path.name for path in again.iterdir()) == sorted(path.name for path in whole.iterdir())
    tensors = below(read_checkpoint(checkpoints(again)[0]).tensors, "teacher.")
    assert_same_tensors(load_file(again / "teacher.safetensors"), tensors)
    assert main([*words(replace(config, name="again")), "--resume", "auto"]) == 0
    assert_same_runs(whole, again)


def signal_in_step(monkeypatch, step: int, number: int = signal.SIGINT) -> None:
    """Sends it to this process within a step, counted from 1."""
    real = Step.__call__

    def call(self, batch, at):
        if at + 1 == step:
            signal.raise_signal(number)
        return real(self, batch, at)

    monkeypatch.setattr(Step, "__call__", call)


def test_a_second_ctrl_c_in_the_last_evaluation_leaves_the_checkpoint(config, monkeypatch, capsys):
    config = replace(config, eval_interval=0, checkpoint_interval=0)
    whole, _ = run(config)
    with monkeypatch.context() as patch:
        signal_in_step(patch, 3)
        patch.setattr(Meter, "record", lambda *_: signal.raise_signal(signal.SIGINT))
        assert main(words(replace(config, name="again"))) == 130
    assert capsys.readouterr().err == "mtkernels: interrupted\n"
    again = config.out / "again"
    assert [path.name for path in checkpoints(again)] == [name_of(3)] and not (
        again / "summary.json"
    ).exists()
    run(config, resume=again)
    assert_same_runs(whole, again)


def test_ctrl_c_before_the_first_step_ends_at_once(config, monkeypatch, capsys):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    monkeypatch.setattr("mtkernels.train.run.load_dataset", lambda _: signal.raise_signal(signal.SIGINT))
    assert main(words(config)) == 130
    assert capsys.readouterr().err == "mtkernels: interrupted\n" and list(config.out.iterdir()) == []
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_stop_whose_checkpoint_cannot_be_written_says_so(config, monkeypatch, capsys):
    signal_in_step(monkeypatch, 3)

    def refuse(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mtkernels.train.watch.save_checkpoint", refuse)
    assert main(words(config)) == 1
    sentence = r"mtkernels: the checkpoint of step 3 could not be written: [Errno 28] No space left on device"
    assert capsys.readouterr().err == f"{sentence}\n"


STREAMED = "train --dataset imagenet --labels 6 --epochs 2000 --augment imagenet --arch convnet13 --width 4"
STREAMED += (
    " --image-size 16 --batch-size 6 --labeled-batch-size 2 --lr 0.01 --lr-rampup 0 --consistency-rampup 1"
)
STREAMED += " --eval-interval 0 --checkpoint-interval 0 --print-interval 1 --pictures False --workers 2"


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="sends signals to a process and its children")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_to_the_workers_too_save_and_exit_cleanly(tmp_path, number):
    """As terminals send them, and clusters: to all processes of a job."""
    data = write_digits(tmp_path / "data", train=12, test=3)
    line = [*STREAMED.split(), "--data", str(data), "--out", str(tmp_path), "--name", "run"]
    process = subprocess.Popen(
        [sys.executable, "-m", "mtkernels.train.cli", *line],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for text in process.stdout:
        if text.startswith("step 3:"):
            os.killpg(process.pid, number)
            break
    _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (128 + number, "")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [path.name for path in checkpoints(tmp_path / "run")] == [name_of(summary["steps_done"])]
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # no worker is left


def poison(monkeypatch, step: int) -> None:
    """A NaN in an image of that step's batch, counted from 1: loss, gradients and batch statistics become NaN."""
    real = MemoryFeed.batch

    def batch(self, at):
        given = real(self, at)
        if at + 1 == step:
            for view in given.views:
                view[0, 0, 0, 0] = float("nan")
        return given

    monkeypatch.setattr(MemoryFeed, "batch", batch)


def models(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What a step moves: all but the sums for the record."""
    return {name: value for name, value in tensors.items() if not name.startswith("meter.")}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"print_interval": 1000},
        {"optimizer": "adam", "ema_order": "before"},
        {"buffers": "copy"},
        {"buffers": "keep", "teacher_init": "independent"},
        {"precision": "fp16", "momentum": 0.0, "nesterov": False},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())) or "plain",
)
def test_what_is_not_finite_stops_the_run_with_a_checkpoint_from_before(config, changes, monkeypatch, capsys):
    """No later than 50 steps on; student and teacher, batch statistics and optimizer as they were."""
    config = replace(config, steps=60, eval_interval=0, checkpoint_interval=4, **changes)
    whole, _ = run(config)
    alone = replace(config, checkpoint_interval=0, name="again")
    feed = MemoryFeed.batch
    with monkeypatch.context() as patch:
        poison(patch, 5)
        poisoned, steps = MemoryFeed.batch, []
        patch.setattr(MemoryFeed, "batch", lambda self, at: steps.append(at) or poisoned(self, at))
        assert main(words(alone)) == 1
    assert MemoryFeed.batch is feed and steps == list(range(50))
    again = config.out / "again"
    error = capsys.readouterr().err
    assert error.startswith("mtkernels: class_loss must stay finite, got nan at step 5: try a lower lr")
    assert str(again / "checkpoints" / name_of(4)) in error
    assert [path.name for path in checkpoints(again)] == [name_of(4)]
    good = read_checkpoint(whole / "checkpoints" / name_of(4))
    saved = read_checkpoint(again / "checkpoints" / name_of(4))
    assert all(value.isfinite().all() for value in saved.tensors.values())
    scale = {"scale.good_steps"} & good.tensors.keys()  # counts the steps that stood still
    assert_same_tensors(
        *(
            {name: v for name, v in models(each.tensors).items() if name not in scale}
            for each in (saved, good)
        )
    )
    assert saved.numbers["teacher_updates"] == good.numbers["teacher_updates"] == 4
    run(alone, resume=again)  # the images are sound again
    if not scale:
        ends = (read_checkpoint(checkpoints(folder)[-1]) for folder in (whole, again))
        assert_same_tensors(*(models(end.tensors) for end in ends))


def test_a_checkpoint_that_is_there_already_is_left_as_it_is(config, monkeypatch, capsys):
    """It has the losses since the last record, too: the run goes on to the same metrics."""
    config = replace(config, steps=12, eval_interval=6, checkpoint_interval=2)
    whole, _ = run(config)
    with monkeypatch.context() as patch:
        poison(patch, 5)
        assert main(words(replace(config, name="again"))) == 1
    again = config.out / "again"
    assert str(again / "checkpoints" / name_of(4)) in capsys.readouterr().err
    assert [path.name for path in checkpoints(again)] == [name_of(2), name_of(4)]
    run(config, resume=again)
    assert_same_runs(whole, again)


def test_a_run_that_diverges_in_its_first_step_has_a_checkpoint_of_the_beginning(config, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        poison(patch, 1)
        assert main(words(config)) == 1
    assert "at step 1: " in capsys.readouterr().err
    folder = config.out / config.name
    run(config, resume=folder)
    whole, _ = run(replace(config, name="other"))
    ends = (read_checkpoint(checkpoints(each)[-1]) for each in (whole, folder))
    assert_same_tensors(*(models(end.tensors) for end in ends))


def test_an_overflow_of_fp16_is_no_failure(config, monkeypatch):
    """The step is left out, the first one, too; the scale falls by half until gradients fit."""
    monkeypatch.setitem(LossScale.__init__.__kwdefaults__, "first", 2.0**40)
    config = replace(config, precision="fp16", steps=40, eval_interval=0)
    folder, _ = run(config)
    saved = [read_checkpoint(path) for path in checkpoints(folder)]
    scales = [float(each.tensors["scale.scale"]) for each in saved]
    skipped = sum(scale == 2.0 ** (39 - at) for at, scale in enumerate(scales))
    assert 10 < skipped < 35 and scales[skipped:] == [scales[skipped - 1]] * (40 - skipped)
    updates = [each.numbers["teacher_updates"] for each in saved]
    assert updates == [max(0, at - skipped) for at in range(1, 41)]
    for each in saved:
        assert all(value.isfinite().all() for value in each.tensors.values())
    weights = [
        {
            name: value
            for name, value in each.tensors.items()
            if name.endswith("weight") and "optimizer" not in name
        }
        for each in saved
    ]
    assert_same_tensors(weights[0], weights[skipped - 1])
    moved = [name for name, value in weights[-1].items() if not torch.equal(value, weights[0][name])]
    assert {name.split(".")[0] for name in moved} == {"student", "teacher"}


def test_gradients_that_overflow_at_every_scale_end_the_training(config, monkeypatch):
    monkeypatch.setitem(LossScale.__init__.__kwdefaults__, "first", 8.0)
    config = replace(config, precision="fp16", steps=20)
    data = load_dataset(config)
    batches = make_batches(config, data)
    method = make_method(config, data, batches)
    step = make_step(method)
    meter = Meter(step, data)
    first = {name: value.clone() for name, value in method.student.state_dict().items() if "weight" in name}
    hook = method.student.classifier.weight.register_hook(lambda gradient: gradient * torch.inf)
    with make_feed(config, data, batches, 2) as feed:
        for number in range(20):
            if number == 12:
                hook.remove()  # sound gradients again, divided by what is left of the scale
            meter.add(step(feed.batch(number), number), images=30)
    with pytest.raises(NonFiniteError, match=r"must stay finite, got inf or nan at step \d: try a lower lr"):
        meter.look(20)
    for model in (method.student, method.teacher):
        assert_same_tensors({name: model.state_dict()[name] for name in first}, first)


class Waits(TorchDispatchMode):
    """Counts what makes a program wait for its device: a number that is read from a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **kwargs or {})


@pytest.mark.parametrize(
    "changes",
    [{}, {"precision": "fp16"}, {"optimizer": "adam", "precision": "bf16"}, {"method": "pi-model"}],
    ids=str,
)
def test_no_step_reads_a_number_from_the_device(config, changes):
    config = replace(config, class_loss_over="labeled", **changes)
    data = load_dataset(config)
    batches = make_batches(config, data)
    step = make_step(make_method(config, data, batches))
    meter = Meter(step, data)
    with make_feed(config, data, batches, step.method.views) as feed, Waits() as waits:
        for number in range(4):
            batch = feed.batch(number)
            meter.add(step(batch, number), images=batch.counts.rows)
        assert waits.count == 0
        float(step.skipped)
        assert waits.count == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_what_it_would_leave_half_done(number):
    before = signal.signal(number, signal.default_int_handler)
    done = []
    with pytest.raises(KeyboardInterrupt), interrupts_wait():
        signal.raise_signal(number)
        done.append(1)
    with pytest.raises(KeyboardInterrupt), interrupts_wait():
        signal.raise_signal(number)
        signal.raise_signal(number)  # somebody who cannot wait
        done.append(2)
    assert done == [1] and signal.signal(number, before) is signal.default_int_handler


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_acts_at_once_where_a_batch_is_waited_for(first):
    done = []
    with stop_on_signals() as stopped:
        with interrupts_wait():
            signal.raise_signal(first)
            assert not stopped()
        assert stopped()
    with pytest.raises(KeyboardInterrupt), stop_on_signals(), interrupts_wait():
        signal.raise_signal(first)
        signal.raise_signal(signal.SIGINT)
        done.append(1)
    with pytest.raises(KeyboardInterrupt), stop_on_signals() as stopped:
        with interrupts_wait():
            signal.raise_signal(first)
        with interrupts_wait():
            signal.raise_signal(signal.SIGINT)
    assert stopped() and done == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_waits_only_where_it_can():
    def elsewhere():
        with interrupts_wait():
            done.append(signal.getsignal(signal.SIGINT))

    done = []
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert done == [signal.default_int_handler]
