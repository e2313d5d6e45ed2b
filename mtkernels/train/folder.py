"""A run's folder: making it, filling it, reading its weights back."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from .config import Config
from .data import Dataset
from .data.labels import image_names, write_label_file
from .files import free_path, write_csv, write_json, write_with
from .loop import build_model
from .meter import Record
from .methods import Method

Summary = dict[str, object]


def make_folder(config: Config) -> Path:
    """A new, empty folder. A taken name is an error if it was asked for; a made-up one gets a free number."""
    if config.name is not None:
        folder = config.out / config.name
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise FileExistsError(f"{folder} exists and is not empty: choose another --name, or remove it")
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    labels = config.labels.stem if isinstance(config.labels, Path) else config.labels
    folder = free_path(config.out / f"{config.dataset}-{config.method}-{labels}-seed{config.seed}")
    folder.mkdir(parents=True)
    return folder


def describe_data(folder: Path, data: Dataset) -> None:
    """Write dataset.json, which a network's input and output are read by, and labels.txt: what was labeled."""
    raw = data.raw
    described = {"class_names": raw.class_names, "channels": data.channels, "mean": raw.mean, "std": raw.std}
    described |= {"levels": raw.levels, "images": len(data.pool), "labeled": len(data.labeled)}
    write_json(folder / "dataset.json", described)
    if len(data.labeled) < len(data.pool):
        write_label_file(folder / "labels.txt", data.pool.labels, image_names(data.pool), raw.class_names)


def finish_folder(
    folder: Path, config: Config, method: Method, records: list[Record], seconds: float
) -> Summary:
    """Write weights, metrics.csv, curves.png; summary.json last: its presence says that the run is whole."""
    from .plots import plot_curves

    for role in ("teacher", "student"):
        _save_weights(folder / f"{role}.safetensors", getattr(method, role))
    write_csv(folder / "metrics.csv", records)
    write_with(folder / "curves.png", lambda path: plot_curves(path, config, records))
    last = records[-1]
    summary: Summary = {
        "student_error": last["student_error"],
        "teacher_error": last["teacher_error"],
        "eval_split": config.eval_split,
        "steps_done": last["step"],
        "interrupted": last["step"] < method.timeline.steps,
        "seconds": round(seconds, 3),
    }
    write_json(folder / "summary.json", summary)
    return summary


def load_model(folder: Path, role: Literal["teacher", "student"] = "teacher") -> nn.Module:
    """The trained network of a run, on the CPU in eval mode: maps images, made by data.Pixels, to logits."""
    from safetensors.torch import load_file

    config = Config.from_dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    described = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    weights = load_file(folder / f"{role}.safetensors")
    config = replace(config, pretrained=False)  # its weights are in the folder
    model = build_model(config, classes=len(described["class_names"]), channels=described["channels"])
    model.load_state_dict(weights)
    return model.eval()


def _save_weights(path: Path, model: nn.Module) -> None:
    """safetensors has no strides and no shared storage: it gets contiguous copies."""
    from safetensors.torch import save_file

    copies = {
        name: value.detach().clone(memory_format=torch.contiguous_format).cpu()
        for name, value in model.state_dict().items()
    }
    write_with(path, lambda temporary: save_file(copies, temporary, metadata={"format": "pt"}))
