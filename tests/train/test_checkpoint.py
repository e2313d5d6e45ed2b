"""Checkpoints: what is damaged is refused by name, what is before it is offered, a failed save harms nothing."""

import errno
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mtkernels.train import checkpoint as checkpoint_module
from mtkernels.train.checkpoint import (
    DamagedCheckpointError,
    checkpoints,
    clean_checkpoints,
    find_checkpoint,
    name_of,
    newest_sound,
    read_checkpoint,
    save_checkpoint,
)
from mtkernels.train.cli import main
from mtkernels.train.config import Config, SettingError
from mtkernels.train.data import load_dataset
from mtkernels.train.loop import make_batches, make_method, make_step
from mtkernels.train.meter import Meter
from mtkernels.train.run import run
from mtkernels.train.state import restore

from .conftest import ENVIRONMENT

FILES = ("manifest.json", "state.json", "state.safetensors")
TENSORS = {
    "a": torch.arange(6.0).reshape(2, 3),
    "b": torch.tensor(3),
    "c": torch.ones(4, dtype=torch.bfloat16),
}
NUMBERS = {"seconds": 1.5, "records": [{"step": 1, "class_loss": 0.1}], "best": None}


@pytest.fixture
def folder(tmp_path):
    """Three checkpoints, of steps 10, 20 and 30."""
    for step in (10, 20, 30):
        save_checkpoint(tmp_path, step, TENSORS, NUMBERS | {"of": step}, keep=9)
    return tmp_path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of six steps with a checkpoint every other step."""
    config = Config(steps=6, eval_interval=3, width=4, batch_size=30, labeled_batch_size=10, pictures=False)
    config = replace(config, checkpoint_interval=2, keep_checkpoints=3, name="run")
    return run(replace(config, out=tmp_path_factory.mktemp("trained")))[0]


@pytest.fixture
def copied(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def steps_of(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in checkpoints(folder)]


def settings(folder: Path) -> Config:
    return Config.from_dict(json.loads((folder / "config.json").read_text()))


def left_over(folder: Path) -> list[str]:
    return [path.name for path in (folder / "checkpoints").iterdir() if path.name.startswith(".")]


def flip(path: Path, at: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)


def test_what_is_read_is_what_was_written(folder):
    tensors, numbers = read_checkpoint(folder / "checkpoints" / name_of(20))
    assert tensors.keys() == TENSORS.keys()
    assert all(
        tensors[name].dtype == value.dtype and torch.equal(tensors[name], value)
        for name, value in TENSORS.items()
    )
    assert numbers == NUMBERS | {"of": 20, "format": 1, "step": 20}
    assert sorted(path.name for path in (folder / "checkpoints" / name_of(20)).iterdir()) == list(FILES)


@pytest.mark.parametrize("file", FILES)
def test_a_flipped_bit_is_refused_by_the_files_name(folder, file):
    newest = checkpoints(folder)[-1]
    whole, dice = (newest / file).read_bytes(), random.Random(file)
    for _ in range(60):
        flip(newest / file, dice.randrange(len(whole)), dice.randrange(8))
        with pytest.raises(DamagedCheckpointError) as caught:
            newest_sound(folder)
        # A manifest that was changed may speak of a file as it never was: then that one is named.
        named = FILES if file == "manifest.json" else (file,)
        assert any(str(newest / name) in str(caught.value) for name in named)
        assert str(caught.value).endswith(f"; the one before is sound: --resume {checkpoints(folder)[-2]}")
        (newest / file).write_bytes(whole)
    assert newest_sound(folder)[0] == newest


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("harm", ["truncated", "empty", "missing", "longer"])
def test_what_is_not_as_it_was_written_is_refused_by_name(folder, file, harm):
    newest = checkpoints(folder)[-1]
    path = newest / file
    whole = path.read_bytes()
    if harm == "missing":
        path.unlink()
    else:
        path.write_bytes({"truncated": whole[:-2], "empty": b"", "longer": whole + b"x"}[harm])
    with pytest.raises(DamagedCheckpointError) as caught:
        newest_sound(folder)
    words = "is missing" if harm == "missing" else "is damaged: "
    assert str(caught.value).startswith(f"{path} {words}")
    if harm in ("truncated", "longer") and file != "manifest.json":
        size = len(whole) + (1 if harm == "longer" else -2)
        assert f"it must have {len(whole)} bytes, got {size}" in str(caught.value)


def test_a_manifest_without_entries_or_of_another_format_is_refused(folder):
    newest = checkpoints(folder)[-1]
    path = newest / "manifest.json"
    manifest = json.loads(path.read_text())
    for changed, words in (
        ({"format": 2}, "must be of format 1, got 2"),
        ({"files": {}}, "is damaged: it has no size and SHA-256 of state.safetensors"),
        ({"files": [1]}, "is damaged: it has no size and SHA-256 of state.safetensors"),
    ):
        path.write_text(json.dumps(manifest | changed))
        with pytest.raises(DamagedCheckpointError, match=f"manifest.json {words}"):
            read_checkpoint(newest)
    path.write_text("[]")
    with pytest.raises(
        DamagedCheckpointError, match=r"manifest.json is damaged: it must hold an object, got list"
    ):
        read_checkpoint(newest)


def test_the_one_offered_is_the_newest_sound_one(folder):
    oldest, middle, newest = checkpoints(folder)
    (newest / "state.json").unlink()
    flip(middle / "state.safetensors", -1, 0)
    with pytest.raises(DamagedCheckpointError, match=f"the one before is sound: --resume {oldest}"):
        newest_sound(folder)
    flip(oldest / "state.safetensors", -1, 0)
    with pytest.raises(DamagedCheckpointError, match="there is no sound one before it"):
        newest_sound(folder)


def test_a_damaged_one_is_refused_by_the_command_and_the_one_before_works(copied, capsys):
    path = checkpoints(copied)[-1] / "state.safetensors"
    flip(path, 100, 3)
    before = {file: file.read_bytes() for file in copied.rglob("*") if file.is_file()}
    assert main(["train", "--resume", str(copied)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"mtkernels: {path} is damaged: its SHA-256 is not what manifest.json says; ")
    assert {file: file.read_bytes() for file in copied.rglob("*") if file.is_file()} == before
    offered = error.split("--resume ")[1].strip()
    assert offered == str(checkpoints(copied)[-2])
    assert main(["train", "--resume", offered]) == 0
    assert steps_of(copied) == [2, 4, 6] and read_checkpoint(checkpoints(copied)[-1]).numbers["step"] == 6


class Trap:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("manifest", ["of the sound file", "of the pickle"])
def test_a_pickle_is_not_executed(copied, tmp_path, manifest, capsys):
    newest = checkpoints(copied)[-1]
    path = newest / "state.safetensors"
    torch.save({"a": Trap(tmp_path / "executed")}, path, pickle_protocol=2)
    if manifest == "of the pickle":
        facts = json.loads((newest / "manifest.json").read_text())
        facts["files"][path.name] = checkpoint_module._facts(path)
        (newest / "manifest.json").write_text(json.dumps(facts))
    assert main(["train", "--resume", str(copied)]) == 2
    assert capsys.readouterr().err.startswith(f"mtkernels: {path} is damaged: ")
    assert not (tmp_path / "executed").exists()
    pickle.loads(pickle.dumps(Trap(tmp_path / "executed")))  # the trap works
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize("where", ["fsync", "rename"])
def test_what_the_disk_refuses_leaves_the_ones_before(folder, monkeypatch, where):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, where, refuse)
    with pytest.raises(OSError, match="No space left on device"):
        save_checkpoint(folder, 40, TENSORS, NUMBERS, keep=1)
    monkeypatch.undo()
    assert steps_of(folder) == [10, 20, 30] and left_over(folder) == []
    assert newest_sound(folder)[1].numbers["step"] == 30


def test_a_file_that_cannot_be_written_is_an_oserror(tmp_path):
    """safetensors has an error of its own, which no caller knows."""
    with pytest.raises(OSError):
        checkpoint_module.save_tensors(tmp_path / "nowhere" / "file", TENSORS)


def test_nothing_is_renamed_before_the_disk_has_it(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "rename"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, real=real: calls.append(name) or real(*args))
    save_checkpoint(tmp_path, 1, TENSORS, NUMBERS, keep=1)
    assert calls == ["fsync"] * 4 + ["rename", "fsync", "fsync"]  # three files, their folder; those it is in


LIMITED = """
import json, resource, signal, sys
from mtkernels.train import watch
from mtkernels.train.cli import main

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
real, calls = watch.save_checkpoint, []

