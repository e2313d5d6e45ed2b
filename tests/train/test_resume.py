"""A run that goes on from a checkpoint ends with the bits of one that nobody stopped; what may change, and what not."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mtkernels.train.checkpoint import checkpoints, read_checkpoint
from mtkernels.train.cli import main
from mtkernels.train.config import Config, SettingError
from mtkernels.train.folder import load_model
from mtkernels.train.resume import FIXED, AtItsEndError
from mtkernels.train.run import run
from mtkernels.train.timeline import Timeline

from .data.images import write_digits
from .runs import assert_same_runs, assert_same_tensors, copy_until, words

VARIANTS = {
    "plain": {},
    "adam": {"optimizer": "adam", "adam_beta2": (0.99, 0.999), "consistency_rampup": 5},
    "momentum 0": {"momentum": 0.0, "nesterov": False},
    "accumulate": {"accumulate": 3},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16", "channels_last": True},
    "two heads": {"method": "pi-model", "logit_distance_cost": 0.1},
    "supervised": {"method": "supervised"},
    "channels last": {"channels_last": True, "optimizer": "adam"},
    "independent teacher": {"teacher_init": "independent", "buffers": "keep"},
    "teacher moves before": {"ema_order": "before"},
    "decay ramps": {"ema_warmup": False, "ema_decay_rampup": 0.9, "consistency_rampup": 5},
    "best by validation": {"validation": 100, "eval_split": "validation"},
    "no evaluation": {"eval_interval": 0},
}


pytestmark = pytest.mark.usefixtures("no_curves")


@pytest.fixture
def config(every_step):
    return every_step


def environment(folder: Path) -> dict:
    return json.loads((folder / "environment.json").read_text())


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_bits_are_those_of_a_run_that_was_not_stopped(config, variant):
    config = replace(config, **VARIANTS[variant])
    whole, summary = run(config)
    for step in (1, 4):  # 4: between two evaluations
        again = copy_until(whole, step, f"again-{step}")
        _, resumed = run(config, resume=again)
        assert_same_runs(whole, again)
        assert resumed.keys() == summary.keys()
        assert all(resumed[name] == summary[name] for name in summary if name != "seconds")
    first, last = (read_checkpoint(checkpoints(whole)[at]).tensors for at in (0, -1))
    moved = [name for name in first if name.endswith(".weight") and not torch.equal(first[name], last[name])]
    assert {name.split(".")[0] for name in moved} >= {
        "student",
        "teacher",
    }  # else it would have the same bits, too


@pytest.mark.parametrize("workers", [0, 2])
def test_the_bits_are_the_same_where_images_are_streamed(tmp_path, workers):
    """In epochs, of shuffled files, by any number of workers: another number goes on with the same bits."""
    data = write_digits(tmp_path / "data", train=12, test=3)
    config = Config(
        dataset="imagenet", data=data, labels=6, epochs=2, steps=None, augment="imagenet", width=4
    )
    config = replace(config, image_size=16, batch_size=6, labeled_batch_size=2, consistency_rampup=1)
    config = replace(config, eval_interval=1, checkpoint_interval=0.2, keep_checkpoints=99, pictures=False)
    whole, _ = run(replace(config, workers=0, out=tmp_path, name="whole"))
    steps = [int(path.name.removeprefix("step-")) for path in checkpoints(whole)]
    again = copy_until(whole, steps[len(steps) // 2])
    assert steps[len(steps) // 2] < steps[-1]
    run(replace(config, workers=workers, out=tmp_path, name="whole"), resume=again)
    assert_same_runs(whole, again)


def test_a_finished_run_goes_on_with_more_steps(config):
    config = replace(config, lr_rampdown=0, steps=9)
    whole, _ = run(config)
    part, _ = run(replace(config, steps=6, name="part"))
    run(replace(config, name="part"), resume=part)
    assert_same_runs(whole, part)
    assert json.loads((part / "summary.json").read_text())["steps_done"] == 9
    assert json.loads((part / "config.json").read_text())["steps"] == 9


def test_a_run_that_was_killed_after_its_last_step_is_finished(config):
    whole, _ = run(config)
    again = copy_until(whole, 8)
    run(config, resume=again)
    assert_same_runs(whole, again)
    assert sorted(path.name for path in again.iterdir()) == sorted(path.name for path in whole.iterdir())


def test_a_run_that_was_killed_is_not_cut_to_what_it_has_done(config):
    """There is no evaluation of that step to finish with."""
    folder, _ = run(config)
    with pytest.raises(AtItsEndError, match="the run is at its end, step 4: "):
        run(replace(config, steps=4), resume=copy_until(folder, 4))


def test_a_run_at_its_end_is_refused_unless_it_is_restarted_by_auto(config, capsys):
    folder, _ = run(config)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    sentence = "the run is at its end, step 8: to go on, resume it with more steps"
    for settings in (config, replace(config, steps=5, eval_interval=5)):
        with pytest.raises(AtItsEndError, match=sentence):
            run(settings, resume=folder)
    assert main(["train", "--resume", str(folder)]) == 2
    assert capsys.readouterr().err == f"mtkernels: {sentence}\n"
    assert (
        main([*words(config), "--resume", "auto"]) == 0
    )  # a cluster that restarts what is done may stop there
    out, err = capsys.readouterr()
    assert out == f"mtkernels: {sentence}\n" and err == ""
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


OTHER = {
    "method": "pi-model",
    "dataset": "npz",
    "labels": 30,
    "extra_unlabeled": 5,
    "validation": 50,
    "exclude_unlabeled": True,
    "seed": 1,
    "batch_size": 40,
    "labeled_batch_size": 5,
    "unlabeled_from": "all",
    "arch": "convnet13",
    "width": 8,
    "image_size": 16,
    "optimizer": "adam",
    "normalize": "zca",
}


def test_what_a_checkpoint_is_of_stays(config):
    folder, _ = run(replace(config, steps=2))
    assert OTHER.keys() == set(FIXED)
    for name, value in OTHER.items():
        was = getattr(config, name)
        with pytest.raises(
            SettingError, match=f"^{name} must be as in the run .{was}. to resume it, got {value}$"
        ):
            run(replace(config, **{name: value}), resume=folder)
    assert "resumed" not in environment(folder) and len(checkpoints(folder)) == 2


def test_the_runs_own_settings_are_used_and_changes_are_noted(config):
    folder, _ = run(replace(config, steps=4))
    first = environment(folder)
    assert main(["train", "--resume", str(folder), "--steps", "6", "--weight-decay", "0.01"]) == 0
    (noted,) = environment(folder)["resumed"]
    assert noted["step"] == 4 and noted["changed"] == {"steps": [4, 6], "weight_decay": [1e-4, 0.01]}
    assert {name: value for name, value in environment(folder).items() if name != "resumed"} == first
    settings = json.loads((folder / "config.json").read_text())
    assert settings == replace(config, steps=6, weight_decay=0.01).as_dict()
    assert main(["train", "--resume", str(checkpoints(folder)[-1]), "--steps", "7"]) == 0
    assert [each["step"] for each in environment(folder)["resumed"]] == [4, 6]


def test_auto_starts_a_run_and_restarts_it(config, capsys):
    line = [*words(config), "--resume", "auto"]
    assert main([*words(replace(config, name=None)), "--resume", "auto"]) == 2
    assert "name must be given where resume is auto, got None" in capsys.readouterr().err
    folder = config.out / config.name
    folder.mkdir()
    (folder / ".config.json.7.tmp").write_text("{")  # killed as soon as it can be
    assert main(line) == 0
    again = copy_until(folder, 3)
    assert main([*words(replace(config, name="again")), "--resume", "auto"]) == 0
    assert environment(again)["resumed"][0]["step"] == 3
    assert_same_runs(folder, again)


def test_auto_begins_anew_where_there_is_no_checkpoint_yet(config):
    whole, _ = run(config)
    again = copy_until(whole, 0)
    (again / "checkpoints" / ".step-000000001.7.tmp").mkdir()
    assert main([*words(replace(config, name="again")), "--resume", "auto"]) == 0
    assert_same_runs(whole, again)
    assert "resumed" not in environment(again)
    assert sorted(path.name for path in again.iterdir()) == sorted(path.name for path in whole.iterdir())


@pytest.mark.parametrize(
    "files", [{"mine.txt": ""}, {"config.json": '{"architectures": []}', "model.bin": "x"}]
)
def test_auto_leaves_what_is_no_run_alone(config, files, capsys):
    folder = config.out / config.name
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    assert main([*words(config), "--resume", "auto"]) == 1
    assert "exists and is not empty: choose another --name, or remove it" in capsys.readouterr().err
    assert {path.name: path.read_text() for path in folder.iterdir()} == files


def test_the_best_weights_are_those_of_the_run_that_goes_on(config):
    """Not those of evaluations after the checkpoint, which the run may never come by again."""
    config = replace(config, validation=100, eval_split="validation", eval_interval=2)
    folder, _ = run(config)
    at_two = copy_until(folder, 2)
    wanted = read_checkpoint(checkpoints(at_two)[-1])
    assert wanted.numbers["best"]["step"] == 2
    (at_two / "best.safetensors").write_bytes((folder / "student.safetensors").read_bytes())
    _, summary = run(replace(config, lr=0.0, initial_lr=0.0, ema_decay=1.0, ema_warmup=False), resume=at_two)
    assert summary["best_step"] == 2  # the teacher stands still
    best = {f"best.{name}": value for name, value in load_file(at_two / "best.safetensors").items()}
    assert_same_tensors(best, {name: v for name, v in wanted.tensors.items() if name.startswith("best.")})
    teacher = {name.removeprefix("teacher."): v for name, v in wanted.tensors.items() if "teacher." in name}
    assert_same_tensors(load_file(at_two / "best.safetensors"), teacher)
    before_any = copy_until(folder, 1, "before")
    run(replace(config, steps=8, eval_split="unlabeled"), resume=before_any)
    assert not (before_any / "best.safetensors").exists()


def test_weights_of_an_earlier_end_are_not_those_of_a_run_that_goes_on(config, monkeypatch):
    """A finished run that is resumed with more steps, and killed."""
    folder, _ = run(replace(config, steps=4, checkpoint_interval=2))

    def killed(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("mtkernels.train.run._finish", killed)
    with pytest.raises(KeyboardInterrupt):
        run(replace(config, steps=8, checkpoint_interval=2), resume=folder)
    saved = read_checkpoint(checkpoints(folder)[-1])
    assert saved.numbers["step"] == 8
    for name, value in load_model(folder).state_dict().items():
        assert torch.equal(value, saved.tensors[f"teacher.{name}"])


def test_an_interval_below_a_step_is_a_step(config):
    timeline = Timeline(replace(config, steps=None, epochs=5, checkpoint_interval=0.2), steps_per_epoch=2)
    assert [step for step in range(1, 6) if timeline.saves(step)] == [1, 2, 3, 4, 5]
    assert not any(replace(timeline, config=replace(config, checkpoint_interval=0)).saves(n) for n in (1, 9))
