"""Runs side by side: one that nobody stopped, and one that went on from a checkpoint."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file

from mtkernels.train.checkpoint import checkpoints, name_of, read_checkpoint
from mtkernels.train.commands.train import as_toml
from mtkernels.train.config import Config


def copy_until(folder: Path, step: int, name: str = "again") -> Path:
    """A copy of a run as it would be, had it been killed after that step's checkpoint."""
    copy = folder.with_name(name)
    shutil.copytree(folder, copy)
    for path in checkpoints(copy):
        if path.name > name_of(step):
            shutil.rmtree(path)
    for name in ("student.safetensors", "teacher.safetensors", "summary.json", "metrics.csv", "curves.png"):
        (copy / name).unlink()
    return copy


def metrics(folder: Path) -> list[dict[str, float]]:
    """Its records in their order, less what no clock measures twice."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in lines]


def assert_same_tensors(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert value.dtype == two[name].dtype and torch.equal(value, two[name]), name


def assert_same_runs(one: Path, two: Path) -> None:
    """Weights, metrics with their order, and the last checkpoint with the optimizer's state."""
    assert_same_tensors(*(read_checkpoint(checkpoints(folder)[-1]).tensors for folder in (one, two)))
    names = sorted(path.name for path in one.glob("*.safetensors"))
    assert names == sorted(path.name for path in two.glob("*.safetensors"))
    for name in names:
        assert_same_tensors(load_file(one / name), load_file(two / name))
    assert metrics(one) == metrics(two)
    assert [list(line) for line in metrics(one)] == [list(line) for line in metrics(two)]


def words(config: Config) -> list[str]:
    """The command line that trains with just these settings."""
    file = config.out.with_name(f"{config.out.name}-{config.name}.toml")
    file.write_text(as_toml(config))
    return ["train", "--config-file", str(file)]