def save(folder, step, *args, **kwargs):
    # As a disk has it that is full in steps 4 and 6: state.json still fits, the tensors do not.
    size = 20000 if step in (4, 6) else resource.RLIM_INFINITY
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        return real(folder, step, *args, **kwargs)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        names = sorted(path.name for path in (folder / "checkpoints").iterdir())
        print("CHECKPOINTS", json.dumps([step, names]), flush=True)

watch.save_checkpoint = save
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="needs a limit on the size of files")
def test_a_full_disk_stops_the_save_and_not_the_run(tmp_path):
    line = "train --steps 8 --width 4 --batch-size 30 --labeled-batch-size 10 --pictures False"
    line += " --checkpoint-interval 2 --eval-interval 0 --name run --out"
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *line.split(), str(tmp_path)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    seen = [json.loads(line.split(" ", 1)[1]) for line in lines if line.startswith("CHECKPOINTS")]
    first, last = name_of(2), name_of(8)
    assert seen == [[2, [first]], [4, [first]], [6, [first]], [8, [first, last]]]
    notes = [line for line in lines if line.startswith("mtkernels: ")]
    assert len(notes) == 2
    assert notes[0].startswith("mtkernels: the checkpoint of step 4 could not be written: ")
    assert "File too large" in notes[0] and notes[0].endswith("; that of step 2 is kept")
    for path in checkpoints(tmp_path / "run"):
        read_checkpoint(path)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps_done"] == 8


