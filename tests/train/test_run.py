"""The run folder: every file is there, parses, gives the models back; Ctrl-C leaves a usable one."""

import csv
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mtkernels.train.config import Config
from mtkernels.train.data import Evaluation, load_dataset
from mtkernels.train.files import write_with
from mtkernels.train.folder import load_model
from mtkernels.train.meter import error_percents
from mtkernels.train.run import run

from .conftest import ENVIRONMENT

FILES = ["checkpoints", "config.json", "confusion.csv", "confusion.png", "curves.png", "dataset.json"]
FILES += ["environment.json", "labels.txt", "metrics.csv", "metrics.jsonl", "mistakes.png", "pairs.png"]
FILES += ["student.safetensors", "summary.json", "teacher.safetensors"]


@pytest.fixture
def config(small, tmp_path):
    return replace(small, out=tmp_path)


class Blind(torch.nn.Sequential):
    """A network with other classes than the data."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(64, 3))


def error_of(model, config: Config) -> float:
    return error_percents([model], Evaluation(config, load_dataset(config)))[0][0]


def read(path: Path) -> dict:
    return json.loads(path.read_text())


@pytest.mark.parametrize("method", ["mean-teacher", "pi-model", "supervised"])
def test_folder_is_complete_and_parses(config, method, capsys):
    config = replace(config, method=method, pictures=True)
    folder, summary = run(config)
    assert folder == config.out / f"digits-{method}-20-seed0"
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert read(folder / "config.json") == config.as_dict()
    assert read(folder / "summary.json") == summary and not summary["interrupted"]
    assert read(folder / "environment.json")["torch"] == torch.__version__
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    with open(folder / "metrics.csv") as file:
        rows = [{name: float(cell) for name, cell in row.items()} for row in csv.DictReader(file)]
    assert lines == rows and [line["step"] for line in lines] == [3, 6]
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert summary["teacher_error"] == lines[-1]["teacher_error"]
    title, header, *table = capsys.readouterr().out.splitlines()  # no terminal: plain lines
    assert title == f"{method} on digits, 20 labels, seed 0 -> {folder}"
    assert header.split()[-3:] == ["student_error", "teacher_error", "images/s"] and len(table) == 2
    assert table[1].split()[0] == "6" and len(header) <= 80


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_weights_give_the_reported_error(config, role):
    folder, summary = run(config)
    model = load_model(folder, role)
    assert not model.training
    assert error_of(model, config) == summary[f"{role}_error"]


def test_channels_last_weights_are_saved_as_their_values(config):
    """safetensors knows no strides, and refuses what is not contiguous."""
    config = replace(config, channels_last=True)
    folder, summary = run(config)
    assert error_of(load_model(folder), config) == summary["teacher_error"]


def test_a_taken_name_is_refused_and_nothing_changes(config):
    folder, _ = run(replace(config, name="mine"))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(
        FileExistsError, match=r"mine exists and is not empty: choose another --name, or remove it"
    ):
        run(replace(config, name="mine", seed=1))
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_made_up_names_are_numbered(config):
    assert [run(config)[0].name for _ in range(3)] == [
        f"digits-mean-teacher-20-seed0{end}" for end in ("", "-2", "-3")
    ]


def test_refused_settings_leave_no_folder(config):
    for changes in ({"labels": 9}, {"steps": 0}, {"batch_size": 1300}, {"device": "gpu"}):
        with pytest.raises(ValueError):
            run(replace(config, **changes))
    assert list(config.out.iterdir()) == []


@pytest.mark.parametrize("split", ["test", "validation", "unlabeled"])
def test_every_split_ends_with_its_files(config, split):
    folder, summary = run(replace(config, eval_split=split, validation=100, pictures=True))
    files = sorted([*FILES, "best.safetensors"] if split == "validation" else FILES)
    assert sorted(path.name for path in folder.iterdir()) == files and summary["eval_split"] == split


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arch": "convnet13"}, r"arch convnet13 cannot be trained on images of 1 x 8 x 8: "),
        (
            {"arch": "tests.train.test_run:Blind"},
            r"arch tests.*Blind must give 10 logits an image, got \[1, 3\]",
        ),
        (
            {"augment": "imagenet"},
            r"jitter must be 0 0 0 0 for images of 1 channels, got \(0.4, 0.4, 0.4, 0.1\)",
        ),
        ({"device": "meta"}, r"device must be one that this torch can use, got 'meta'"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_there_is_a_folder(config, changes, message):
    with pytest.raises(ValueError, match=message):
        run(replace(config, **changes))
    assert list(config.out.iterdir()) == []


def test_device_error_names_the_device(config):
    with pytest.raises(ValueError, match=r"device must be one that this torch can use, got 'gpu': "):
        run(replace(config, device="gpu"))


def test_files_are_whole_or_absent(tmp_path):
    def fail(path):
        path.write_text("half")
        raise RuntimeError("disk full")

    (tmp_path / "file").write_text("old")
    with pytest.raises(RuntimeError, match="disk full"):
        write_with(tmp_path / "file", fail)
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "old"


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT to a process")
def test_ctrl_c_leaves_a_usable_run(tmp_path):
    line = [
        sys.executable,
        "-m",
        "mtkernels.train.cli",
        "train",
        "--steps",
        "1000000",
        "--eval-interval",
        "2",
    ]
    line += ["--width", "4", "--name", "cut"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(line, cwd=tmp_path, env=ENVIRONMENT, **pipes)
    for text in process.stdout:
        if text.split()[0].isdigit():
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err == ""
    folder = tmp_path / "runs" / "cut"
    assert sorted(path.name for path in folder.iterdir()) == FILES
    summary = read(folder / "summary.json")
    assert summary["interrupted"] and 2 <= summary["steps_done"] < 1000000
    assert out.splitlines()[-1].startswith(f"stopped at step {summary['steps_done']} ")
    error = error_of(load_model(folder), Config())
    assert error == pytest.approx(summary["teacher_error"], abs=0.5)  # another process may have other threads