def test_as_many_are_kept_as_asked_for(small, tmp_path):
    config = replace(small, checkpoint_interval=1, out=tmp_path)
    for keep in (1, 3):
        folder, _ = run(replace(config, keep_checkpoints=keep))
        assert steps_of(folder) == list(range(7 - keep, 7))


def test_the_one_before_stays_until_the_new_one_is_there(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, 1, TENSORS, NUMBERS, keep=1)
    seen = []
    real = os.rename

    def rename(source, target):
        seen.append(steps_of(tmp_path))
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    save_checkpoint(tmp_path, 2, TENSORS, NUMBERS, keep=1)
    assert seen == [[1], [1, 2]] and steps_of(tmp_path) == [2]


def test_left_overs_and_later_ones_are_cleaned_up(folder):
    parent = folder / "checkpoints"
    for name in (f".{name_of(40)}.1.tmp", f".{name_of(5)}.gone.tmp"):
        (parent / name).mkdir()
        (parent / name / "state.json").write_text("{")
    (folder / ".best.safetensors.1.tmp").write_text("half")
    (folder / "kept.txt").write_text("mine")
    assert steps_of(folder) == [10, 20, 30]  # left-overs are never taken for checkpoints
    clean_checkpoints(folder, after=20)
    assert steps_of(folder) == [10, 20] and left_over(folder) == []
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoints", "kept.txt"]


def test_going_back_removes_later_ones_and_left_overs(copied):
    (copied / "checkpoints" / f".{name_of(5)}.77.tmp").mkdir()
    earlier = checkpoints(copied)[0]
    config = replace(settings(copied), lr=0.0, checkpoint_interval=0)
    run(config, resume=earlier)
    assert steps_of(copied) == [2, 6] and left_over(copied) == []
    numbers = read_checkpoint(checkpoints(copied)[-1]).numbers
    assert numbers["config"]["lr"] == 0.0


def test_a_checkpoint_is_found_from_wherever_one_stands(copied, monkeypatch, tmp_path):
    newest = checkpoints(copied)[-1]
    monkeypatch.chdir(newest.parent)
    assert find_checkpoint(Path(newest.name)) == newest
    monkeypatch.chdir(newest)
    assert find_checkpoint(Path(".")) == newest
    monkeypatch.chdir(copied)
    assert find_checkpoint(Path(".")).samefile(newest)
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(
            SettingError, match="resume must be a run's folder with a checkpoint, or a checkpoint"
        ):
            find_checkpoint(path)


def test_the_tensors_of_another_network_are_refused(small, tmp_path):
    config = replace(small, checkpoint_interval=3, out=tmp_path)
    path = checkpoints(run(config)[0])[0]
    with pytest.raises(
        SettingError, match=r"logit_distance_cost must leave the network its heads .*, got 0.1$"
    ):
        run(replace(config, logit_distance_cost=0.1), resume=path)
    data = load_dataset(config)
    step = make_step(make_method(replace(config, width=5), data, make_batches(config, data)))
    with pytest.raises(
        DamagedCheckpointError, match=r"another network: 'features.0.weight' must have shape \[5,"
    ):
        restore(step, Meter(step, data), read_checkpoint(path))
